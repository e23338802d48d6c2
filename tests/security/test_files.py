"""Files: a kernel changes only outputs, and reads only what it is shown."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gvisor_kernel.host.folders import open_path
from gvisor_kernel.host.private_directories import state_root
from gvisor_kernel.runtimes.state.sweep import give_back
from gvisor_kernel.spec.layout import LAYOUT, OUTPUTS, SCRATCH

from .inside import SECRET, Kernel, attacker, names_in

pytestmark = pytest.mark.usefixtures("unharmed")

READ_ONLY = [target for target in LAYOUT if target != OUTPUTS]
HIDDEN = (
    *("/root/.ssh", "/root/.bashrc", "/etc/shadow", "/etc/ssh", "/etc/hosts.allow"),
    *("/etc/resolv.conf", "/etc/sudoers", "/etc/cron.d", "/var/log", "/var/lib", "/boot", "/srv"),
    *("/run/docker.sock", "/var/run/docker.sock", "/run/dbus", "/run/user", "/lost+found"),
)

CHANGE = '''
OF_A_FILE = {
    "write", "append", "truncate", "open to truncate", "rename", "rename out", "rename in", "swap",
    "hard link out", "remove", "mode", "owner", "times", "attribute", "hole", "shared memory",
}

def changes(top):
    """The names of the changes that succeed below top, a folder or a file."""
    top = Path(top)
    folder = top.is_dir()
    one = next((p for p in top.iterdir() if p.is_file()), top / "none") if folder else top
    new = top / "planted" if folder else Path(str(top) + ".planted")
    at = os.open(top if folder else top.parent, os.O_RDONLY)
    attempts = {
        "write": lambda: open(one, "r+b").write(b"x"),
        "append": lambda: open(one, "ab").write(b"x"),
        "truncate": lambda: os.truncate(one, 0),
        "open to truncate": lambda: open(one, "w"),
        "create": lambda: open(new, "x"),
        "create below an open folder": lambda: os.open(
            "planted", os.O_CREAT | os.O_WRONLY, dir_fd=at),
        "create without a name": lambda: os.open(new.parent, os.O_TMPFILE | os.O_RDWR),
        "folder": lambda: new.mkdir(),
        "symbolic link": lambda: new.symlink_to("/etc/passwd"),
        "hard link in": lambda: os.link("/etc/passwd", new),
        "hard link out": lambda: os.link(one, "/mnt/user-data/outputs/taken"),
        "hard link of a link": lambda: os.link(one, new, follow_symlinks=False),
        "rename": lambda: one.rename(new),
        "rename out": lambda: one.rename("/mnt/user-data/outputs/taken"),
        "rename in": lambda: os.rename("/workspace/moved", new),
        "swap": lambda: call("renameat2", -100, bytes(one), -100, b"/workspace/moved", 2),
        "remove": lambda: one.unlink(),
        "remove the folder": lambda: top.rmdir(),
        "mode": lambda: one.chmod(0o777),
        "owner": lambda: os.chown(one, 1000, 1000),
        "times": lambda: os.utime(one, (0, 0)),
        "attribute": lambda: os.setxattr(one, "user.x", b"1"),
        "pipe": lambda: os.mkfifo(new),
        "socket": lambda: socket.socket(socket.AF_UNIX).bind(str(new)),
        "device": lambda: os.mknod(new, stat.S_IFBLK | 0o666, 0x800),
        "hole": lambda: os.posix_fallocate(os.open(one, os.O_RDWR), 0, 1),
        "shared memory": lambda: __import__("mmap").mmap(os.open(one, os.O_RDWR), 1),
    }
    Path("/workspace/moved").write_text("x")
    if not folder:  # its siblings are in the sandbox's own root, which is writable
        attempts = {name: action for name, action in attempts.items() if name in OF_A_FILE}
    done = [name for name, action in attempts.items() if refused(action) is None]
    os.close(at)
    return done
'''


@pytest.mark.parametrize(
    "way", ["", "/proc/self/root", "/proc/thread-self/root", "/mnt/user-data/outputs/../../.."]
)
def test_read_only_paths_cannot_be_changed(kernel: Kernel, way: str) -> None:
    """Directly, and through other names of the same place."""
    targets = [*READ_ONLY, "/opt/gvisor-kernel/gvisor_kernel/link", "/usr/lib", sys.prefix]
    found = kernel.run(f"{CHANGE}\nfound = {{t: changes({way!r} + t) for t in {targets!r}}}")
    assert {target: done for target, done in found.items() if done} == {}
    assert not (kernel.folder / "outputs" / "taken").exists()


def test_read_only_paths_cannot_be_changed_through_symlink(kernel: Kernel) -> None:
    found = kernel.run(f"""
        {CHANGE.replace(chr(10), chr(10) + "        ")}
        os.symlink("/mnt/user-data/uploads", "/workspace/way")
        found = changes("/workspace/way")
        os.unlink("/workspace/way")
    """)
    assert set(found) <= {"remove the folder"}  # that is the link's own name


REMOUNT = """
for target in [line.split()[1] for line in open("/proc/mounts")]:
    for flags in (32, 32 | 4096):
        libc.mount(b"none", target.encode(), b"none", flags, None)
done = []
def attempt(what, action):
    if refused(action) is None:
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


def test_remount_in_user_namespace_is_refused(kernel: Kernel) -> None:
    """The kernel's filter refuses. Without it: ``test_remount_by_pid_1_makes_nothing_writable``."""
    files = [
        "/mnt/user-data/uploads/data.csv",
        "/container_info.json",
        "/opt/gvisor-kernel/gvisor_kernel/__init__.py",
        json.__file__,
    ]
    folders = ["/mnt/user-data/uploads", "/mnt/transcripts", "/mnt/skills/public", sys.prefix]
    code = f"found = as_root_of_a_namespace({REMOUNT!r}, {files!r}, {folders!r})"
    assert kernel.run(code) == []


OVERLAY = """
for folder in ("upper", "work"):
    os.mkdir("/mnt/user-data/outputs/" + folder)
os.makedirs("/tmp/lower/removed")
os.mkdir("/tmp/merged")
layers = b"lowerdir=/tmp/lower,upperdir=/mnt/user-data/outputs/upper"
layers += b",workdir=/mnt/user-data/outputs/work"
done = []
if libc.mount(b"overlay", b"/tmp/merged", b"overlay", 0, layers) == 0:
    done.append("mount")
def number(*arguments):
    return call("syscall", *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
try:
    context = number(430, b"overlay", 0)
    for layer in layers.split(b","):
        number(431, context, 1, *layer.split(b"="), 0)
    number(431, context, 6, None, None, 0)
    number(429, number(432, context, 0, 0), b"", -100, b"/tmp/merged", 4)
    done.append("fsopen")
except OSError:
    pass
refused(lambda: os.rmdir("/tmp/merged/removed"))
print(json.dumps(done))
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86-64")
def test_overlay_over_outputs_is_refused(kernel: Kernel, outputs: Path) -> None:
    """gVisor itself would make a device in outputs for a folder that is removed."""
    assert kernel.run(f"found = as_root_of_a_namespace({OVERLAY!r})") == []
    odd = [p for p in outputs.rglob("*") if not (p.is_dir() or p.is_file())]
    assert odd == []


CHANGE_WHAT_RUNS = """
import shutil, tempfile
folders, interpreter = json.loads(sys.argv[1])
libc.mount(b"none", b"/", None, 32, None)  # make it writable where that is possible
done = []
def note(name, action):
    if refused(action) is None:
        done.append(name)
for folder in folders:
    own = tempfile.mkdtemp()
    note(f"new in {folder}", lambda: os.mkdir(f"{folder}/new"))
    note(f"rename {folder}", lambda: os.rename(folder, f"{folder}.old"))
    note(f"replace {folder}", lambda: os.rename(own, folder))
    note(f"mode of {folder}", lambda: os.chmod(folder, 0o777))
    note(f"remove {folder}", lambda: shutil.rmtree(folder))
note("interpreter", lambda: os.rename(interpreter, f"{interpreter}.old"))
note("interpreter's name", lambda: os.unlink(interpreter))
print(json.dumps(done))
"""


@pytest.mark.parametrize("enter", ["elsewhere", "as_root_of_a_namespace"])
def test_code_of_later_kernel_cannot_be_replaced(kernel: Kernel, enter: str) -> None:
    """A later kernel of the same sandbox runs the guest's code and the interpreter, so these and
    each folder above them must not change."""
    guest, python = "/opt/gvisor-kernel/gvisor_kernel", Path(sys.executable)
    targets = (Path(guest, "guest"), python, python.resolve())
    above = {str(folder) for target in targets for folder in (target, *target.parents)}
    own = {str(python), str(python.resolve()), *SCRATCH}
    folders = sorted(above - own, key=len, reverse=True)
    code = f"found = {enter}({CHANGE_WHAT_RUNS!r}, {folders!r}, {sys.executable!r})"
    assert kernel.run(code) == []
    parts = ["__init__.py", "guest", "link", "strict_json.py"]
    assert kernel.run(f"found = sorted(os.listdir({guest!r}))") == parts


def test_refused_write_leaves_file_whole(kernel: Kernel) -> None:
    """runsc of 2024 truncates a file of a read-only mount before it refuses to open it."""
    found = kernel.run("""
        found = [
            refused(lambda: open("/mnt/user-data/uploads/data.csv", "w")),
            refused(lambda: os.truncate("/mnt/user-data/uploads/data.csv", 0)),
        ]
    """)
    assert found == ["EROFS", "EROFS"]
    assert (kernel.folder / "data.csv").read_text() == "1,2\n"


def test_workspace_is_a_copy(kernel: Kernel) -> None:
    """Changes in /workspace do not reach the notebook's folder, except those in outputs."""
    found = kernel.run("""
        import errno
        Path("/workspace/new").write_text("x")
        Path("/workspace/data.csv").write_text("overwritten")
        os.remove("/workspace/data.csv")
        os.mkdir("/workspace/outputs/more")
        found = os.listdir("/mnt/user-data/outputs")
        os.rmdir("/workspace/outputs/more")
        for change in (os.rmdir, lambda path: os.rename(path, "/workspace/other")):
            try:
                change("/workspace/outputs")
            except OSError as error:
                found.append(error.errno in (errno.EBUSY, errno.ENOTEMPTY))
    """)
    assert "more" in found
    assert found[-2:] == [True, True]
    assert (kernel.folder / "data.csv").read_text() == "1,2\n"
    assert not (kernel.folder / "new").exists()
    assert (kernel.folder / "outputs").is_dir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount something on the host")
def test_later_host_mount_is_not_visible_inside(ground: Path) -> None:
    """A later mount below a shown folder can be neither read nor written inside."""
    base = ground.parent / "volume"
    base.mkdir(exist_ok=True)
    mount(base, shared=True)
    try:
        places = [base / "later", base / "outputs" / "later"]
        for place in places:
            place.mkdir(parents=True)
        with attacker(base) as kernel:
            for place in places:
                mount(place)
                place.chmod(0o777)
                (place / "secret").write_text(SECRET)
            code = (
                REMOUNT.split("done = []")[0]
                + """
places = json.loads(sys.argv[1])[0]
found = {place: os.listdir(place) for place in places}
for place in places:
    refused(lambda: open(place + "/planted", "w"))
print(json.dumps(found))
"""
            )
            inside = [
                *("/mnt/user-data/uploads/later", "/mnt/user-data/outputs/later"),
                *("/mnt/user-data/uploads/outputs/later", "/workspace/later"),
            ]
            found = kernel.run(f"found = as_root_of_a_namespace({code!r}, {inside!r})")
            assert set(map(tuple, found.values())) == {()}
            assert [names_in(place) for place in places] == [["secret"], ["secret"]]
            for place in places:
                subprocess.run(["umount", place], check=True)  # and it is not busy
    finally:
        subprocess.run(["umount", "--recursive", "--lazy", base], check=True)


def mount(place: Path, shared: bool = False) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "gk", place], check=True)
    if shared:
        subprocess.run(["mount", "--make-shared", place], check=True)


# What is not shown.


def test_hidden_paths_cannot_be_read(kernel: Kernel, ground: Path, tmp_path: Path) -> None:
    hidden = [
        *HIDDEN,
        *(str(ground / name) for name in ("private/secret", "neighbour")),
        *(str(kernel.sandbox.directory), str(state_root()), str(tmp_path), str(Path.home())),
        "/proc/1/root/etc/passwd",
    ]
    shown = [view.target for view in kernel.sandbox.view.mounts]
    found = kernel.run(f"""
        shown = {shown!r}
        def seen(path):
            '''What can be read there, but for what is shown, and the folders on the way to it.'''
            if path in shown:
                return
            if not os.path.isdir(path):
                yield from [path] if refused(lambda: open(path).read(1)) is None else []
            elif refused(lambda: os.listdir(path)) is None:
                for name in os.listdir(path):
                    inner = os.path.join(path, name)
                    if any(target.startswith(inner + "/") for target in shown):
                        yield from seen(inner)
                    elif inner not in shown:
                        yield inner
        found = [inner for path in {hidden!r} for inner in seen(path)]
    """)
    assert found == []


def test_dotdot_paths_stay_inside(kernel: Kernel, ground: Path) -> None:
    """Through ``..``, folders that are held open, and folders that are moved."""
    secret = str((ground / "private" / "secret").relative_to("/"))
    found = kernel.run(f"""
        found = []
        for top in {[*READ_ONLY[1:], OUTPUTS, "/workspace", "/tmp"]!r}:
            up = top + "/.." * 20
            if os.stat(up).st_ino != os.stat("/").st_ino:
                found.append(up)
            if refused(lambda: open(up + "/" + {secret!r})) is None:
                found.append(up + "/secret")
        outputs = "/mnt/user-data/outputs"
        os.makedirs(outputs + "/a/b")
        held = os.open(outputs + "/a/b", os.O_RDONLY)
        os.rename(outputs + "/a/b", outputs + "/b")
        os.rmdir(outputs + "/a")
        for depth in range(1, 20):
            path = "../" * depth + {secret!r}
            if refused(lambda: os.open(path, os.O_RDONLY, dir_fd=held)) is None:
                found.append(depth)
        os.close(held)
        os.rmdir(outputs + "/b")
    """)
    assert found == []


def test_links_in_outputs_do_not_lead_out(kernel: Kernel, ground: Path) -> None:
    """Links that the kernel makes are resolved inside, where the host's files do not exist."""
    found = kernel.run(f"""
        outputs = Path("/mnt/user-data/outputs")
        links = {{"up": "../../private/secret", "absolute": {str(ground / "private/secret")!r},
                  "shadow": "/etc/shadow", "root": "/"}}
        found = []
        for name, target in links.items():
            (outputs / name).symlink_to(target)
            if name != "root" and refused(lambda: (outputs / name).read_text()) is None:
                found.append(name)
        by_root = outputs / "root" / {str(ground / "private/secret")[1:]!r}
        if refused(lambda: by_root.read_text()) is None:
            found.append("root")
        for name in links:
            (outputs / name).unlink()
    """)
    assert found == []


# What is left in outputs.


def test_no_set_uid_file_reaches_the_host(kernel: Kernel, outputs: Path) -> None:
    """Files in outputs belong to the folder's owner, and so would a set-uid file."""
    found = kernel.run("""
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
            "mkdir": refused(lambda: call("mkdir", (outputs + "m").encode(), 0o6755)),
            "mknod": refused(lambda: os.mknod(outputs + "e", stat.S_IFREG | 0o4755)),
            "mkfifo": refused(lambda: call("mkfifo", (outputs + "p").encode(), 0o6755)),
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
    allowed = {"mkdir"}  # succeeds, but drops the bits
    assert [what for what, error in found.items() if error is None and what not in allowed] == []
    modes = {path: path.lstat().st_mode for path in outputs.rglob("*")}
    assert {path.name for path in modes} == {"program", "d", "copy", "m"}
    assert not [path for path, mode in modes.items() if mode & 0o6000]


def test_outputs_get_no_device_pipe_or_socket(kernel: Kernel, outputs: Path) -> None:
    """A program of the host could block on a device, a pipe or a socket."""
    kernel.run("""
        outputs = "/mnt/user-data/outputs/"
        found = {
            "pipe": refused(lambda: os.mkfifo(outputs + "pipe")),
            "socket": refused(lambda: socket.socket(socket.AF_UNIX).bind(outputs + "socket")),
            "block": refused(lambda: os.mknod(outputs + "block", stat.S_IFBLK | 0o666, 0x800)),
            "character": refused(lambda: os.mknod(outputs + "null", stat.S_IFCHR | 0o666, 0x103)),
        }
    """)
    odd = [p.name for p in outputs.iterdir() if not stat.S_ISREG(p.lstat().st_mode)]
    assert odd == []


def test_files_belong_to_the_folders_owner(kernel: Kernel, outputs: Path) -> None:
    kernel.run("""
        os.makedirs("/mnt/user-data/outputs/a/b")
        Path("/mnt/user-data/outputs/a/b/c").write_text("x")
        os.symlink("x", "/mnt/user-data/outputs/a/l")
        found = None
    """)
    owner = kernel.folder.stat()
    found = {(p.lstat().st_uid, p.lstat().st_gid) for p in outputs.rglob("*")}
    assert found == {(owner.st_uid, owner.st_gid)}


def test_odd_names_in_outputs_are_kept_unchanged(kernel: Kernel, outputs: Path) -> None:
    """The host sees the same names, and only in outputs."""
    names = [
        *(
            b"line\nfeed",
            b"\x1b[31mred",
            b"\xff\xfe",
            b"\xed\xa0\x80",
            b"-rf",
            b"--help",
            b"~",
            b"*",
        ),
        *(b"a" * 255, b" ", b"\t", b"$(id)", b"%s%n", "\u202egpj.exe".encode()),
    ]
    kernel.run(f"""
        for name in {names!r}:
            with open(b"/mnt/user-data/outputs/" + name, "wb") as file:
                file.write(name)
        found = None
    """)
    assert {os.fsencode(path.name): path.read_bytes() for path in outputs.iterdir()} == {
        name: name for name in names
    }
    found = kernel.run("""
        found = [refused(lambda: open(b"/mnt/user-data/outputs/" + name, "w"))
                 for name in (b"a" * 256, b"../up", b"x/../../../up", b"a/b")]
    """)
    assert None not in found[:1] + found[3:]
    assert sorted(path.name for path in kernel.folder.iterdir()) == ["data.csv", "outputs"]


def test_huge_sparse_file_in_outputs_takes_no_disk_space(kernel: Kernel, outputs: Path) -> None:
    """A sparse file allocates no blocks on the host."""
    kernel.run("""
        found = refused(lambda: os.truncate(
            os.open("/mnt/user-data/outputs/huge", os.O_CREAT | os.O_RDWR), 1 << 40))
    """)
    for path in outputs.iterdir():
        assert path.stat().st_blocks < 1000


def test_host_handles_deep_folders_in_outputs(tmp_path: Path) -> None:
    """The host's work on outputs afterwards has no depth limit and follows no link."""
    top = tmp_path / "outputs"
    top.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (top / "link").symlink_to("../elsewhere")
    at = os.open(top, os.O_RDONLY)
    try:
        for _ in range(1500):
            os.mkdir("d", dir_fd=at)
            below = os.open("d", os.O_RDONLY, dir_fd=at)
            os.close(at)
            at = below
        os.close(os.open("last", os.O_CREAT | os.O_WRONLY, dir_fd=at))
        with open_path(str(top)) as folder:
            give_back(folder, (os.geteuid(), os.getegid()))
    finally:
        os.close(at)
        subprocess.run(["rm", "-rf", top], check=True)


# Room.


def test_disk_limit_gives_enospc(ground: Path) -> None:
    """Each writable place gives ENOSPC; neighbour and host can still write."""
    folder = ground.parent / "small"
    folder.mkdir(exist_ok=True)
    settings = {"disk_limit": "16M", "memory_limit": "400M", "outputs": None}
    with attacker(folder, settings) as kernel:
        found = kernel.run("""
            found = {}
            for place in ("/workspace", "/tmp", "/home/user", "/mnt/user-data/outputs"):
                written = 0
                try:
                    with open(place + "/of-the-disk-limit", "wb", buffering=0) as file:
                        while written < 64 << 20:
                            written += file.write(b"x" * (1 << 20))
                except OSError as error:
                    found[place] = [errno.errorcode[error.errno], written]
                os.unlink(place + "/of-the-disk-limit")
            Path("/tmp/after").write_text("there is room again")
        """)
    assert set(found) == {"/workspace", "/tmp", "/home/user", "/mnt/user-data/outputs"}
    for error, written in found.values():
        assert error == "ENOSPC"
        assert written <= 17 << 20
    assert list(folder.iterdir()) == []
