"""The processes, threads and memory that PID 1 reports (STATS). Shown to people."""

from __future__ import annotations

import os

from gvisor_kernel.link import Stats

MAX_INSPECTED = 48
"""Number of processes above which PID 1 does not read the stat file of each. A process answers
only when it is scheduled, and PID 1 would do nothing else while hundreds compete for the CPU."""


def count_processes() -> Stats:
    """Count processes, threads and resident bytes of the sandbox, PID 1 included.

    If there are too many processes, each counts as one thread without memory.
    """
    processes = threads = pages = 0
    names = [name for name in os.listdir("/proc") if name.isdigit()]
    if len(names) > MAX_INSPECTED:
        return Stats(len(names), len(names), 0)
    for name in names:
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
            threads += int(fields[17])
            pages += int(fields[21])
        except (OSError, IndexError, ValueError):
            continue  # the process has ended meanwhile
        processes += 1
    return Stats(processes, threads, pages * os.sysconf("SC_PAGE_SIZE"))
