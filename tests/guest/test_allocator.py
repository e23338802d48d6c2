"""malloc's settings: large blocks lie in the heap, larger ones are given back."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

from gvisor_kernel.guest import allocator

from ..world import PROJECT

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")

LOOK = """
import ctypes, json, os, sys
sys.path.insert(0, sys.argv[1])
from gvisor_kernel.guest import allocator
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def pages():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])

def is_in_heap(size):
    block = libc.malloc(size)
    with open("/proc/self/maps") as file:
        heap = next(line for line in file if "[heap]" in line).split()[0]
    begin, end = (int(word, 16) for word in heap.split("-"))
    libc.free(block)
    return begin <= block < end

def is_given_back(size):
    before = pages()
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    held = pages()
    libc.free(block)
    assert held - before >= size // 4096
    return pages() - before < size // 4096 // 2

done = allocator.prepare_own() if sys.argv[2] == "True" else None
print(json.dumps([done, is_in_heap(1 << 20), is_given_back(100 << 20), is_given_back(100 << 20)]))
"""


def look(prepare: bool, **variables: str) -> list[bool | None]:
    """Return what ``prepare`` says, whether 1 MiB is in the heap, whether 100 MiB are given back.

    The latter twice: malloc changes its limits by itself when a block is freed.
    """
    found: list[bool | None] = json.loads(
        subprocess.check_output(
            [sys.executable, "-I", "-S", "-c", LOOK, str(PROJECT), str(prepare)],
            env={**os.environ, **variables},
        )
    )
    return found


def test_block_of_a_mebibyte_changes_no_mapping() -> None:
    assert look(False) == [None, False, True, True]
    assert look(True) == [True, True, True, True]


@pytest.mark.parametrize(
    "variables",
    [
        {"MALLOC_MMAP_THRESHOLD_": "131072"},
        {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"},
    ],
)
def test_variables_of_malloc_win(variables: dict[str, str]) -> None:
    assert look(True, **variables)[1] is False


def test_nothing_is_left_to_set() -> None:
    assert not allocator.prepare(dict.fromkeys(allocator.SETTINGS, "1"))
