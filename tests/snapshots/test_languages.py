"""Snapshots of kernels in any language, reached by frames or by the relay."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jupyter_client import BlockingKernelClient

from gvisor_kernel.cli.main import main
from gvisor_kernel.kernel import launch
from gvisor_kernel.kernel.command import host_path
from gvisor_kernel.kernel.warm_up import list_installed
from gvisor_kernel.snapshots.snapshot_store import Store

from ..jupyter.helpers import SECONDS, execute, kernel_log, running_kernel
from ..sweeps import ALL, needs_all
from ..world import World, kernelspec_of
from .conftest import build, make_python, packages_of, rewrite

pytestmark = pytest.mark.once

COPIES = 3 if ALL else 2
BASH = "bash-restored"
LOOK_IN_PYTHON = """
import json, numpy, os, random, ssl, tempfile, uuid
session = get_ipython().kernel.session
drawn = [random.random(), numpy.random.random(), ssl.RAND_bytes(8).hex(), str(uuid.uuid1())[14:],
         tempfile.mktemp(), session.session, get_ipython().kernel.ident]
print(json.dumps([drawn, session.key.decode(), os.getcwd(), os.listdir(), sorted(
    name for name in globals() if "gvisor" in name or name in ("sys", "renew"))]))
"""


@pytest.fixture(scope="module", params=[pytest.param("direct", marks=needs_all), "relay"])
def bash_way(request: pytest.FixtureRequest, world: World) -> Iterator[str]:
    """A snapshot of a bash_kernel; whether it is reached directly or by the relay."""
    folder = add_bash(world, {"direct": "auto", "relay": "relay"}[request.param])
    try:
        build("--kernel", BASH)
        yield request.param
    finally:
        remove(folder)


def add_bash(world: World, mode: str, module: str = "bash_kernel", name: str = BASH) -> Path:
    return world.add_kernelspec(
        name,
        {
            "argv": [sys.executable, "-m", module, "-f", "{connection_file}"],
            "display_name": BASH,
            "language": "bash",
            "interrupt_mode": "signal",
            "metadata": {
                "kernel_provisioner": {
                    "provisioner_name": "gvisor-provisioner",
                    "config": {"snapshot": "auto", "kernel_mode": mode},
                }
            },
        },
    )


def remove(folder: Path) -> None:
    (folder / "kernel.json").unlink()
    folder.rmdir()


def test_bash_kernels_are_restored(bash_way: str, tmp_path: Path) -> None:
    """Each has its own random numbers and files. With ``--all`` one is also restarted, without the
    snapshot."""
    drawn = []
    for number in range(COPIES):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / f"data-{number}").touch()
        with running_kernel(BASH, start={"cwd": str(folder)}) as (manager, client):
            log = kernel_log(manager)
            assert "the kernel was restored from a snapshot" in log
            first = execute(client, "echo $RANDOM $RANDOM $SRANDOM; pwd; ls; echo $?")
            drawn.append(first.text.splitlines()[0])
            assert first.reply["content"]["execution_count"] == 1
            files = [f"data-{number}", "outputs"]
            assert first.text.split()[3:] == ["/workspace", *files, "0"]
            assert execute(client, "history | grep -c 'urando[m]'").text == "0\n"
            assert listens(client) == (bash_way == "relay")
            if number == 0 and ALL:
                execute(client, "x=1")
                manager.restart_kernel()
                client.wait_for_ready(timeout=SECONDS)
                assert execute(client, "echo [$x]").text == "[]\n"
    for values in zip(*map(str.split, drawn), strict=True):
        assert len(set(values)) == COPIES, drawn


def listens(client: BlockingKernelClient) -> bool:
    """Return whether the kernel has ZMQ sockets; one that speaks frames has none."""
    return "-1" in execute(client, "ls /run/gvisor-kernel/kernel/*").text


LOOK = {
    "typescript": """
const id = new Uint32Array(1);
crypto.getRandomValues(id);
console.log(Math.random(), Math.random(), crypto.randomUUID(), id[0]);
console.log(Deno.cwd(), [...Deno.readDirSync(".")].map((entry) => entry.name).sort().join(" "));
""",
    "java": """
System.out.println(Math.random() + " " + new Random().nextLong() + " " + UUID.randomUUID() + " "
    + new java.security.SecureRandom().nextLong());
System.out.println(System.getProperty("user.dir") + " "
    + String.join(" ", new TreeSet<>(Arrays.asList(new java.io.File(".").list()))));
""",
}
"""Prints numbers from four random sources, then the working directory and its files."""


COMPILED = [pytest.param(name, marks=needs_all) for name in ("typescript", "java")]


@pytest.fixture(scope="module", params=COMPILED)
def compiled(request: pytest.FixtureRequest) -> Iterator[str]:
    """A language whose kernel loads compilers, with a snapshot of that kernel."""
    language = str(request.param)
    if language == "java" and not shutil.which("java", path=host_path("/usr/bin/python3")):
        pytest.skip("there is no java on this machine")
    pytest.importorskip({"java": "jjava", "typescript": "deno"}[language])
    install = ["install", "--user", "--language", language, "--set", "spare=false"]
    assert main(install) == 0
    build("--kernel", f"gvisor-{language}")
    yield language
    assert main(["uninstall", "--user", "--name", f"gvisor-{language}"]) == 0


def test_compiled_language_kernels_are_restored(compiled: str, tmp_path: Path) -> None:
    """Nothing of the warm-up is visible, and each kernel has its own random numbers."""
    drawn = []
    for number in range(COPIES):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / f"data-{number}").touch()
        with running_kernel(f"gvisor-{compiled}", start={"cwd": str(folder)}) as (m, client):
            assert "the kernel was restored from a snapshot" in kernel_log(m)
            answer = execute(client, LOOK[compiled])
            assert answer.reply["content"]["execution_count"] == 1
            random, where = re.sub("\x1b\\[[0-9]+m", "", answer.text).splitlines()
            assert where == f"/workspace data-{number} outputs"
            drawn.append(random.split())
    assert len(drawn[0]) == 4
    for values in zip(*drawn, strict=True):
        assert len(set(values)) == COPIES, drawn


@pytest.fixture(scope="module")
def relayed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A store with one snapshot, of a Python kernel behind the relay."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        build("--kernel", RELAYED, "--preload", "numpy")
        yield


RELAYED = kernelspec_of("relay")
SETTINGS = {"snapshot": "auto", "preload": ["numpy"]}


@pytest.mark.usefixtures("relayed")
def test_relayed_python_kernels_are_restored(tmp_path: Path) -> None:
    """They share the key of the snapshot, which only signs inside, but no random numbers."""
    found = []
    for number in range(COPIES):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / f"data-{number}").touch()
        with running_kernel(RELAYED, settings=SETTINGS, start={"cwd": str(folder)}) as (m, client):
            assert "the kernel was restored from a snapshot" in kernel_log(m)
            answer = execute(client, LOOK_IN_PYTHON)
            assert answer.reply["content"]["execution_count"] == 1
            drawn, key, where, files, names = json.loads(answer.text)
            assert where == "/workspace"
            assert f"data-{number}" in files
            assert names == []
            found.append([*drawn, key])
    *drawn, keys = zip(*found, strict=True)
    for values in drawn:
        assert len(set(values)) == COPIES, values
    assert len(set(keys)) == 1


@needs_all  # a start after a failed restore: tests/faults/test_fake_runsc.py
@pytest.mark.usefixtures("relayed")
def test_wrong_sandbox_key_makes_start_cold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, discards: Callable[[], str]
) -> None:
    """A relayed kernel ignores messages that are not signed with its key, so a cold one starts."""
    monkeypatch.setattr(launch, "RESUME_SECONDS", 1.0)
    (snapshot,) = Store.open().snapshots()
    rewrite(snapshot, lambda content: content.update(sandbox_key="0" * 64))
    with running_kernel(RELAYED, settings=SETTINGS, start={"cwd": str(tmp_path)}) as (m, client):
        assert execute(client, "40 + 2").result == "42"
        assert "the kernel starts without a snapshot" in kernel_log(m)
    assert "did not answer within 1 s" in discards()
    assert Store.open().snapshots() == []


def test_build_fails_at_once_when_kernel_ends(
    own_store: Store, capsys: pytest.CaptureFixture[str], world: World
) -> None:
    folder = add_bash(world, "auto", "no_such_kernel", "no-such-kernel")
    try:
        assert main(["snapshot", "build", "--kernel", "no-such-kernel"]) == 1
    finally:
        remove(folder)
    assert "ended before it answered" in capsys.readouterr().err
    assert own_store.snapshots() == []


def test_other_language_depends_on_installed_packages(tmp_path: Path) -> None:
    """Such a kernel cannot list what it has loaded, so any installed or changed package counts."""
    python = make_python(tmp_path / "environment")
    packages = packages_of(tmp_path / "environment")
    installed = packages / "some-1.0.dist-info"
    installed.mkdir()
    (installed / "RECORD").write_text("some/__init__.py,,\n")
    before = list_installed(str(python))
    assert before.find_change() is None
    assert any("bash_kernel" in path for path in list_installed(sys.executable).files)
    (installed / "RECORD").write_text("some/__init__.py,,1\n")
    assert before.find_change() == f"{installed / 'RECORD'} has changed"
    before = list_installed(str(python))
    (packages / "more.py").touch()
    assert before.find_change() == f"the modules in {packages} have changed"
