"""How much of the host's memory a sandbox holds, as the tests see it: by what the host's kernel
says of each of its processes, whatever the project itself counts.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

COUNTED = ("RssAnon", "VmSwap", "VmPTE")
LOOK_SECONDS = 0.01


def find_family(pid: int) -> list[int]:
    """``pid`` and its children. Their children share their memory: gVisor's threads."""
    found = [pid]
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, path.read_text().split())
    return found


def held_alone(pid: int) -> int:
    """Bytes that a process shares with no other, page tables among them. 0 when it is gone."""
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return sum(int(fields[name].split()[0]) << 10 for name in COUNTED if name in fields)
    return 0


def held_in_file(pid: int) -> int:
    """Bytes of the sentry's memory file."""
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
    """What the host's kernel charges the sandbox's cgroup with, without its cache of files; None
    where it has none, or that leaves out what the kernel itself holds for it.
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
    """The most memory that a sandbox was seen to hold."""

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
