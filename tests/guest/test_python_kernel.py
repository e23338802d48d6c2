"""``with_stack_room`` and forked kernels: the stack, and what a cell can see of the guest."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

from gvisor_kernel.guest.python_kernel import MODULES
from gvisor_kernel.spec.layout import GUEST

from ..jupyter.helpers import execute, running_kernel

PROBE = """
import resource
from gvisor_kernel.guest.stack_room import with_stack_room

def call():
    pass

def faults_of_calls():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(1000):
        call()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def worst(depth):
    here = faults_of_calls()
    return max(here, worst(depth - 1)) if depth else here

def probe():
    print(worst(400))

"""
"""Calls at 400 depths. A chunk that is mapped anew at each call causes a page fault each."""


BLOCKS = """
import ctypes, os, subprocess, sys
CODE = '''
import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
block = libc.malloc(1 << 20)
with open("/proc/self/maps") as file:
    heap = next(line for line in file if "[heap]" in line).split()[0]
begin, end = (int(word, 16) for word in heap.split("-"))
print(begin <= block < end)
'''
exec(CODE, {})
print(subprocess.check_output([sys.executable, "-c", CODE], text=True).strip())
print([name for name in os.environ if "MALLOC" in name])
"""
"""Prints whether a block of 1 MiB is in the heap: of the kernel, of a program that it starts."""


def worst_faults(run: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROBE + run], check=True, stdout=subprocess.PIPE, text=True
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="this CPython may keep its chunks itself")
def test_calls_without_stack_room_map_chunks_at_some_depth() -> None:
    assert worst_faults("probe()") >= 1000


def test_calls_with_stack_room_map_no_chunks() -> None:
    assert worst_faults("with_stack_room(probe)()") < 500


ARENAS = """
import ctypes, threading
from gvisor_kernel.guest import linux
{limit}
libc = ctypes.CDLL(None)
together = threading.Barrier(65)
def work():
    libc.malloc(100_000)
    together.wait()
for _ in range(64):
    threading.Thread(target=work).start()
together.wait()
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


def count_arenas(limit: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", ARENAS.format(limit=limit)], check=True, stdout=subprocess.PIPE
    )
    return done.stdout.count(b"<heap nr=")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="not glibc")
def test_threads_share_one_arena_of_malloc_for_each_cpu() -> None:
    """A fork writes to every arena."""
    most = max(2, os.cpu_count() or 1)
    assert count_arenas("") > most
    assert count_arenas("linux.limit_malloc_arenas()") <= most


def test_forked_kernel_looks_like_its_own_interpreter() -> None:
    """The code of a cell can see neither the guest's own modules nor how it was started."""
    with running_kernel() as (_, client):
        answer = execute(
            client, "open('/proc/1/cmdline').read() == open('/proc/self/cmdline').read()"
        )
        assert answer.result == "True"
        assert execute(client, "__name__").result == "'__main__'"
        code = f"import sys; [p for p in sys.path if f'{{p}}/'.startswith('{GUEST}/')]"
        answer = execute(client, code)
        assert answer.result == f"['{MODULES}']"  # what code in a sandbox may import
        assert execute(client, "sys.path[-1]").result == f"'{MODULES}'"  # others' modules win
        assert execute(client, "sys.flags.isolated, sys.argv[0].split('/')[-1]").result == (
            "(0, 'ipykernel_launcher.py')"
        )
        assert execute(client, "import os; os.environ['HOME'], os.getppid()").result == (
            "('/home/user', 1)"
        )
        assert execute(client, BLOCKS).text.split("\n")[:3] == ["True", "False", "[]"]


def test_other_command_or_early_variable_starts_a_new_interpreter() -> None:
    """Such a kernel has room on its stack, too."""
    for settings in ({"kernel_mode": "relay"}, {"environment": ["PYTHONHASHSEED"]}):
        start = {"env": {"PYTHONHASHSEED": "7"}}
        with running_kernel(settings=settings, start=start) as (_, client):
            answer = execute(client, "open('/proc/self/cmdline').read().split('\\0')[2]")
            assert answer.result == "'/opt/gvisor-kernel/gvisor_kernel/guest/python_kernel.py'"
            assert execute(client, BLOCKS).text.split("\n")[0] == "True"
