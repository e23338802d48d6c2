"""Finds, inspects and kills processes of the host.

A pid alone does not identify a process, because it can be reused. So a process that is to be killed
is first opened as a pidfd, then checked: if it ends after the check, the signal is not delivered.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gvisor_kernel.host.descriptors import closing_fd

SUBUID_BASE = 700_000_000
SUBUID_COUNT = 65536
"""The host's uids and gids of sandboxes that root starts: 0 inside is SUBUID_BASE outside. They are
above the ranges that useradd gives users for their containers (100000 to 600100000), because a user
with the same uid may signal the processes, and below the 10^9 uids of a system container."""
SANDBOX_NAME = "runsc-sandbox"
GOFER_NAME = "runsc-gofer"


@dataclass(frozen=True)
class ProcessId:
    """A process: its pid, and its start time in clock ticks since the boot of the host."""

    pid: int
    started: int


@dataclass(frozen=True)
class Posture:
    """The confinement of a process: its uids, seccomp mode and namespaces, as /proc shows them."""

    pid: int
    name: str
    uids: frozenset[int]
    seccomp: int
    namespaces: dict[str, str]


def read_start_time(pid: int) -> int | None:
    """Return the start time of ``pid``; None if there is no such process, or it is a zombie."""
    fields = _read_stat(pid)
    return None if not fields or fields[0] in "ZX" else int(fields[19])


def read_cpu_seconds(pid: int) -> float:
    """Return the CPU time of ``pid`` and of its children that were waited for; 0 if it is gone."""
    fields = _read_stat(pid)
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK") if len(fields) > 14 else 0.0


def is_stopped(pid: int) -> bool:
    """Return whether ``pid`` was stopped by a signal, such as SIGSTOP."""
    return _read_stat(pid)[:1] == ["T"]


def is_in_disk_wait(pid: int) -> bool:
    """Return whether ``pid`` waits inside the kernel for a device or a file system."""
    return _read_stat(pid)[:1] == ["D"]


def _read_stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on; empty if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return []
    return stat.rpartition(")")[2].split()  # the name, in parentheses, may contain anything


def identify(pid: int) -> ProcessId | None:
    """Return the process that has ``pid`` now; None if there is none."""
    started = read_start_time(pid)
    return None if started is None else ProcessId(pid, started)


def is_alive(process: ProcessId) -> bool:
    """Return whether this very process lives, and is no zombie. Its pid may be another's by now."""
    return read_start_time(process.pid) == process.started


def read_argv(pid: int) -> list[str]:
    """Return the argument list of ``pid``; empty if it has ended, is a zombie, or has none."""
    try:
        content = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return os.fsdecode(content).split("\0")[:-1]


def read_children(pid: int) -> list[int]:
    """Return the children of ``pid``; empty also if the host's kernel does not list children."""
    children: list[int] = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                text = (thread / "children").read_text()
                children.extend(map(int, text.split()))
    return children


def read_descendants(pid: int) -> list[int]:
    """Return the children of ``pid``, their children, and so on."""
    found = read_children(pid)
    for child in found:  # the list grows in this loop
        found += [grandchild for grandchild in read_children(child) if grandchild not in found]
    return found


def read_cpu_time(pids: list[int]) -> int | None:
    """Return the CPU time in nanoseconds of all threads of ``pids``; None if one has ended."""
    try:
        # The clock of another process: see clock_getcpuclockid(3).
        return sum(time.clock_gettime_ns(~pid << 3 | 2) for pid in pids)
    except OSError:
        return None


def has_running_thread(pid: int) -> bool:
    """Return whether a thread of ``pid`` runs on a CPU, or waits for one."""
    for path in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):
            if path.read_text(errors="replace").rpartition(")")[2].split()[0] == "R":
                return True
    return False


def find_with_argument(argument: str) -> Iterator[int]:
    """Yield the pids of this user and its sandboxes whose argument list contains ``argument``.

    Other users are left out: anybody can start a process with the arguments of a sandbox.
    """
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            pid = int(entry.name)
            if argument in read_argv(pid) and is_of_this_user(pid):
                yield pid


def is_of_this_user(pid: int) -> bool:
    """Return whether ``pid`` runs with this user's uid, or with a uid of root's sandboxes."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return False
    line = next(line for line in status.splitlines() if line.startswith("Uid:"))
    return all(
        uid == os.geteuid() or SUBUID_BASE <= uid < SUBUID_BASE + SUBUID_COUNT
        for uid in map(int, line.split()[1:])
    )


def kill_if(pid: int, is_meant: Callable[[int], bool], signum: int = signal.SIGKILL) -> bool:
    """Send a signal to ``pid`` if ``is_meant(pid)``. Return whether it was sent."""
    with contextlib.suppress(OSError), closing_fd(os.pidfd_open(pid)) as fd:
        if is_meant(pid):
            signal.pidfd_send_signal(fd, signum)
            return True
    return False


def kill_with_argument(argument: str, names: Collection[str] | None = None) -> list[int]:
    """Send SIGKILL to every process whose argument list contains ``argument``. Return their pids.

    ``names``: only processes whose argv[0] is one of these.
    """

    def is_meant(pid: int) -> bool:
        argv = read_argv(pid)
        return argument in argv and (names is None or argv[0] in names)

    return [pid for pid in find_with_argument(argument) if kill_if(pid, is_meant)]


def wait_until_gone(pids: Iterable[int], deadline: float) -> bool:
    """Wait until the processes ``pids`` have ended, or ``time.monotonic()`` is ``deadline``.

    If a pid was reused, this waits for the new process; that does no other harm.

    :return: whether all of them have ended
    """
    poller = select.poll()
    fds: set[int] = set()
    try:
        for pid in pids:
            with contextlib.suppress(OSError):
                fd = os.pidfd_open(pid)
                fds.add(fd)
                poller.register(fd, select.POLLIN)
        waiting = set(fds)
        while waiting:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            for fd, _ in poller.poll(left * 1000):
                poller.unregister(fd)
                waiting.discard(fd)
        return True
    finally:
        for fd in fds:
            os.close(fd)


def reap(pid: int) -> None:
    """Reap a dead process that was reparented to this one, as to the init of a container."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def read_posture(pid: int) -> Posture | None:
    """Return how ``pid`` is confined; None if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
        namespaces = {
            name: str(Path(f"/proc/{pid}/ns/{name}").readlink())
            for name in ("user", "mnt", "net", "ipc", "uts")
        }
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    argv = read_argv(pid)
    return Posture(
        pid=pid,
        name=argv[0] if argv else "",
        uids=frozenset(map(int, fields["Uid"].split())),
        seccomp=int(fields.get("Seccomp", "0")),
        namespaces=namespaces,
    )
