"""Measure the host memory of a sandbox from its processes, independently of the package's count."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

COUNTED = ("RssAnon", "VmSwap", "VmPTE")
LOOK_SECONDS = 0.01


def find_family(pid: int) -> list[int]:
    """Return ``pid`` and its children. Grandchildren are gVisor's threads and share memory."""
    found = [pid]
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, path.read_text().split())
    return found


def held_alone(pid: int) -> int:
    """Return the private bytes of a process, including page tables; 0 if it has ended."""
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return sum(int(fields[name].split()[0]) << 10 for name in COUNTED if name in fields)
    return 0


def held_in_file(pid: int) -> int:
    """Return the bytes of the sentry's memory file."""
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                if str(entry.readlink()).startswith("/memfd:runsc-memory"):
                    return entry.stat().st_blocks * 512
    return 0


def held_by(sandbox: Any) -> int:
    sentry, gofer = sandbox.find_process("runsc-sandbox"), sandbox.find_process("runsc-gofer")
    if sentry is None:
        return 0
    family = [*find_family(sentry), *([] if gofer is None else [gofer])]
    return held_in_file(sentry) + sum(map(held_alone, family))


def charged_to(sandbox: Any) -> int | None:
    """Return the bytes charged to the sandbox's cgroup, without the page cache.

    None if it has no cgroup, or one that does not count kernel memory.
    """
    sentry = sandbox.find_process("runsc-sandbox")
    for line in Path(f"/proc/{sentry}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if sandbox.container_id not in path:  # an ordinary user's
            continue
        group = Path("/sys/fs/cgroup") / (controllers or ".") / path.lstrip("/")
        if controllers == "memory" and (group / "memory.kmem.usage_in_bytes").exists():
            usage, names = "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")
        elif controllers == "" and (group / "memory.current").exists():
            usage, names = "memory.current", ("inactive_file", "active_file")
        else:
            continue
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return int((group / usage).read_text()) - sum(int(stat[name]) for name in names)
    return None


class Peak:
    """Sample the memory of a sandbox in a thread; ``bytes`` is the maximum."""

    def __init__(self, sandbox: Any) -> None:
        self.bytes = 0
        self._sandbox = sandbox
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._done.wait(LOOK_SECONDS):
            self.bytes = max(self.bytes, held_by(self._sandbox))

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
