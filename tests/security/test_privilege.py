"""Privilege: a kernel has none and gains none; its process on the host has none either."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest

from gvisor_kernel.host.processes import GOFER_NAME, SANDBOX_NAME

from .filters import allows, read_filters
from .inside import Kernel, Neighbour

pytestmark = pytest.mark.usefixtures("unharmed")

CALLS = {
    "setuid": "os.setuid(0)",
    "setresuid": "os.setresuid(0, 0, 0)",
    "setgid": "os.setgid(0)",
    "setgroups": "os.setgroups([0])",
    "chown": "os.chown('/etc/passwd', 65534, 65534)",
    "chroot": "os.chroot('/tmp')",
    "pivot_root": "call('pivot_root', b'/tmp', b'/tmp')",
    "sethostname": "socket.sethostname('x')",
    "mount": "call('mount', b'x', b'/tmp', b'tmpfs', 0, None)",
    "mount of proc": "call('mount', b'x', b'/tmp', b'proc', 0, None)",
    "mount of a bind": "call('mount', b'/', b'/tmp', None, 4096, None)",
    "remount": "call('mount', b'x', b'/mnt/user-data/uploads', None, 32 | 4096, None)",
    "umount": "call('umount2', b'/mnt/user-data/uploads', 2)",
    "fsopen": "number(430, b'tmpfs', 0)",
    "open_tree": "number(428, -100, b'/', 1)",
    "unshare of mounts": "call('unshare', 0x20000)",
    "unshare of the network": "call('unshare', 0x40000000)",
    "unshare of processes": "call('unshare', 0x20000000)",
    "setns": "number(308, os.open('/proc/1/ns/mnt', os.O_RDONLY), 0)",
    "mknod of a disk": "os.mknod('/tmp/disk', stat.S_IFBLK | 0o666, 0x800)",
    "mknod of memory": "os.mknod('/tmp/mem', stat.S_IFCHR | 0o666, 0x101)",
    "ptrace of PID 1": "call('ptrace', 16, 1, None, None)",
    "seizing PID 1": "call('ptrace', 0x4206, 1, None, None)",
    "memory of PID 1": "open('/proc/1/mem', 'rb').read(1)",
    "memory of PID 1, by a call": "number(310, 1, ctypes.byref((ctypes.c_ulong * 2)(id(os), 8)), 1,"
    " ctypes.byref((ctypes.c_ulong * 2)(4096, 8)), 1, 0)",
    "root of PID 1": "os.listdir('/proc/1/root')",
    "folder of PID 1": "os.listdir('/proc/1/cwd')",
    "descriptors of PID 1, by a call": "number(438, number(434, 1, 0), 1, 0)",
    "real-time priority": "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))",
    "limits": "__import__('resource').setrlimit(6, (100000, 100000))",
    "keys of the session": "number(250, 11, -3, ctypes.create_string_buffer(64), 64)",
    "keys of the user": "number(250, 11, -4, ctypes.create_string_buffer(64), 64)",
    "bpf": "number(321, 0, ctypes.create_string_buffer(64), 64)",
    "perf_event_open": "number(298, ctypes.create_string_buffer(120), 0, -1, -1, 0)",
    "userfaultfd": "number(323, 0)",
    "io_uring": "number(425, 8, ctypes.create_string_buffer(120))",
    "init_module": "number(175, b'', 0, b'')",
    "finit_module": "number(313, os.open('/etc/passwd', os.O_RDONLY), b'', 0)",
    "delete_module": "number(176, b'overlay', 0)",
    "kexec_load": "number(246, 0, 0, None, 0)",
    "kexec_file_load": "number(320, 0, 0, 0, None, 0)",
    "reboot": "number(169, 0xfee1dead, 672274793, 0x1234567, None)",
    "swapon": "number(167, b'/tmp', 0)",
    "swapoff": "number(168, b'/dev/vda', 0)",
    "acct": "number(163, b'/tmp/x')",
    "quotactl": "number(179, 0x800002 << 8, b'/dev/vda', 0, None)",
    "setting the clock": "time.clock_settime(time.CLOCK_REALTIME, 0)",
    "adjusting the clock": "number(159, ctypes.create_string_buffer(b'\\1' + bytes(207), 208))",
    "clearing the log": "number(103, 5, None, 0)",
    "ports of the machine": "number(172, 3)",
    "one port of the machine": "number(173, 0x80, 1, 1)",
    "a file by its handle": "number(304, -100, ctypes.create_string_buffer(64), 0)",
    "fanotify": "number(300, 0, 0)",
    "a file of the host by fanotify": "number(301, 0, 1, 2, -100, b'/')",
    "lookup_dcookie": "number(212, 0, ctypes.create_string_buffer(64), 64)",
    "vhangup": "number(153)",
    "16-bit segments": "number(154, 1, ctypes.create_string_buffer(16), 16)",
    "moving pages of PID 1": "number(279, 1, 1, ctypes.byref(ctypes.c_ulong(4096)), None, None, 0)",
}
"""System calls, by their numbers on x86-64 where libc has no function for them."""

OWN_SWITCHES = {
    "/proc/1/oom_score_adj",
    "/proc/sys/kernel/yama/ptrace_scope",
    *(f"/proc/sys/net/ipv4/tcp_{name}" for name in ("recovery", "rmem", "sack", "wmem")),
}
"""Files that gVisor lets PID 1's uid write, which affect only this sandbox. In a sandbox with one
uid a kernel can write them, too."""

PID_1 = {
    "its stdin": "os.open('/proc/1/fd/0', os.O_RDONLY)",
    "its stdout": "os.open('/proc/1/fd/1', os.O_WRONLY)",
    "its stderr": "os.open('/proc/1/fd/2', os.O_WRONLY)",
    "a signal": "os.kill(1, signal.SIGCONT)",
    "signal 0": "os.kill(1, 0)",
    "a signal by pidfd": "number(424, number(434, 1, 0), 18, None, 0)",
    "its limits": "__import__('resource').prlimit(1, 7)",
    "new limits for it": "__import__('resource').prlimit(1, 7, (100, 100))",
    "its oom_score_adj": "open('/proc/1/oom_score_adj', 'w').write('1')",
}
REFUSED = ("EACCES", "EPERM", "ENOSYS")
PID_1_CURRENT = {
    "its environment": "open('/proc/1/environ').read()",
    "its descriptors": "os.listdir('/proc/1/fd')",
    "its memory map": "open('/proc/1/maps').read()",
    "its priority": "os.setpriority(os.PRIO_PROCESS, 1, 5)",
    "its processors": "os.sched_setaffinity(1, {0})",
}
"""A current gVisor refuses these, too; one of 2024 does not check the uid."""

NUMBER = """
def number(*arguments):
    return call("syscall", *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
"""


def test_kernel_has_no_privileges(kernel: Kernel) -> None:
    """uid 1000, no capability in any set, and none from a set-uid program."""
    found = kernel.run("""
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


def test_kernel_runs_on_gvisor(kernel: Kernel) -> None:
    release, log = kernel.run("found = [os.uname().release, subprocess.getoutput('dmesg')]")
    assert release != os.uname().release
    assert "gVisor" in log


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86-64")
@pytest.mark.parametrize("name", CALLS)
def test_privileged_call_is_refused(kernel: Kernel, name: str) -> None:
    assert kernel.run(f"{NUMBER}\nfound = refused(lambda: {CALLS[name]})") is not None


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86-64")
def test_privileged_calls_are_refused_as_namespace_root(kernel: Kernel) -> None:
    """Every capability in namespaces of its own gives none over anything else."""
    own = ("setns", "setuid", "setresuid", "setgid", "setgroups", "chroot", "sethostname", "mount")
    attacks = {
        name: code
        for name, code in CALLS.items()
        if not name.startswith((*own, "remount", "umount", "unshare", "pivot_root", "open_tree"))
    }
    code = (
        NUMBER
        + """
attacks = json.loads(sys.argv[1])[0]
print(json.dumps([name for name, code in attacks.items() if refused(lambda: eval(code)) is None]))
"""
    )
    assert kernel.run(f"found = as_root_of_a_namespace({code!r}, {attacks!r})") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="the sandbox of an ordinary user has one uid")
def test_pid_1_has_another_uid(kernel: Kernel) -> None:
    """The kernel cannot reach PID 1's ends of the link, signal it or change its limits."""
    attempt = (
        f"{{name: refused(lambda: eval(code)) for name, code in {PID_1 | PID_1_CURRENT!r}.items()}}"
    )
    found = kernel.run(f"{NUMBER}\nfound = {attempt}")
    reached = {name: found[name] for name in PID_1 if found[name] not in REFUSED}
    assert reached == {}
    allowed = [name for name in PID_1_CURRENT if found[name] is None]
    assert allowed in ([], list(PID_1_CURRENT)), found
    assert kernel.run("found = 42") == 42  # PID 1 still works


@pytest.mark.skipif(os.geteuid() != 0, reason="the sandbox of an ordinary user has one uid")
def test_kernel_opens_no_pipe_of_pid_1_but_its_own_output(kernel: Kernel) -> None:
    """Such as the pipe by which PID 1 learns of its children: to read it stopped PID 1."""
    opened = kernel.run("""
        import glob
        found = {}
        for name in range(256):  # a current gVisor does not list them
            for flags in (os.O_RDONLY, os.O_WRONLY):
                try:
                    os.close(os.open(f"/proc/1/fd/{name}", flags | os.O_NONBLOCK))
                    found[name] = os.readlink(f"/proc/1/fd/{name}")
                except OSError:
                    pass
        output = []
        for name in glob.glob("/proc/[0-9]*/fd/*"):
            try:
                if not name.startswith("/proc/1/"):
                    output.append(os.readlink(name))
            except OSError:
                pass
        found = [sorted(found.values()), output]
    """)
    assert set(opened[0]) <= {*opened[1], "/dev/null"}, opened


def test_set_uid_programs_give_no_privileges(kernel: Kernel) -> None:
    """Programs of the image, such as su and mount, run without privileges."""
    programs = [
        str(path)
        for path in Path("/usr/bin").iterdir()
        if path.is_file() and path.stat().st_mode & 0o6000
    ]
    if not programs:
        pytest.skip("no set-uid program in /usr/bin")
    found = kernel.run(f"""
        found = {{"mounts": Path("/proc/mounts").read_text()}}
        for program in {programs!r}:
            child = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                                     stderr=subprocess.DEVNULL, start_new_session=True)
            try:
                status = Path(f"/proc/{{child.pid}}/status").read_text()
                found[program] = [l for l in status.splitlines() if l.startswith(("Uid", "CapEff"))]
            finally:
                child.kill()
                child.communicate()
    """)
    mounts = found.pop("mounts")
    assert found
    for program, lines in found.items():
        assert {*lines[0].split()[1:]} == {"1000"}, program
        assert int(lines[1].split()[1], 16) == 0, program
    options = [line.split()[3] for line in mounts.splitlines() if line.split()[1] == "/usr"]
    assert options


def test_proc_and_sys_cannot_be_written(kernel: Kernel) -> None:
    """Writable files belong to the process itself or to gVisor; the host's values do not change."""
    names = (
        *("kernel/core_pattern", "kernel/hostname", "kernel/modprobe", "kernel/sysrq"),
        *("kernel/randomize_va_space", "vm/overcommit_memory", "net/ipv4/ip_forward"),
        *("net/core/rmem_max", "vm/drop_caches"),
    )
    paths = [Path("/proc/sys", name) for name in names]
    before = {path: path.read_bytes() for path in paths if os.access(path, os.R_OK)}
    found = kernel.run("""
        found, tried = [], 0
        for top in ("/proc/sys", "/sys"):
            for folder, _, files in os.walk(top):
                for name in files:
                    path = os.path.join(folder, name)
                    tried += 1
                    for value in (b"1", b"|/tmp/x"):
                        try:
                            with open(path, "wb", buffering=0) as file:
                                file.write(value)
                            found.append(path)
                        except OSError:
                            pass
        for path in ("/proc/sysrq-trigger", "/proc/kcore", "/proc/kmsg", "/proc/kallsyms",
                     "/proc/1/oom_score_adj", "/proc/1/comm", "/proc/1/uid_map", "/dev/kmsg"):
            if refused(lambda: open(path, "r+b", buffering=0).write(b"1")) is None:
                found.append(path)
        assert tried > 10
    """)
    assert set(found) <= (OWN_SWITCHES if os.geteuid() != 0 else set())
    assert {path: path.read_bytes() for path in before} == before


def test_no_host_devices_exist(kernel: Kernel) -> None:
    found = kernel.run("""
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


def test_host_processes_are_not_visible(kernel: Kernel) -> None:
    me = os.getpid()
    found = kernel.run(f"""
        found = {{
            "lines": [Path(p, "cmdline").read_text() for p in glob.glob("/proc/[0-9]*")],
            "signals": [refused(lambda: os.kill(pid, 0)) for pid in ({me}, {os.getppid()})],
        }}
    """)
    assert len(found["lines"]) < 20
    assert not [line for line in found["lines"] if "pytest" in line]
    assert set(found["signals"]) <= {
        "ESRCH",
        "EPERM",
        None,
    }  # a process inside may have the same pid


# The posture of the sandbox's processes on the host.

NAMESPACES = ("user", "mnt", "net", "ipc", "uts", "pid")
FILES = {"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID"}
HELD = {
    SANDBOX_NAME: {*FILES, "KILL", "SETGID", "SETUID", "SYS_PTRACE", "SYS_ADMIN"},
    GOFER_NAME: {*FILES, "SYS_CHROOT"},
}
"""Capabilities that each process holds, only over its own user namespace."""
CAPABILITIES = (
    *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID"),
    *("SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW"),
    *("IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT"),
    *("SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD"),
)

DESCRIPTORS = (
    r"anon_inode:\[(eventfd|eventpoll|pidfd|signalfd|timerfd)\]",
    r"anon_inode:seccomp notify",  # of the stubs, whose system calls the sentry handles
    r"anon_inode:\[io_uring\]",  # never enabled: see test_posture_filters_system_calls
    r"/memfd:(runsc-memory|flipcall_packet_windows|systrap-memory)[ -]?.*",
    r"pipe:\[\d+\]",
    r"/dev/null",
    r"socket:\[\d+\]",
    r"(/root)?/.*",
)
"""Descriptors that the sandbox's processes may hold. Paths and sockets are checked further."""


FORBIDDEN_CALLS = {
    **{"io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427},
    **{"execve": 59, "execveat": 322, "setuid": 105, "setgid": 106, "capset": 126},
    **{"mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "unshare": 272},
    **{"setns": 308, "open_tree": 428, "move_mount": 429, "fsopen": 430, "mount_setattr": 442},
    **{"init_module": 175, "finit_module": 313, "kexec_load": 246, "reboot": 169, "swapon": 167},
    **{"bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "keyctl": 250, "add_key": 248},
    **{"open_by_handle_at": 304, "pidfd_getfd": 438, "process_vm_writev": 311, "acct": 163},
    **{"connect": 42, "bind": 49, "settimeofday": 164, "clock_settime": 227, "ioperm": 173},
}
"""System calls of the host that no process of a running sandbox needs."""


def read_status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def family(pid: int) -> set[int]:
    """Return ``pid`` and all its descendants."""
    children: dict[int, set[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, set()).add(int(folder.name))
    found, waiting = set(), [pid]
    while waiting:
        one = waiting.pop()
        found.add(one)
        waiting.extend(children.get(one, ()))
    return found


def processes_of(kernel: Kernel) -> dict[str, int]:
    found = {name: kernel.sandbox.find_process(name) for name in (SANDBOX_NAME, GOFER_NAME)}
    assert None not in found.values()
    return found


def namespaces(pid: int) -> dict[str, str]:
    return {name: str(Path(f"/proc/{pid}/ns/{name}").readlink()) for name in NAMESPACES}


def test_posture_has_unprivileged_identity(kernel: Kernel) -> None:
    """No process of a sandbox, stubs included, is root on the host or can become root."""
    tops = processes_of(kernel)
    everyone = {one: name for name, pid in tops.items() for one in family(pid)}
    assert len(everyone) >= 2
    for pid, name in everyone.items():
        status = read_status(pid)
        for kind in ("Uid", "Gid"):
            ids = set(map(int, status[kind].split()))
            assert 0 not in ids
            if os.geteuid() == 0:
                assert min(ids) > 100_000 + 65536 * 1000, "a range that useradd gives to users"
            else:
                assert ids == {os.geteuid() if kind == "Uid" else os.getegid()}
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"
        capabilities = int(status["CapEff"], 16)
        held = {name for bit, name in enumerate(CAPABILITIES) if capabilities >> bit & 1}
        assert held <= HELD[name]
        assert capabilities < 1 << len(CAPABILITIES)
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        assert int(fields[16]) >= os.nice(0), "it has raised its priority on the host"


def test_posture_has_separate_namespaces(kernel: Kernel, neighbour: Neighbour) -> None:
    """A sandbox shares namespaces neither with the host nor with its neighbour."""
    host = namespaces(os.getpid())
    mine, other = processes_of(kernel), processes_of(neighbour.kernel)
    for name in (SANDBOX_NAME, GOFER_NAME):
        ours, theirs = namespaces(mine[name]), namespaces(other[name])
        assert [kind for kind in NAMESPACES if ours[kind] == host[kind] and kind != "pid"] == []
        assert [kind for kind in NAMESPACES if ours[kind] == theirs[kind] and kind != "pid"] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may read filters of the host")
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86-64")
@pytest.mark.parametrize("name", [SANDBOX_NAME, GOFER_NAME])
def test_posture_filters_system_calls(kernel: Kernel, name: str) -> None:
    """Code that takes over a process of the sandbox can use none of these calls.

    A current runsc leaves an io_uring ring with its processes. A ring bypasses every filter once it
    is enabled, but the filters forbid the call that enables it.
    """
    try:
        filters = read_filters(processes_of(kernel)[name])
    except OSError as error:
        pytest.skip(f"this kernel does not show filters: {error}")
    assert [call for call, number in FORBIDDEN_CALLS.items() if allows(filters, number)] == []
    assert allows(filters, 0), "read: the filters were not understood"


def test_posture_has_only_own_descriptors(kernel: Kernel) -> None:
    """Only the sandbox's own pipes, memory and shown files are open: no device, no host socket."""
    allowed = re.compile("|".join(f"(?:{one})" for one in DESCRIPTORS))
    shown = {view.target for view in kernel.sandbox.view.mounts} | {"/"}
    network = "".join(
        Path(f"/proc/net/{name}").read_text()
        for name in ("tcp", "udp", "tcp6", "udp6", "raw", "netlink", "packet")
        if Path(f"/proc/net/{name}").exists()
    )
    for pid in processes_of(kernel).values():
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = str(entry.readlink())
                status = entry.stat()
            except OSError:
                continue  # closed meanwhile
            assert allowed.fullmatch(target), target
            if target.startswith("socket:"):
                assert f" {target[8:-1]} " not in network, target
            elif target.startswith("/") and not target.startswith(("/memfd:", "/dev/null")):
                inside = "/" + target.removeprefix("/root").lstrip("/")
                own = str(kernel.sandbox.directory)
                assert target.startswith(own) or any(
                    view == "/" or inside == view or inside.startswith(view + "/") for view in shown
                ), target
                kind = stat.S_IFMT(status.st_mode)
                null = kind == stat.S_IFCHR and status.st_rdev == os.makedev(1, 3)
                assert null or kind in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK), target
