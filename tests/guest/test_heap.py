"""A kernel's malloc keeps what was freed, within bounds, and gives it back when it is asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from gvisor_kernel.guest.heap import MAX_KEPT, find_settings
from gvisor_kernel.guest.interpreter import MALLOC_SETTINGS, MIB

from ..world import PROJECT
from .test_interpreter import glibc

MMAP, TRIM = "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"

PROGRAM = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from gvisor_kernel.guest import heap
MIB = 1 << 20
heap.read_limit = lambda: 4096 * MIB
heap.keep_little_in_forks()
heap.keep(os.environ)
malloc, free = heap._libc.malloc, heap._libc.free

def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 // MIB

def touch(size):
    block = malloc(size)
    heap.ctypes.memset(block, 1, size)
    return block

before = held()
def work():
    free(touch(100 * MIB))
    return held() - before

def fork(code):
    read, write = os.pipe()
    if not os.fork():
        os.write(write, json.dumps(code()).encode())
        os._exit(0)
    os.wait()
    return json.loads(os.read(read, 100))

found = {}
found["kept"] = work()
found["answers"] = heap._kept is not None
heap.give_back()
found["left"] = held() - before
found["kept by a fork"] = fork(work)
work()
fork(lambda: 0)
found["kept beside a fork"] = held() - before
blocks = [touch(8192) for _ in range(4 * heap.MAX_HOLES)]
for block in blocks[::2]:
    free(block)
found["holes"] = heap.count_holes()
end = touch(100 * MIB)
top = held()
free(end)
heap.give_back()
found["end"] = top - held()
free(touch(100 * MIB))
found["kept again"] = held() - before
for block in blocks[1::2]:
    free(block)
heap.give_back()
found["whole"] = held() - before
print(json.dumps(found))
"""


def run(**variables: str) -> dict[str, int]:
    """Return what the program has found, in MiB."""
    command = [sys.executable, "-I", "-S", "-c", PROGRAM, str(PROJECT)]
    output = subprocess.check_output(command, env={**os.environ, **variables})
    found: dict[str, int] = json.loads(output)
    return found


@glibc
def test_freed_memory_is_kept_until_the_kernel_is_asked() -> None:
    found = run()
    assert found["kept"] >= 99
    assert found["answers"]
    assert found["left"] < 10
    assert found["kept by a fork"] < 10
    assert found["kept beside a fork"] < 10, "a child would hold it as well"
    # Many holes would hold the kernel up: only the end is given back, unless memory is short.
    assert found["holes"] > 1000
    assert 99 <= found["end"] < 104
    assert found["kept again"] >= 99
    assert found["whole"] < 30


@glibc
@pytest.mark.parametrize("variables", [{"GVISOR_KERNEL_PLAIN": "fonts heap"}, {TRIM: "100000"}])
def test_variables_win(variables: dict[str, str]) -> None:
    found = run(**variables)
    assert found["kept"] < 10
    assert not found["answers"]


@pytest.mark.parametrize("limit", [0, 128 * MIB, 1024 * MIB, 2048 * MIB, 4096 * MIB, 2**50])
def test_what_is_kept_is_bounded_by_the_limit(limit: int) -> None:
    settings = find_settings(limit)
    assert settings.keys() == MALLOC_SETTINGS.keys()
    for name, (number, value) in settings.items():
        assert number == MALLOC_SETTINGS[name][0]
        assert MALLOC_SETTINGS[name][1] <= value <= MAX_KEPT < 2**31
    assert settings[TRIM][1] <= max(limit // 8, 64 * MIB)
    assert settings[MMAP][1] < settings[TRIM][1]
