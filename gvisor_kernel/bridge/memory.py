"""When to look at a sandbox's memory, and when it is too much. No clock, no process."""

from __future__ import annotations

LOOK_SECONDS = 0.1
"""The longest time between two looks."""
SHORTEST_LOOK = 0.005
FASTEST_GROWTH = 4 * 1024**3
"""Bytes a second that a sandbox can touch at most (measured: about 2 GiB/s on two cores). The
nearer the limit, the sooner the next look, so that even this rate does not pass it by much."""
OVERRUN = 128 * 1024**2
"""So far over the limit the whole sandbox is killed at once, without asking its PID 1."""
ASK_SECONDS = 1.0
"""How long PID 1 has to end the kernel; then the whole sandbox is killed."""


def seconds_to_next_look(used: int, limit: int) -> float:
    """How long the next look may wait."""
    return min(LOOK_SECONDS, max(SHORTEST_LOOK, (limit - used) / FASTEST_GROWTH))


def format_size(size: int) -> str:
    """Bytes as a person reads them: ``4 GiB``, ``1.5 GiB``, ``300 MiB``."""
    for unit, factor in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if size >= factor:
            return f"{size / factor:.1f}".removesuffix(".0") + f" {unit}"
    return f"{size} bytes"
