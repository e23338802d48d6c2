"""The processor of this machine."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

# by path: the kernel's own file systems, /proc, /sys and /dev

FEATURES = ("flags", "Features", "features", "isa")
"""The names of the CPU features in /proc/cpuinfo on x86, on ARM and on other architectures."""


@cache
def read_processor() -> tuple[str, ...]:
    """Return the architecture and the features of the first CPU. They do not change."""
    found = [os.uname().machine]
    try:
        # Read only the first CPU: Linux queries each one for its part of the file.
        with Path("/proc/cpuinfo").open("rb", buffering=0) as file:
            text = file.read(16384).decode(errors="replace").partition("\n\n")[0]
    except OSError:
        return tuple(found)
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in FEATURES:
            found += sorted(value.split())
    return tuple(found)
