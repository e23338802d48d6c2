"""A machine without runsc: what each command says, the question of ``install`` and its answers, and
a kernel in the release that it has installed.

As an ordinary user, for whom only root can hide runsc:
``python -m tests.without_runsc python tests/run_as_user.py tests/cli/test_offer.py``.
"""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from gvisor_kernel.releases import LATEST, SIZE, TRIED
from gvisor_kernel.releases.release_store import SHARED

from ..patience import scale_seconds
from ..releases import bucket as releases
from ..releases.bucket import NEW, Bucket, newer_program, serving
from ..terminal import Terminal, terminal
from ..without_runsc import VARIABLE, machine_without_runsc
from ..world import PROJECT

pytestmark = pytest.mark.once
MISSING = "The program runsc (gVisor) is not installed."
COMMAND = "gvisor-kernel runsc install"
WHOM = "all users" if os.geteuid() == 0 else "this user"
QUESTION = re.compile(rf"Install gVisor {TRIED} \({SIZE}\) for {WHOM} now\? \[Y/n\] ")


@dataclass
class Machine:
    """``prefix`` begins each command line; ``environment`` has folders of its own."""

    prefix: list[str]
    environment: dict[str, str]
    bucket: Bucket

    def argv(self, *words: str, module: str = "gvisor_kernel") -> list[str]:
        return [*self.prefix, sys.executable, "-m", module, *words]

    def run(self, *words: str, status: int = 0, module: str = "gvisor_kernel") -> str:
        """Run a command without a terminal, and return what it has printed."""
        done = subprocess.run(
            self.argv(*words, module=module),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=scale_seconds(120),
            check=False,
        )
        assert done.returncode == status, done.stdout
        return done.stdout

    def has_kernelspec(self) -> bool:
        return Path(self.environment["JUPYTER_DATA_DIR"], "kernels/gvisor-python").exists()

    def installed(self) -> list[str]:
        """Return the names of the releases in the store of this user, and of nothing else."""
        store = SHARED
        if os.geteuid() != 0:
            store = Path(self.environment["XDG_DATA_HOME"], "gvisor-kernel", "runsc")
        script = 'test ! -e "$0" || ls "$0"'
        found = subprocess.check_output([*self.prefix, "sh", "-c", script, str(store)], text=True)
        return [name for name in found.split() if name not in ("lock", "installing", "partial")]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    with pytest.MonkeyPatch.context() as patch:
        if VARIABLE in os.environ:
            hidden = Path(os.environ[VARIABLE]).read_bytes()
            patch.setattr(releases, "system_program", lambda: hidden)
        with serving(tmp_path_factory.mktemp("bucket")) as found:
            found.put(LATEST, "runsc", newer_program())
            yield found


@pytest.fixture
def machine(bucket: Bucket, tmp_path: Path) -> Iterator[Machine]:
    python = Path(sys.prefix)
    if python.is_relative_to("/var/lib") and not python.is_relative_to(PROJECT):
        pytest.skip("/var/lib is covered on the machine without runsc")
    if os.geteuid() != 0 and VARIABLE not in os.environ:
        pytest.skip("only root can hide runsc: see tests/without_runsc.py")
    bucket.seen.clear()
    environment = {**os.environ, **bucket.environment, "HOME": str(tmp_path)}
    for name in ("DATA", "STATE", "CACHE", "CONFIG"):
        environment[f"XDG_{name}_HOME"] = str(tmp_path / name.lower())
        (tmp_path / name.lower()).mkdir(mode=0o700)
    for name in ("JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR"):
        environment[name] = str(tmp_path / name.lower())
    with ExitStack() as held:
        prefix = held.enter_context(machine_without_runsc()) if os.geteuid() == 0 else []
        yield Machine(prefix, environment, bucket)


def at_terminal(machine: Machine, held: ExitStack, *words: str) -> Terminal:
    """Begin an install, and return its terminal after the question was asked."""
    person = held.enter_context(terminal(machine.argv(*words), machine.environment))
    person.expect("[Y/n] ")
    assert QUESTION.search(person.text), person.text
    assert MISSING in person.text
    assert machine.bucket.seen == []
    return person


def test_every_command_names_the_one_to_run(machine: Machine) -> None:
    document = json.loads(machine.run("doctor", "--json", status=1))
    checks = {check["name"]: check for check in document["checks"]}
    assert checks["runsc"]["fact"] == MISSING.rstrip(".")
    for name in ("runsc", "platform", "kernel"):
        assert checks[name]["state"] == "failed"
        assert COMMAND in checks[name]["fix"], checks[name]
    said = machine.run("start", status=1)
    assert MISSING in said
    assert f"What to do: run `{COMMAND}`" in said
    assert max(map(len, said.splitlines())) <= 100  # JupyterLab's dialog breaks no lines
    assert machine.bucket.seen == []


def test_without_a_terminal_nothing_is_installed_or_asked(machine: Machine) -> None:
    said = machine.run("install", "--user")
    assert f"But no kernel can start yet. {MISSING}\nWhat to do: run `{COMMAND}`" in said
    assert "Install gVisor" not in said
    assert machine.has_kernelspec()
    assert machine.bucket.seen == []
    assert machine.installed() == []


@pytest.mark.parametrize("keys", ["n\n", "NO\n", "\x04", "perhaps\nno\n"])
def test_who_says_no_gets_the_kernelspec_and_the_command(keys: str, machine: Machine) -> None:
    with ExitStack() as held:
        person = at_terminal(machine, held, "install", "--user")
        first, _, rest = keys.partition("\n")
        person.type(f"{first}\n" if rest else keys)
        if rest:
            person.expect("[Y/n] ")
            person.type(rest)
        assert person.wait() == 0
    assert ("Please answer y or n." in person.text) == bool(rest)
    assert len(QUESTION.findall(person.text)) == (2 if rest else 1)
    assert f"But no kernel can start yet. {MISSING}" in person.text
    assert machine.has_kernelspec()
    assert machine.installed() == []


def test_an_interrupted_question_changes_nothing(machine: Machine) -> None:
    with ExitStack() as held:
        person = at_terminal(machine, held, "install", "--user")
        person.type("\x03")
        assert person.wait() in (130, 128 + signal.SIGINT, -signal.SIGINT)
    assert "Traceback" not in person.text
    assert not machine.has_kernelspec()
    assert machine.installed() == []


def test_who_says_yes_gets_a_kernel_in_the_release(machine: Machine) -> None:
    with ExitStack() as held:
        person = at_terminal(machine, held, "install", "--user")
        person.type("\n")
        assert person.wait() == 0, person.text
    assert f"Installed the release {NEW}.0 of runsc." in person.text
    assert "Kernels start from the snapshot" in person.text
    assert machine.installed() == [f"{NEW}.0", "chosen"]
    assert f"runsc {NEW}.0" in machine.run("version").replace("0.0~", "")
    code = Path(machine.environment["HOME"], "cell.py")
    code.write_text("import os; print('inside', os.uname().release)")
    run_in_kernel = ("--kernel", "gvisor-python", str(code))
    said = machine.run(*run_in_kernel, module="jupyter_client.runapp")
    inside = re.search(r"inside (\S+)", said)
    assert inside, said
    assert inside[1] != platform.release()
    seen = len(machine.bucket.seen)
    assert "runsc" not in machine.run("install", "--user", "--no-snapshot", "--yes")
    assert len(machine.bucket.seen) == seen  # there is one now


def test_a_script_that_agrees_gets_the_release_too(machine: Machine) -> None:
    said = machine.run("install", "--user", "--no-snapshot", "--yes")
    assert f"Installed the release {NEW}.0 of runsc." in said
    assert machine.installed() == [f"{NEW}.0", "chosen"]


def test_without_the_bucket_nothing_is_installed(machine: Machine) -> None:
    machine.environment["https_proxy"] = "http://127.0.0.1:1"
    said = machine.run("install", "--user", "--name", "gk-other", "--yes", status=1)
    assert "cannot be fetched" in said
    assert machine.installed() == []
    assert not Path(machine.environment["JUPYTER_DATA_DIR"], "kernels/gk-other").exists()


def test_another_runtime_needs_no_runsc(machine: Machine) -> None:
    words = ("--set", "runtime=ssh", "--set", 'ssh={"hosts": ["a"]}', "--no-snapshot", "--yes")
    assert MISSING not in machine.run("install", "--user", *words)
    assert machine.bucket.seen == []
