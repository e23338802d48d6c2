"""The settings of glibc's malloc for PID 1 and kernels: fewer changes of the address space.

Mapping memory, and touching it for the first time, costs many times as much inside gVisor as on
Linux. malloc gives each block of 128 KiB or more a mapping of its own. This limit grows up to 32
MiB when such blocks are freed, and to twice that the free memory at the end of the heap that is
kept. Kernels begin with these two values, so that temporary arrays reuse memory. Larger arrays are
given back at once.

The heap still grows in small steps: with steps of 4 MiB a fork took a third more.

The settings are made in the process, not by variables: those would reach every program that a cell
starts, and be seen in ``os.environ``. A fork has them, a new program does not.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from typing import Dict, Tuple

MIB = 1024 * 1024
TUNABLES = "GLIBC_TUNABLES"
# With 4 and 8 MiB, arrays of 5 and 20 MiB took as long as without. With 1 and 2 GiB they took
# hardly less than now, and of 300 MiB of freed arrays 220 were kept.
SETTINGS: Dict[str, Tuple[int, int]] = {
    "MALLOC_MMAP_THRESHOLD_": (-3, 32 * MIB),
    "MALLOC_TRIM_THRESHOLD_": (-1, 64 * MIB),
}
"""Parameters of mallopt(3), as number and value, by the variable that sets the same."""


def prepare(environment: Mapping[str, str]) -> bool:
    """Make the settings for this process, except those that ``environment`` makes. Idempotent.

    Returns False if nothing was changed: the C library is not glibc, or a tunable is set.
    """
    if "malloc" in environment.get(TUNABLES, ""):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version") or not hasattr(libc, "mallopt"):
        return False
    chosen = [value for name, value in SETTINGS.items() if name not in environment]
    done = [libc.mallopt(*setting) == 1 for setting in chosen]
    return bool(done) and all(done)


def prepare_own() -> bool:
    """Do so by this process's own variables."""
    return prepare(os.environ)
