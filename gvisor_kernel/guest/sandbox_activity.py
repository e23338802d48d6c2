"""Decides by /proc, as PID 1 sees it, whether a sandbox is idle, whatever the kernel says."""

from __future__ import annotations

import os
from typing import List, Optional, Tuple

MAX_IDLE_TICKS = 2
"""Clock ticks of 10 ms that an idle process may be charged with. The clock is sampled: a process
that runs at a tick is charged a whole one."""


class SandboxActivity:
    """Compares the state of the sandbox with that of the last call."""

    def __init__(self) -> None:
        self._last: Optional[Tuple[int, int]] = None

    def check_idle(self, kernel: int) -> bool:
        """Return whether process ``kernel`` sleeps, and has done nothing since the last call."""
        ticks = _read_ticks_if_asleep(kernel)
        last, self._last = self._last, None if ticks is None else (kernel, ticks)
        if ticks is None or last is None or last[0] != kernel:
            return False
        return ticks - last[1] <= MAX_IDLE_TICKS


def _read_ticks_if_asleep(pid: int) -> Optional[int]:
    """Return the CPU ticks of a process; None if one of its threads is awake or it has ended."""
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            if _read_stat(f"/proc/{pid}/task/{thread}")[0] != b"S":
                return None
        fields = _read_stat(f"/proc/{pid}")
        return int(fields[11]) + int(fields[12])
    except (OSError, IndexError, ValueError):
        return None


def has_other_process(kernel: int) -> bool:
    """Return whether there is a living process except PID 1 and ``kernel``."""
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in (1, kernel):
            try:
                if _read_stat(f"/proc/{name}")[0] != b"Z":
                    return True
            except (OSError, IndexError):
                continue  # the process has ended meanwhile
    return False


def _read_stat(folder: str) -> List[bytes]:
    """Return the fields of a stat file after the name, which may contain anything."""
    with open(f"{folder}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()
