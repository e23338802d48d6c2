"""A runsc that hangs, crashes, prints nonsense or does nothing is refused in time, with a reason.

Nothing ever runs outside of a sandbox, and nothing is left behind.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel.cli.main import main
from gvisor_kernel.errors import SandboxError
from gvisor_kernel.kernel import snapshot_builder
from gvisor_kernel.link import Connection, Hello
from gvisor_kernel.link.state import Role
from gvisor_kernel.runtimes.runsc import command_line, runtime
from gvisor_kernel.snapshots.snapshot_store import Store

from .. import leaks
from ..jupyter.helpers import execute, kernel_log, running_kernel, wait_until
from ..sweeps import ALL, needs_all
from ..world import World
from .fake_runsc import FakeRunsc

MIB = 1024 * 1024
NOT_FOR_PEOPLE = re.compile(r"Traceback|Error\(|\bb'", re.I)
NONSENSE = r"""yes "$(printf '\033[2J\007\377')" | head -c 100000"""
"""Bytes that are not text and would clear a terminal and ring its bell; constant."""
FLOOD = "head -c 24M /dev/zero"
"""Four times as much as a reader may use memory for it."""
SLEEP = f"sleep 1000.{os.getpid()}"
"""The number distinguishes this run's processes."""

NO_SANDBOX = {
    "crashes": ("echo 'fatal error: out of luck' >&2; exit 2", "status 2"),
    "is killed": ("kill -SEGV $$", "status -11"),
    "does nothing": ("exit 0", "left no sandbox"),
    "prints nonsense": (f"{NONSENSE}; {NONSENSE} >&2; exit 0", "no"),
    "prints too much": (f"{FLOOD} >&2; exit 1", "status 1"),
    "names no process": (
        "for a; do case $a in --pid-file=*) echo nonsense > ${a#*=};; esac; done; exit 0",
        "left no sandbox",
    ),
    "names another process": (
        "for a; do case $a in --pid-file=*) echo INNOCENT > ${a#*=};; esac; done; exit 0",
        "left no sandbox",
    ),
    "leaves a child": (f"{SLEEP} & exit 1", "status 1"),
    "leaves a child and reports success": (f"{SLEEP} & exit 0", "left no sandbox"),
}
"""Scripts instead of ``runsc run``, and a part of the expected error."""
HANGS = {
    "hangs": f"exec {SLEEP}",
    "hangs with a child": f"{SLEEP} & wait",
    "fills the link": f"{FLOOD}",
}
_HELLO = Connection(Role.GUEST, Hello(facts=())).data_to_send(100000)
POSER = f"""
echo $$ > "$0"
printf '{"".join(f"{chr(92)}{byte:03o}" for byte in _HELLO)}'
while read -r _; do :; done
"""
"""Sends what a sandbox would send, from a process on the host. It needs nothing of the clone, which
lies where a start's own mounts may be."""
POSES = f"""
for a; do case $a in --pid-file=*) file=${{a#*=}};; --root=*) root=$a;; esac; done
exec 3<&0
bash -c 'exec -a runsc-sandbox bash -c "$0" "$1" "$2" <&3' \\
    {shlex.quote(POSER)} "$file" "$root" &
while [ ! -s "$file" ]; do :; done
exit 0
"""
ANSWERS = {
    "crashes": ("exit 3", "does not print its version"),
    "prints nothing": ("exit 0", "does not print its version"),
    "prints nonsense": (f"{NONSENSE}; exit 0", "does not print its version"),
    "prints too much": (f"{FLOOD}; exit 0", "does not print its version"),
    "hangs": (f"exec {SLEEP}", "did not end within 1 s"),
    "leaves a child": (f"{SLEEP} & exit 0", "does not print its version"),
}
CHECKPOINTS = {
    "crashes": ("exit 1", "status 1"),
    "does nothing": ("exit 0", "written no snapshot"),
    "prints too much": (f"{FLOOD} >&2; exit 1", "status 1"),
    "hangs": (f"{SLEEP} & wait", "not written within 1 s"),
}


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeRunsc:
    fake = FakeRunsc(tmp_path / "bin")
    monkeypatch.setenv("PATH", fake.environment_path())
    # A snapshot that this runsc makes would replace the run's.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return fake


@pytest.fixture(autouse=True)
def nothing_is_left(world: World) -> Iterator[None]:
    """Check processes, files, descriptors, and the scripts' own sleep processes."""
    warm_up()
    before, descriptors, sleepers = leaks.find_things(world), count_descriptors(), count_sleepers()
    yield
    left = leaks.find_leftovers(before, lambda: leaks.find_things(world))
    assert not left, "\n".join(sorted(left))
    assert count_sleepers() == sleepers
    wait_until(lambda: count_descriptors() <= descriptors, "descriptors to be closed", 5)


@cache
def warm_up() -> None:
    """Open the descriptors that a process opens once for all its kernels."""
    with running_kernel():
        pass


def count_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def count_sleepers() -> int:
    """Count the sleep processes of the scripts above."""
    count = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            count += path.read_bytes().split(b"\0")[:2] == SLEEP.encode().split()
    return count


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Assert that this process's peak memory grows by less than 24 MiB."""
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    yield
    assert peak() - before < 24 * MIB


def peak() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])  # type: ignore[index]


def refusal(**settings: Any) -> str:
    """Start a kernel, which must be refused; return the error's text."""
    with pytest.raises(SandboxError) as caught, running_kernel(settings=settings):
        pass
    words = str(caught.value)
    assert "What to do: " in words
    assert not NOT_FOR_PEOPLE.search(words), words
    return words


FOR_A_USER = ("does nothing", "names another process", "leaves a child")
"""Scripts whose processes and files must be found in a user's namespace, too."""
LIKE_OTHERS = (
    *("is killed", "leaves a child and reports success"),
    *("prints nonsense", "names no process"),
)


@pytest.mark.parametrize(
    "what",
    [
        pytest.param(
            name,
            marks=[
                *([] if name in FOR_A_USER else [pytest.mark.once]),
                *([needs_all] if name in LIKE_OTHERS else []),
            ],
        )
        for name in NO_SANDBOX
    ],
)
def test_broken_run_command_is_refused(what: str, fake: FakeRunsc) -> None:
    script, words = NO_SANDBOX[what]
    with subprocess.Popen(["sleep", "1000"]) as innocent:
        fake.instead_of("run", script.replace("INNOCENT", str(innocent.pid)))
        try:
            with bounded_memory():
                said = refusal(snapshot="off")
            assert innocent.poll() is None
        finally:
            innocent.kill()
    assert words in said
    assert "\033" not in said
    assert "run" in fake.asked() or os.geteuid() != 0  # a user's namespace cannot write that file


@pytest.mark.parametrize(
    "what",
    [
        "hangs with a child",
        pytest.param("hangs", marks=pytest.mark.once),
        pytest.param("fills the link", marks=needs_all),
    ],
)
def test_hanging_run_command_is_refused(what: str, fake: FakeRunsc) -> None:
    fake.instead_of("run", HANGS[what])
    assert "not started within 1 s" in refusal(snapshot="off", start_timeout=1)
    if what == "hangs":
        fake.as_ever("run")  # the next start works
        with running_kernel(settings={"snapshot": "off"}) as (_, client):
            assert execute(client, "6 * 7").result == "42"


@pytest.mark.once
def test_nonsense_on_the_link_is_refused(fake: FakeRunsc) -> None:
    fake.instead_of("run", NONSENSE)
    assert "violated the link protocol" in refusal(snapshot="off")


def test_process_outside_sandbox_is_refused(fake: FakeRunsc) -> None:
    """The process has the right name and sends the right frames."""
    fake.instead_of("run", POSES)
    words = refusal(snapshot="off")
    assert "gVisor" in words or "not isolated" in words


@pytest.mark.once
@pytest.mark.parametrize(
    ("question", "what"),
    [*(("--version", what) for what in ANSWERS), ("flags", "prints nothing"), ("flags", "hangs")],
)
def test_broken_version_or_flags_command_is_refused(
    question: str, what: str, fake: FakeRunsc, monkeypatch: pytest.MonkeyPatch
) -> None:
    if what == "hangs":
        monkeypatch.setattr(command_line, "ANSWER_SECONDS", 1.0)
    script, words = ANSWERS[what]
    fake.instead_of(question, script)
    with bounded_memory():
        said = refusal(snapshot="off")
    assert ("has no flag" if question == "flags" and what != "hangs" else words) in said
    assert str(fake.path) in said
    assert "run" not in fake.asked()


@pytest.mark.once
def test_command_line_prints_the_reason(fake: FakeRunsc) -> None:
    fake.instead_of("run", "echo 'fatal error: out of luck' >&2; exit 2")
    done = subprocess.run(
        [sys.executable, "-m", "gvisor_kernel", "start"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 1
    assert "out of luck" in done.stderr
    assert not NOT_FOR_PEOPLE.search(done.stderr), done.stderr


@pytest.mark.once
@pytest.mark.parametrize(
    "what",
    [what if what == "hangs" else pytest.param(what, marks=needs_all) for what in CHECKPOINTS],
)
def test_broken_checkpoint_command_makes_no_snapshot(
    what: str,
    fake: FakeRunsc,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if what == "hangs":
        monkeypatch.setattr(snapshot_builder, "REPLY_SECONDS", 1.0)
    script, words = CHECKPOINTS[what]
    fake.instead_of("checkpoint", script)
    snapshots = Store.open().snapshots()
    with bounded_memory():
        assert main(["snapshot", "build"]) == 1
    said = capsys.readouterr().err
    assert words in said
    assert not NOT_FOR_PEOPLE.search(said), said
    assert Store.open().snapshots() == snapshots
    assert not list(Store.open().root.glob("*-*"))
    assert "checkpoint" in fake.asked()


@pytest.mark.once
def test_failed_restore_becomes_cold_start(
    fake: FakeRunsc, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In each case the start is cold, and the snapshot is not tried a second time.

    The snapshot is made by a slow checkpoint command: the sandbox ends when the snapshot is
    written, and the command may take longer to exit.
    """
    seconds = runtime.RESTORE_SECONDS
    monkeypatch.setattr(runtime, "RESTORE_SECONDS", 1.0)
    fake.instead_of("checkpoint", f'{fake.real} "$@"; status=$?; sleep 0.5; exit $status')
    assert main(["snapshot", "build"]) == 0, capsys.readouterr().err
    assert len(Store.open().snapshots()) == 1
    given_up: list[str] = []
    monkeypatch.setattr(Store, "discard", lambda self, key, reason: given_up.append(reason))
    scripts = (f"exec {SLEEP}", *(("exit 1", "exit 0", NONSENSE) if ALL else ()))
    for script in scripts:
        fake.instead_of("restore", script)
        with running_kernel() as (manager, client):
            assert execute(client, "6 * 7").result == "42"
            assert "the kernel was restored from a snapshot" not in kernel_log(manager)
    assert len(given_up) == len(scripts)
    fake.as_ever("restore")
    monkeypatch.setattr(runtime, "RESTORE_SECONDS", seconds)
    with running_kernel() as (manager, client):
        assert execute(client, "6 * 7").result == "42"
        assert "the kernel was restored from a snapshot" in kernel_log(manager)
