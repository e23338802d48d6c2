"""Count a run's processes, descriptors, memory, cgroups, mounts and files. Changes nothing.

Things of the run have its folder in their environment, argument list or name. Cgroups are
recognised by the sandboxes that the run has started.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import re
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CGROUPS = Path("/sys/fs/cgroup")
GRACE_SECONDS = 15.0
POOLS = re.compile(r"asyncio_\d+$|gvisor-kernel-(launch|sign)_\d+$")
"""Threads of pools, which stay and are bounded in number."""
MAX_RSS = 64 * 1024 * 1024
"""Bytes by which a server may grow, because allocators keep freed memory."""
RSS_PER_START = 16 * 1024
"""Additional bytes for each start: Jupyter and ZMQ keep a little of each."""


@dataclass(frozen=True)
class Counts:
    """Names of things, so that leaks can be named, and sizes of this process."""

    processes: frozenset[str]
    zombies: int
    descriptors: int
    threads: frozenset[str]
    cgroups: frozenset[str]
    mounts: frozenset[str]
    files: frozenset[str]
    rss: int

    def summary(self) -> dict[str, int]:
        return {
            name: len(value) if isinstance(value, frozenset) else value
            for name, value in asdict(self).items()
        }


def count(folder: Path, containers: Iterable[str]) -> Counts:
    """Count now. ``containers``: the ids of all sandboxes that the run has started so far."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
    return Counts(
        processes=frozenset(_processes(os.fsencode(folder))),
        zombies=sum(1 for child in _children() if _state(child) == "Z"),
        descriptors=len(os.listdir("/proc/self/fd")) - 1,  # noqa: PTH208
        threads=frozenset(
            thread.name for thread in threading.enumerate() if not POOLS.match(thread.name)
        ),
        cgroups=frozenset(_cgroups(set(containers))),
        mounts=frozenset(
            line
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if str(folder) in line
        ),
        files=frozenset(_files(folder)),
        rss=_rss(),
    )


def settle(folder: Path, containers: Iterable[str], before: Counts) -> Counts:
    """Wait until nothing is left compared with ``before``, at most ``GRACE_SECONDS``; count."""
    deadline = time.monotonic() + GRACE_SECONDS
    containers = set(containers)
    while True:
        after = count(folder, containers)
        if not find_leaks(before, after, 0) or time.monotonic() > deadline:
            return after
        time.sleep(0.1)  # processes that are not our children end without an event


def find_leaks(before: Counts, after: Counts, starts: int) -> list[str]:
    """Return a text for each thing that has increased after ``starts`` starts of kernels."""
    leaks = []
    for name, had in asdict(before).items():
        has = getattr(after, name)
        if isinstance(has, frozenset):
            leaks += [f"{name}: {thing}" for thing in sorted(has - had)]
        elif name == "rss":
            most = MAX_RSS + starts * RSS_PER_START
            if starts and has - had > most:
                leaks.append(f"rss: {(has - had) >> 20} MiB more, {most >> 20} are allowed")
        elif has > had:
            leaks.append(f"{name}: {has}, and {had} before")
    return leaks


def _processes(mark: bytes) -> Iterable[str]:
    for folder in Path("/proc").glob("[0-9]*"):
        if int(folder.name) == os.getpid():
            continue
        argv = _read(folder / "cmdline")
        if argv and (mark in argv or mark in _read(folder / "environ")):
            text = argv.replace(b"\0", b" ").decode(errors="replace").strip()
            yield f"{folder.name} {text[:150]}"


def _children() -> Iterable[int]:
    for task in Path("/proc/self/task").iterdir():
        yield from map(int, _read(task / "children").split())


def _state(pid: int) -> str:
    stat = _read(Path(f"/proc/{pid}/stat")).decode(errors="replace")
    return stat.rpartition(")")[2].split()[0] if stat else ""


def _cgroups(containers: set[str]) -> Iterable[str]:
    for path, folders, _ in os.walk(CGROUPS, onerror=lambda _: None):
        yield from (f"{path}/{name}" for name in folders if name in containers)


def _files(folder: Path) -> Iterable[str]:
    places = ("r", "t", "x", "s/gvisor-kernel/sandboxes", "s/gvisor-kernel/sockets")
    for place in places:
        with contextlib.suppress(OSError):
            for path in (folder / place).iterdir():
                if path.name == f"{os.getpid()}-{_start_time()}":  # this process's sockets
                    yield from (str(entry) for entry in path.iterdir())
                else:
                    yield str(path)


def _start_time() -> str:
    return Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]


def _rss() -> int:
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # gone, or not this user's
        return b""


def describe(counts: Counts) -> dict[str, Any]:
    """Return the counts for a report."""
    return {**counts.summary(), "rss_mib": counts.rss >> 20}
