"""Another user of the machine can neither reach, read, end nor deceive a kernel."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel.errors import StateError
from gvisor_kernel.host import private_directories
from gvisor_kernel.host.private_directories import state_root
from gvisor_kernel.host.processes import GOFER_NAME, SANDBOX_NAME
from gvisor_kernel.runtimes import get_runtime
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.runtimes.state.sweep import root_argument

from ..jupyter.helpers import execute, running_kernel
from ..world import World
from .inside import SECRET, Kernel

pytestmark = pytest.mark.usefixtures("unharmed")

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can try as another user")

OTHERS = {
    "nobody": 65534,
    "owner of the first subordinate uids": 100000,
    "owner of the last subordinate uids": 600_100_000,
}
"""Attacking uids. With subordinate uids from useradd a user can run processes as those."""

ATTACK = r"""
import json, os, signal, socket, sys
plan = json.load(sys.stdin)
done = []
def attempt(what, action):
    try:
        action()
    except (OSError, PermissionError):
        return
    done.append(what)
for path in plan["paths"]:
    attempt("list " + path, lambda: os.listdir(path))
    attempt("read " + path, lambda: open(path, "rb").read(1))
    attempt("plant a file in " + path, lambda: open(path + "/planted", "w"))
    attempt("plant a link in " + path, lambda: os.symlink("/etc/passwd", path + "/planted"))
    attempt("replace " + path, lambda: os.rename(path, path + ".old"))
    attempt("remove " + path, lambda: os.unlink(path))
    attempt("open up " + path, lambda: os.chmod(path, 0o777))
for path in plan["sockets"]:
    attempt("connect to " + path, lambda: socket.socket(socket.AF_UNIX).connect(path))
for pid in plan["pids"]:
    for name in ("environ", "mem", "maps"):
        attempt(f"read {name} of a process", lambda: open(f"/proc/{pid}/{name}", "rb").read(1))
    for name in ("cwd", "root", "exe"):
        attempt(f"follow {name} of a process", lambda: os.readlink(f"/proc/{pid}/{name}"))
    attempt("list fds of a process", lambda: os.listdir(f"/proc/{pid}/fd"))
    attempt("signal a process", lambda: os.kill(pid, 0))
json.dump(done, sys.stdout)
"""


@pytest.fixture
def open_world(world: World) -> Iterator[None]:
    """Make the test run's own folders accessible, so that only the package's modes protect."""
    folders = (world.base, world.state, world.runtime, world.run, world.temporary)
    for folder in folders:
        folder.chmod(0o711)
    yield
    for folder in folders:
        folder.chmod(0o700)


def attack(plan: dict[str, Any], user: int) -> list[str]:
    """Return the attempts of ``plan`` that succeed for ``user``."""
    result = subprocess.run(
        ["/usr/bin/python3", "-I", "-c", ATTACK],
        input=json.dumps(plan),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        user=user,
        group=user,
        extra_groups=[],
        cwd="/",
        env={},
    )
    done: list[str] = json.loads(result.stdout)
    return done


def make_plan(kernel: Kernel) -> dict[str, Any]:
    """Return the paths, sockets and processes of a kernel on the host."""
    bridge: Any = kernel.manager.provisioner._kernel  # type: ignore[union-attr]
    sandbox, address, root = kernel.sandbox, bridge.address, state_root()
    names = [f"{address.ip}-{port}" for port in address.ports.values()]
    paths = [
        *(root, root / "sandboxes", root / "lock", root / "sockets"),
        *(sandbox.directory, sandbox.log_path, sandbox.directory / records.RECORD),
        *(sandbox.view.transcripts, sandbox.view.transcripts / "transcript.jsonl"),
        *(sandbox.directory / "rootfs", sandbox.directory / "bundle", Path(address.ip).parent),
    ]
    return {
        "paths": [*map(str, paths), kernel.manager.connection_file],
        "sockets": names + [str(Path(name).resolve()) for name in names],
        "pids": [
            *(sandbox.find_process(name) for name in (SANDBOX_NAME, GOFER_NAME)),
            os.getpid(),
        ],
    }


@as_root
@pytest.mark.parametrize("who", OTHERS)
def test_other_user_cannot_reach_read_or_end_kernel(
    kernel: Kernel, open_world: None, who: str
) -> None:
    assert execute(kernel.client, "secret = 1").status == "ok"
    plan = make_plan(kernel)
    assert None not in plan["pids"]
    assert all(Path(path).exists() for path in plan["paths"])
    assert attack(plan, OTHERS[who]) == []
    # The same attack by the owner reaches the sockets, so the attack is valid.
    reached = attack({**plan, "paths": [], "pids": []}, os.geteuid())
    assert reached == [f"connect to {path}" for path in plan["sockets"]]
    assert execute(kernel.client, "secret").result == "1"


def test_state_is_private(kernel: Kernel) -> None:
    """A kernel's files on the host are private at the top folder, and below it, too."""
    bridge: Any = kernel.manager.provisioner._kernel  # type: ignore[union-attr]
    for folder in (state_root(), kernel.sandbox.directory, Path(bridge.address.ip).parent):
        status = folder.stat()
        assert status.st_mode & 0o077 == 0
        assert status.st_uid == os.geteuid()
    for folder, _, files in os.walk(state_root()):
        if "rootfs" in Path(folder).parts:
            continue  # the sandbox's root, with the usual modes of a system
        for path in (Path(folder), *(Path(folder, name) for name in files)):
            assert not stat.S_IMODE(path.lstat().st_mode) & 0o022 or path.is_symlink(), path


def test_argument_lists_contain_no_secret(kernel: Kernel) -> None:
    """Every user can read the argument lists of all processes."""
    key = kernel.manager.session.key
    for name in (SANDBOX_NAME, GOFER_NAME):
        words = Path(f"/proc/{kernel.sandbox.find_process(name)}/cmdline").read_bytes()
        assert words
        assert key not in words
        assert SECRET.encode() not in words


# Impostors.


@contextmanager
def impostor(kernel: Kernel, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the user nobody with the name and arguments of a sandbox's process."""
    code = "import signal; print(flush=True); signal.pause()"
    with subprocess.Popen(
        [name, "-I", "-c", code, root_argument(kernel.sandbox.directory)],
        executable="/usr/bin/python3",
        stdout=subprocess.PIPE,
        user=65534,
        group=65534,
        extra_groups=[],
        cwd="/",
        env={},
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield process
        finally:
            process.kill()


@as_root
@pytest.mark.parametrize("name", [SANDBOX_NAME, GOFER_NAME])
def test_process_with_sandbox_name_is_not_mistaken(kernel: Kernel, name: str) -> None:
    """It is neither verified instead, which would end the kernel, nor waited for."""
    real = kernel.sandbox.find_process(name)
    with impostor(kernel, name) as process:
        assert kernel.sandbox.find_process(name) == real
        kernel.sandbox.verify()
        with running_kernel(start={"cwd": str(kernel.folder)}):
            pass
        assert process.poll() is None, "another user's process was killed"
    assert execute(kernel.client, "6 * 7").result == "42"


# Planted state directories.


@pytest.fixture
def shared_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state home in which everybody may create files."""
    folder = tmp_path / "everybodys"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    return folder


@as_root
def test_planted_state_directory_is_refused(shared_folder: Path) -> None:
    planted = shared_folder / "gvisor-kernel"
    planted.mkdir()
    os.chown(planted, 65534, 65534)
    with pytest.raises(StateError, match="belongs to uid 65534"):
        state_root()
    assert list(planted.iterdir()) == []


@as_root
def test_state_directory_symlink_is_refused(shared_folder: Path, tmp_path: Path) -> None:
    """Through the link the mode of a folder would change, and its subfolders would be swept."""
    mine = tmp_path / "mine"
    (mine / "sandboxes" / "letters").mkdir(parents=True)
    mine.chmod(0o755)
    (shared_folder / "gvisor-kernel").symlink_to(mine)
    os.lchown(shared_folder / "gvisor-kernel", 65534, 65534)
    with pytest.raises(StateError, match="belongs to uid 65534"):
        get_runtime("runsc").sweep()
    assert (mine / "sandboxes" / "letters").is_dir()
    assert stat.S_IMODE(mine.stat().st_mode) == 0o755


def test_open_state_directory_is_closed(shared_folder: Path) -> None:
    (shared_folder / "gvisor-kernel").mkdir()
    (shared_folder / "gvisor-kernel").chmod(0o777)
    assert stat.S_IMODE(state_root().stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "mode", [0o777, pytest.param(0o775, marks=as_root), pytest.param(0o755, marks=as_root)]
)
def test_state_directory_below_writable_folder_is_refused(shared_folder: Path, mode: int) -> None:
    """Others could replace the directory: mode 777, a group's folder, another user's folder."""
    state_root()
    above = shared_folder.parent
    owner, before = above.stat(), stat.S_IMODE(above.stat().st_mode)
    if mode == 0o775:
        os.chown(above, 0, 4711)
    elif mode == 0o755:
        os.chown(above, 4711, 4711)
    above.chmod(mode)
    private_directories._checked.clear()  # as in another process
    try:
        with pytest.raises(StateError, match=f"The folder {above}"):
            state_root()
    finally:
        os.chown(above, owner.st_uid, owner.st_gid)
        above.chmod(before)
    state_root()


def test_start_creates_no_predictable_name_in_shared_folder(kernel: Kernel, world: World) -> None:
    """A start creates nothing in shared folders, where others could create it first."""
    before = {path.name for path in (*world.temporary.iterdir(), *Path("/tmp").iterdir())}
    with running_kernel(start={"cwd": str(kernel.folder)}):
        after = [*world.temporary.iterdir(), *Path("/tmp").iterdir()]
        ours = [p for p in after if p.name not in before and "gvisor" in p.name]
        assert ours == []
