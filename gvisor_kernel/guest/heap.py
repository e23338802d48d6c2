"""The memory that a kernel's malloc keeps while it works, and how it is given back.

Every process of the guest keeps a little (``interpreter``). A kernel that speaks frames keeps more,
as the host can ask it to give that back, when it rests or memory is short. Nothing depends on
that: code in a sandbox may ignore it. When the host asks is not decided here.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Mapping
from contextlib import suppress

from gvisor_kernel.guest.interpreter import MALLOC_SETTINGS, MIB, is_plain, prepare_malloc

BASE = 1024 * MIB
"""Bytes of the memory limit of which nothing is kept: the host may take 0.3 s to ask for it, in
which a program fills as much."""
KEPT_SHARE = 8
"""At most one part in so many of the rest is kept at the end of the heap."""
MAX_KEPT = 1024 * MIB
ARRAYS = 2
"""A block larger than one part in so many of what is kept gets a mapping of its own, which is given
back at once. A smaller one may leave a hole in the heap, in which nothing larger fits."""
MAX_HOLES = 800
"""Free pieces of a page or more. Each takes a system call of 0.22 ms to give back, during which
other threads wait to allocate (measured: 0.15 s for 1 GiB in 1,024 pieces, 5.4 s in 65,536). Each
also splits a mapping: with 70,000 gVisor's kernel panics, as the host allows it 65,530."""
END_SIZE = 128 * 1024
"""Bytes of a block after which malloc looks at the end of the heap when it is freed."""

PAGE = 4096
TRIM = "MALLOC_TRIM_THRESHOLD_"

_PIECES = re.compile(rb'<(?:size|unsorted) from="\d+" to="(\d+)" total="\d+" count="(\d+)"')
_libc = ctypes.CDLL(None)
_libc.malloc.restype, _libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
_libc.free.argtypes = [ctypes.c_void_p]
_libc.open_memstream.restype = ctypes.c_void_p
_libc.fclose.argtypes = [ctypes.c_void_p]
if hasattr(_libc, "malloc_info"):
    _libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]

_kept: int | None = None
"""Bytes at the end of the heap above which malloc gives them back, if set here."""


def find_settings(limit: int) -> dict[str, tuple[int, int]]:
    """Return the parameters of mallopt for a kernel whose memory limit is ``limit`` bytes.

    They have the form of MALLOC_SETTINGS, and are not below it.
    """
    kept = min(max(limit - BASE, 0) // KEPT_SHARE, MAX_KEPT)
    wanted = {"MALLOC_MMAP_THRESHOLD_": kept // ARRAYS, TRIM: kept}
    return {
        name: (number, max(least, wanted[name]))
        for name, (number, least) in MALLOC_SETTINGS.items()
    }


def keep(environment: Mapping[str, str]) -> None:
    """Keep more from now on, unless ``environment`` says otherwise. Again after a restore."""
    global _kept
    plain = is_plain("heap", environment)
    settings = find_settings(0 if plain else read_limit())
    is_set = prepare_malloc(environment, settings) and TRIM not in environment and not plain
    _kept = settings[TRIM][1] if is_set else None


def keep_little_in_forks() -> None:
    """Let each fork of this process keep as little as other processes, and nothing of this one's.

    Nobody can ask a fork to give back, and what it shares with this process is free only when both
    have given it back. Call it once.
    """

    def begin() -> None:
        prepare_malloc(os.environ)

    os.register_at_fork(before=give_back, after_in_child=begin)


def read_limit() -> int:
    """Return the memory of this sandbox in bytes; 0 if it does not say."""
    with suppress(OSError, ValueError, IndexError), open("/proc/meminfo", "rb") as file:
        return int(file.readline().split()[1]) * 1024
    return 0


def give_back() -> None:
    """Give free memory of this process back, if it keeps some. Any thread; others wait to allocate.

    Of a heap with many holes only the end is given back.
    """
    if _kept is None:
        return
    if count_holes() <= MAX_HOLES:
        _libc.malloc_trim(0)
    else:
        number = MALLOC_SETTINGS[TRIM][0]
        _libc.mallopt(number, 0)
        _libc.free(_libc.malloc(END_SIZE))
        _libc.mallopt(number, _kept)


def count_holes() -> int:
    """Return the number of free pieces of about a page or more in the heap, by malloc_info(3)."""
    text, size = ctypes.c_void_p(), ctypes.c_size_t()
    stream = _libc.open_memstream(ctypes.byref(text), ctypes.byref(size))
    if not stream:
        return MAX_HOLES + 1
    _libc.malloc_info(0, stream)
    _libc.fclose(stream)
    found = ctypes.string_at(text, size.value)
    _libc.free(text)
    return sum(int(count) for largest, count in _PIECES.findall(found) if int(largest) >= PAGE)
