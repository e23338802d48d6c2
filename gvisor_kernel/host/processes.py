"""Processes of the host: who is who, and ending exactly those that are meant.

A pid is never trusted alone, since it may be somebody else's by now. A process is held by a pidfd,
opened before it is looked at: if it ends between the look and the signal, the signal goes nowhere.
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

SUBUID_BASE = 700_000_000
SUBUID_COUNT = 65536
"""The host's uids and gids of a sandbox that root starts: 0 inside is SUBUID_BASE outside. Above
what useradd gives users for containers of their own (100000 to 600100000): whoever has a uid may
signal its processes. Below the 10^9 that a system container has."""
SANDBOX_NAME = "runsc-sandbox"
GOFER_NAME = "runsc-gofer"


@dataclass(frozen=True)
class ProcessId:
    """A process: its pid, and when it started, in clock ticks since the host did."""

    pid: int
    started: int


@dataclass(frozen=True)
class Posture:
    """What the host's kernel says of a process: how far it is locked in."""

    pid: int
    name: str
    uids: frozenset[int]
    seccomp: int
    namespaces: dict[str, str]


def read_start_time(pid: int) -> int | None:
    """When ``pid`` started; None where there is no such process, or it is a zombie."""
    fields = _read_stat(pid)
    return None if not fields or fields[0] in "ZX" else int(fields[19])


def is_stopped(pid: int) -> bool:
    """Whether ``pid`` was stopped by a signal, such as SIGSTOP."""
    return _read_stat(pid)[:1] == ["T"]


def _read_stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on; empty if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return []
    return stat.rpartition(")")[2].split()  # the name, in parentheses, may contain anything


def identify(pid: int) -> ProcessId | None:
    """The process that is ``pid`` now."""
    started = read_start_time(pid)
    return None if started is None else ProcessId(pid, started)


def is_alive(process: ProcessId) -> bool:
    return read_start_time(process.pid) == process.started


def read_argv(pid: int) -> list[str]:
    """The argument list of ``pid``; empty for what is gone, a zombie, or has none."""
    try:
        content = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return os.fsdecode(content).split("\0")[:-1]


def read_children(pid: int) -> list[int]:
    """The children of ``pid``; empty also where the kernel does not tell."""
    children: list[int] = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                text = (thread / "children").read_text()
                children.extend(map(int, text.split()))
    return children


def read_descendants(pid: int) -> list[int]:
    """The children of ``pid``, and theirs, without end."""
    found = read_children(pid)
    for child in found:  # which grows meanwhile
        found += [grandchild for grandchild in read_children(child) if grandchild not in found]
    return found


def has_running_thread(pid: int) -> bool:
    """Whether a thread of ``pid`` runs on a CPU, or waits for one."""
    for path in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):
            if path.read_text(errors="replace").rpartition(")")[2].split()[0] == "R":
                return True
    return False


def find_with_argument(argument: str) -> Iterator[int]:
    """The pids whose argument list holds ``argument``, of this user and its sandboxes.

    Argument lists are for all to see and to copy: others' processes may pose as a sandbox's.
    """
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            pid = int(entry.name)
            if argument in read_argv(pid) and is_of_this_user(pid):
                yield pid


def is_of_this_user(pid: int) -> bool:
    """Whether ``pid`` runs with this user's uid, or with one of root's sandboxes."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return False
    line = next(line for line in status.splitlines() if line.startswith("Uid:"))
    return all(
        uid == os.geteuid() or SUBUID_BASE <= uid < SUBUID_BASE + SUBUID_COUNT
        for uid in map(int, line.split()[1:])
    )


@contextlib.contextmanager
def open_process(pid: int) -> Iterator[int | None]:
    """A pidfd of ``pid``, or None if there is no such process."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def kill_if(pid: int, is_meant: Callable[[int], bool]) -> bool:
    """SIGKILL ``pid`` if ``is_meant(pid)``. Whether a signal was sent."""
    with open_process(pid) as fd:
        if fd is None or not is_meant(pid):
            return False
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            return True
    return False


def kill_with_argument(argument: str, names: Collection[str] | None = None) -> list[int]:
    """SIGKILL every process whose argument list holds ``argument``; the pids that got it.

    ``names``: only those that are called one of these.
    """

    def is_meant(pid: int) -> bool:
        argv = read_argv(pid)
        return argument in argv and (names is None or argv[0] in names)

    return [pid for pid in find_with_argument(argument) if kill_if(pid, is_meant)]


def wait_until_gone(pids: Iterable[int], deadline: float) -> bool:
    """Wait until no process is any of ``pids`` or ``time.monotonic()`` is ``deadline``.

    A pid that is taken by a new process meanwhile is waited for as well; nothing worse.
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
    """Forget a dead process that was left to this one: where this is the init of a container."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def read_posture(pid: int) -> Posture | None:
    """How far ``pid`` is locked in; None when it is gone."""
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
