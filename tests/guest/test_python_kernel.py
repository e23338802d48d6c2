"""The interpreter's stack has room, so that no call maps and unmaps a chunk of it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ..jupyter.helpers import execute, running_kernel

PROBE = """
import resource
from gvisor_kernel.guest.room import with_room

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
"""Calls at each of 400 depths; a chunk that is mapped anew at each call is a fault at each."""


def worst_faults(run: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROBE + run], check=True, stdout=subprocess.PIPE, text=True
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="this CPython may keep its chunks itself")
def test_without_room_some_depth_is_unlucky() -> None:
    assert worst_faults("probe()") >= 1000


def test_with_room_none_is() -> None:
    assert worst_faults("with_room(probe)()") < 500


def test_a_kernel_is_a_fork_of_pid_1_and_looks_like_an_interpreter_of_its_own() -> None:
    """Nothing of the guest's, or of how it was started, is to be seen by the code of a cell."""
    with running_kernel() as (_, client):
        answer = execute(
            client, "open('/proc/1/cmdline').read() == open('/proc/self/cmdline').read()"
        )
        assert answer.result == "True"
        assert execute(client, "__name__").result == "'__main__'"
        answer = execute(
            client, "import sys; [p for p in sys.path if 'guest' in p or p.endswith('kernel')]"
        )
        assert answer.result == "[]"
        assert execute(client, "sys.flags.isolated, sys.argv[0].split('/')[-1]").result == (
            "(0, 'ipykernel_launcher.py')"
        )
        assert execute(client, "import os; os.environ['HOME'], os.getppid()").result == (
            "('/home/user', 1)"
        )


def test_another_command_line_or_a_variable_read_early_gets_an_interpreter_of_its_own() -> None:
    """And with room on its stack all the same."""
    for settings in ({"kernel_mode": "relay"}, {"environment": ["PYTHONHASHSEED"]}):
        start = {"env": {"PYTHONHASHSEED": "7"}}
        with running_kernel(settings=settings, start=start) as (_, client):
            answer = execute(client, "open('/proc/self/cmdline').read().split('\\0')[2]")
            assert answer.result == "'/opt/gvisor-kernel/gvisor_kernel/guest/python_kernel.py'"
