"""The interpreter's stack has room, so that no call maps and unmaps a chunk of it."""

from __future__ import annotations

from ..jupyter.helpers import execute, running_kernel

FIND = """
import sys
frame, found = sys._getframe(), 0
while frame is not None:
    if frame.f_code.co_name == "run_kernel":
        found = frame.f_code.co_stacksize
    frame = frame.f_back
found
"""


def test_everything_runs_below_a_large_frame() -> None:
    with running_kernel() as (_, client):
        assert int(execute(client, FIND).result) * 8 >= 2 * 1024 * 1024


def test_the_kernel_is_started_as_always() -> None:
    """The launcher in between is not to be seen by the code of a cell."""
    with running_kernel() as (_, client):
        assert execute(client, "__name__").result == "'__main__'"
        answer = execute(client, "import sys; sys.argv[0]; [p for p in sys.path if 'guest' in p]")
        assert answer.result == "[]"
