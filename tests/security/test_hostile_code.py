"""Code in a cell tries to get out, up, or at what is not its own. One kernel serves all attempts.

Each test runs in the real kernel process, as a notebook's cell would; the answer comes back as
JSON, and states what was achieved.
"""

from __future__ import annotations

import getpass
import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client import BlockingKernelClient

from ..jupyter.helpers import SANDBOXED, execute, running_kernel

pytestmark = pytest.mark.skipif(
    not SANDBOXED, reason="GK_TEST_KERNEL names a kernel that is not in a sandbox"
)

PRELUDE = '''
import ctypes, errno, glob, json, os, signal, socket, stat, subprocess, sys
from pathlib import Path

libc = ctypes.CDLL(None, use_errno=True)

def refused(action):
    """The name of the error with which action was refused, or None if it was done."""
    try:
        action()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    return None

def call(name, *arguments):
    """A system call by libc; raises OSError."""
    if getattr(libc, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), name)
'''

REMOUNT = r"""
import ctypes, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
NEWUSER, NEWNS, REMOUNT, BIND = 0x10000000, 0x00020000, 32, 4096
assert libc.unshare(NEWUSER | NEWNS) == 0
for target in [line.split()[1] for line in open("/proc/mounts")]:
    for flags in (REMOUNT, REMOUNT | BIND):
        libc.mount(b"none", target.encode(), b"none", flags, None)

done = []
def attempt(what, action):
    try:
        action()
    except OSError:
        return
    done.append(what)

files, folders = json.loads(sys.argv[1])
for path in files:
    for mode in ("a", "r+"):  # nothing is written: some of these are the host's Python
        attempt(mode + " " + path, lambda: open(path, mode))
attempt("truncate", lambda: open("/mnt/user-data/uploads/data.csv", "w"))
for folder in folders:
    attempt("plant a file in " + folder, lambda: open(folder + "/planted", "w"))
    attempt("plant a folder in " + folder, lambda: os.mkdir(folder + "/planted"))
for kind in ("ext4", "btrfs", "9p", "erofs"):
    for source in ("/dev/vda", "/dev/sda", "none"):
        if libc.mount(source.encode(), b"/mnt", kind.encode(), 0, None) == 0:
            done.append("mount " + kind)
print(json.dumps(done))
"""

Cell = Callable[[str], Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("notebooks")
    (folder / "data.csv").write_text("1,2\n")
    return folder


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[BlockingKernelClient]:
    server = os.environ | {"GK_SECRET_TOKEN": "hunter2", "KERNEL_USERNAME": "mallory"}
    with running_kernel(start={"cwd": str(folder), "env": server}) as (_, client):
        assert execute(client, PRELUDE).status == "ok"
        yield client


@pytest.fixture
def cell(client: BlockingKernelClient) -> Cell:
    """Run code in the kernel; the value of the variable ``found``."""

    def run(code: str) -> Any:
        answer = execute(client, textwrap.dedent(code) + "\nprint(json.dumps(found))")
        assert answer.status == "ok", answer.reply["content"]
        return json.loads(answer.text)

    return run


def test_it_is_on_gvisors_kernel(cell: Cell) -> None:
    release, log = cell("found = [os.uname().release, subprocess.getoutput('dmesg')]")
    assert release == "4.4.0"
    assert "gVisor" in log


def test_it_is_nobody(cell: Cell) -> None:
    """uid 1000, no capability in any set, and none to be had by a set-uid program."""
    found = cell("""
        status = dict(l.split(":", 1) for l in Path("/proc/self/status").read_text().splitlines())
        found = {
            "ids": [*os.getresuid(), *os.getresgid()],
            "groups": os.getgroups(),
            "capabilities": [int(v, 16) for k, v in status.items() if k.startswith("Cap")],
            "no_new_privs": libc.prctl(39, 0, 0, 0, 0),
        }
    """)
    assert set(found["ids"]) == {1000}
    assert 0 not in found["groups"]
    assert len(found["capabilities"]) >= 4
    assert not any(found["capabilities"])
    assert found["no_new_privs"] == 1


def test_it_becomes_nobody_else(cell: Cell) -> None:
    found = cell("""
        found = {
            "setuid": refused(lambda: os.setuid(0)),
            "setresuid": refused(lambda: os.setresuid(0, 0, 0)),
            "setgid": refused(lambda: os.setgid(0)),
            "setgroups": refused(lambda: os.setgroups([0])),
            "chown": refused(lambda: os.chown("/etc/passwd", 65534, 65534)),
            "mount": refused(lambda: call("mount", b"x", b"/tmp", b"tmpfs", 0, None)),
            "umount": refused(lambda: call("umount2", b"/mnt/user-data/uploads", 0)),
            "chroot": refused(lambda: os.chroot("/tmp")),
            "sethostname": refused(lambda: socket.sethostname("x")),
            "mknod": refused(lambda: os.mknod("/tmp/disk", stat.S_IFBLK | 0o666, 0x800)),
            "ptrace PID 1": refused(lambda: call("ptrace", 16, 1, None, None)),
            "memory of PID 1": refused(lambda: open("/proc/1/mem", "rb").read(1)),
            "root of PID 1": refused(lambda: os.listdir("/proc/1/root")),
        }
    """)
    assert [what for what, error in found.items() if error is None] == []


def test_a_namespace_of_its_own_opens_no_mount(cell: Cell, folder: Path) -> None:
    """In a user namespace of its own code may remount things writable: the host refuses still."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    files = [
        "/mnt/user-data/uploads/data.csv",
        "/container_info.json",
        "/opt/gvisor-kernel/gvisor_kernel/__init__.py",
        json.__file__,
    ]
    folders = ["/mnt/user-data/uploads", "/mnt/transcripts", "/mnt/skills/public", sys.prefix]
    arguments = json.dumps([files, folders])
    found = cell(f"""
        attack = [sys.executable, "-c", {REMOUNT!r}, {arguments!r}]
        found = json.loads(subprocess.check_output(attack))
    """)
    assert found == []
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_refused_write_leaves_the_file_whole(cell: Cell, folder: Path) -> None:
    """runsc of 2024 truncates a file of a read-only mount, and only then refuses to open it."""
    found = cell("""
        found = [
            refused(lambda: open("/mnt/user-data/uploads/data.csv", "w")),
            refused(lambda: os.truncate("/mnt/user-data/uploads/data.csv", 0)),
        ]
    """)
    assert found == ["EROFS", "EROFS"]
    assert (folder / "data.csv").read_text() == "1,2\n"


def test_there_is_no_network(cell: Cell) -> None:
    found = cell("""
        def connect(family, address):
            with socket.socket(family) as one:
                one.settimeout(5)
                one.connect(address)
        found = {
            "interfaces": [name for _, name in socket.if_nameindex()],
            "routes": Path("/proc/net/route").read_text().splitlines()[1:],
            "resolver": Path("/etc/resolv.conf").exists(),
            "internet": refused(lambda: connect(socket.AF_INET, ("1.1.1.1", 443))),
            "internet, v6": refused(lambda: connect(socket.AF_INET6, ("2606:4700::1111", 443))),
            "metadata": refused(lambda: connect(socket.AF_INET, ("169.254.169.254", 80))),
            "lookup": refused(lambda: socket.getaddrinfo("example.org", 443)),
            "raw": refused(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)),
            "packet": refused(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3)),
        }
    """)
    assert found.pop("interfaces") == ["lo"]
    assert not [line for line in found.pop("routes") if not line.startswith("lo")]
    assert found.pop("resolver") is False
    assert [what for what, error in found.items() if error is None] == []


def test_loopback_is_the_sandboxs_own(cell: Cell) -> None:
    """A service on the host's 127.0.0.1, such as Jupyter itself, is out of reach."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = cell(f"""
            found = refused(lambda: socket.create_connection(("127.0.0.1", {port}), 5))
        """)
    assert found == "ECONNREFUSED"


def test_sockets_of_the_host_are_out_of_reach(cell: Cell, folder: Path) -> None:
    """Unix sockets in a mounted folder are files that cannot be connected to."""
    import socket

    path = folder / "s"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        try:
            found = cell("""
                found = [
                    refused(lambda: socket.socket(socket.AF_UNIX).connect(path))
                    for path in ("/mnt/user-data/uploads/s", "/workspace/s")
                ]
            """)
        finally:
            path.unlink()
    assert None not in found


def test_the_environment_brings_no_secret(cell: Cell) -> None:
    found = cell("""
        texts = [Path("/proc/self/environ").read_bytes(), Path("/proc/1/environ").read_bytes()]
        found = {
            "secret": "GK_SECRET_TOKEN" in os.environ or any(b"hunter2" in t for t in texts),
            "of the client": [name for name in os.environ if name.startswith("KERNEL_")],
        }
    """)
    assert found == {"secret": False, "of the client": []}


def test_nobodys_home_is_there(cell: Cell, tmp_path: Path) -> None:
    """Nor is the folder for temporary files that the host's programs share."""
    homes = {Path.home(), Path(f"~{getpass.getuser()}").expanduser()}
    names = (".ssh", ".bashrc", ".profile", ".bash_history", ".netrc", ".config", ".gitconfig")
    paths = [str(home / name) for home in homes for name in names]
    paths.append(str(tmp_path))
    assert cell(f"found = [path for path in {paths!r} if os.path.exists(path)]") == []


def test_the_folder_stays_as_it_is(cell: Cell, folder: Path) -> None:
    before = sorted(path.name for path in folder.iterdir())
    found = cell("""
        os.remove("/workspace/data.csv")
        Path("/workspace/new").write_text("x")
        uploads = Path("/mnt/user-data/uploads")
        found = {
            "write": refused(lambda: (uploads / "data.csv").write_text("x")),
            "create": refused(lambda: (uploads / "new").write_text("x")),
            "remove": refused(lambda: (uploads / "data.csv").unlink()),
            "rename": refused(lambda: (uploads / "data.csv").rename(uploads / "x")),
            "link": refused(lambda: os.link(uploads / "data.csv", "/mnt/user-data/outputs/x")),
            "mode": refused(lambda: (uploads / "data.csv").chmod(0o777)),
        }
    """)
    assert [what for what, error in found.items() if error is None] == []
    assert (folder / "data.csv").read_text() == "1,2\n"
    assert sorted(path.name for path in folder.iterdir()) == before


def test_links_in_outputs_do_not_lead_out(cell: Cell, folder: Path) -> None:
    """A link that the kernel makes is followed inside, where the host's files are not."""
    secret = folder.parent / "secret"
    secret.write_text("hunter2")
    found = cell(f"""
        outputs = Path("/mnt/user-data/outputs")
        links = {{"up": "../../secret", "absolute": {str(secret)!r}, "shadow": "/etc/shadow"}}
        found = []
        for name, target in links.items():
            (outputs / name).symlink_to(target)
            if refused(lambda: (outputs / name).read_text()) is None:
                found.append(name)
            (outputs / name).unlink()
    """)
    assert found == []


def test_no_set_uid_file_reaches_the_host(cell: Cell, folder: Path) -> None:
    """What it writes into outputs belongs to the folder's owner: a set-uid file would be theirs."""
    found = cell("""
        outputs = "/mnt/user-data/outputs/"
        Path(outputs, "program").write_text("#!/bin/sh")
        os.mkdir(outputs + "d")
        program = os.open(outputs + "program", os.O_RDWR)
        at = os.open(outputs, os.O_RDONLY)
        TMPFILE = getattr(os, "O_TMPFILE", 0)
        found = {
            "chmod u+s": refused(lambda: os.chmod(outputs + "program", 0o4755)),
            "chmod g+s": refused(lambda: os.chmod(outputs + "program", 0o2755)),
            "chmod of a folder": refused(lambda: os.chmod(outputs + "d", 0o6755)),
            "fchmod": refused(lambda: os.fchmod(program, 0o4755)),
            "fchmodat": refused(lambda: os.chmod("program", 0o4755, dir_fd=at)),
            "open": refused(lambda: os.open(outputs + "a", os.O_CREAT | os.O_WRONLY, 0o4755)),
            "open, libc": refused(lambda: call("open", (outputs + "b").encode(), 0o101, 0o4755)),
            "O_TMPFILE": refused(lambda: os.open(outputs, TMPFILE | os.O_RDWR, 0o4755)),
            "creat": refused(lambda: call("creat", (outputs + "c").encode(), 0o4755)),
            "mknod": refused(lambda: os.mknod(outputs + "e", stat.S_IFREG | 0o4755)),
            "open, by number": refused(
                lambda: call("syscall", 2, (outputs + "f").encode(), 0o101, 0o4755)),
            "fchmodat2": refused(
                lambda: call("syscall", 452, -100, (outputs + "program").encode(), 0o4755, 0)),
            "openat2": refused(
                lambda: call("syscall", 437, -100, (outputs + "g").encode(),
                             b"\\x41" + b"\\0" * 7 + b"\\xed\\x09" + b"\\0" * 14, 24)),
        }
        os.close(at)
        os.chmod(outputs + "program", 0o1755)
        os.fchmod(program, 0o700)
        os.close(program)
        assert subprocess.run(["cp", "-p", "/usr/bin/env", outputs + "copy"]).returncode == 0
    """)
    assert [what for what, error in found.items() if error is None] == []
    modes = {path: path.stat().st_mode for path in (folder / "outputs").rglob("*")}
    assert {path.name for path in modes} == {"program", "d", "copy"}
    assert not [path for path, mode in modes.items() if mode & 0o6000]


def test_there_are_no_devices(cell: Cell) -> None:
    found = cell("""
        found = {}
        for path in glob.glob("/dev/**", recursive=True):
            mode = os.stat(path).st_mode if os.path.exists(path) else 0
            if stat.S_ISBLK(mode):
                found[path] = "block"
            elif stat.S_ISCHR(mode):
                found[path] = "character"
        for path in ("/dev/kvm", "/dev/mem", "/dev/kmsg", "/dev/fuse", "/dev/net/tun"):
            if os.path.exists(path):
                refusal = refused(lambda: open(path, "r+b", buffering=0).read(1))
                found[path] = "opens" if refusal is None else refusal
    """)
    assert "block" not in found.values()
    assert "opens" not in found.values()


def test_processes_of_the_host_are_not_there(cell: Cell) -> None:
    me = os.getpid()
    found = cell("found = [Path(p, 'cmdline').read_text() for p in glob.glob('/proc/[0-9]*')]")
    assert len(found) < 20
    assert not [line for line in found if "pytest" in line]
    assert cell(f"found = [refused(lambda: os.kill({me}, 0))]") in ([None], ["ESRCH"], ["EPERM"])


def test_the_transcript_cannot_be_changed(cell: Cell) -> None:
    found = cell("""
        path = "/mnt/transcripts/transcript.jsonl"
        found = {
            "write": refused(lambda: open(path, "a")),
            "remove": refused(lambda: os.remove(path)),
            "plant": refused(lambda: open("/mnt/transcripts/x", "w")),
            "info": refused(lambda: open("/container_info.json", "a")),
        }
    """)
    assert [what for what, error in found.items() if error is None] == []


def test_a_fork_bomb_stays_inside() -> None:
    """The pids limit ends the growth; the kernel goes on."""
    bomb = """
import os, signal, time
children, error = [], None
try:
    while len(children) < 5000:
        pid = os.fork()
        if pid == 0:
            signal.pause()
            os._exit(0)
        children.append(pid)
except OSError as refusal:
    error = refusal
for pid in children:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
print(len(children), type(error).__name__)
"""
    with running_kernel(settings={"pids_limit": 64}) as (_, client):
        answer = execute(client, bomb)
        count, error = answer.text.split()
        assert int(count) <= 64
        assert error == "BlockingIOError"
        assert execute(client, "1 + 1").result == "2"
