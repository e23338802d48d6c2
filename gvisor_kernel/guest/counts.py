"""What PID 1 counts inside its sandbox; shown to people."""

from __future__ import annotations

import os

from gvisor_kernel.link import Stats


def count_processes() -> Stats:
    """Processes, threads and resident bytes of the sandbox, PID 1 included."""
    processes = threads = pages = 0
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
            threads += int(fields[17])
            pages += int(fields[21])
        except (OSError, IndexError, ValueError):
            continue  # it ended meanwhile
        processes += 1
    return Stats(processes, threads, pages * os.sysconf("SC_PAGE_SIZE"))
