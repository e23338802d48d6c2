"""What PID 1 sees of a kernel from outside: whether anything moves in the sandbox.

All from /proc, so it holds whatever the kernel's process says of itself.
"""

from __future__ import annotations

import os
from typing import List, Optional, Tuple

TOLERATED = 2
"""Ticks of 10 ms that a process at rest may be charged with: the clock is sampled, and whoever
runs as it ticks pays for a whole one."""


class Stillness:
    """Looks at the sandbox again and again; only what it was like at two looks tells anything."""

    def __init__(self) -> None:
        self._last: Optional[Tuple[int, int]] = None

    def look(self, kernel: int) -> bool:
        """Whether all is at rest, and process ``kernel`` was since the last look."""
        ticks = _ticks_of_sleeper(kernel)
        last, self._last = self._last, None if ticks is None else (kernel, ticks)
        if ticks is None or last is None or last[0] != kernel:
            return False
        return ticks - last[1] <= TOLERATED and not _is_anybody_else(kernel)


def _ticks_of_sleeper(pid: int) -> Optional[int]:
    """CPU time of a process, in ticks; None if a thread of it does not sleep, or it is gone."""
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            if _read_stat(f"/proc/{pid}/task/{thread}")[0] != b"S":
                return None
        fields = _read_stat(f"/proc/{pid}")
        return int(fields[11]) + int(fields[12])
    except (OSError, IndexError, ValueError):
        return None


def _is_anybody_else(kernel: int) -> bool:
    """Whether there is a living process besides PID 1 and ``kernel``."""
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in (1, kernel):
            try:
                if _read_stat(f"/proc/{name}")[0] != b"Z":
                    return True
            except (OSError, IndexError):
                continue  # it ended meanwhile
    return False


def _read_stat(folder: str) -> List[bytes]:
    """The fields of a stat file from the state on: the name before it may hold anything."""
    with open(f"{folder}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()
