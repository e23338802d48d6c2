"""The queue of a cluster as starts see it: one look for all of them, and fewer and fewer looks."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from gvisor_kernel.runtimes.nodes.slurm import FIRST_WAIT, LONGEST_WAIT, Queue, find_queue


class Clock:
    """A clock that a test sets, and a queue whose looks it counts."""

    def __init__(self, *jobs: str) -> None:
        self.now = 0.0
        self.looks: list[float] = []
        self.jobs: Sequence[str] = jobs
        self.queue = Queue(self._look, lambda: self.now)

    def _look(self) -> Sequence[str]:
        self.looks.append(self.now)
        return self.jobs


def test_looks_become_rarer() -> None:
    clock = Clock("1", "2")
    for now in range(600):
        clock.now = float(now)
        assert clock.queue.count_before("2") == 1
    waits = [b - a for a, b in zip(clock.looks, clock.looks[1:], strict=False)]
    assert waits[:3] == [FIRST_WAIT, 2 * FIRST_WAIT, 4 * FIRST_WAIT]
    assert set(waits[5:]) == {LONGEST_WAIT}


def test_looks_become_rarer_where_nothing_is_seen() -> None:
    """squeue may fail, or show only the user's own partition."""
    clock = Clock()
    for now in range(600):
        clock.now = float(now)
        assert clock.queue.count_before("2") is None
    assert clock.looks[-1] - clock.looks[-2] == LONGEST_WAIT


def test_one_look_serves_all() -> None:
    clock = Clock(*map(str, range(40)))
    assert [clock.queue.count_before(str(job)) for job in range(40)] == list(range(40))
    assert clock.looks == [0.0]


def test_new_job_is_looked_for_soon() -> None:
    clock = Clock("1")
    for now in range(200):
        clock.now = float(now)
        clock.queue.count_before("1")
    before = len(clock.looks)
    clock.jobs = ("1", "7")
    clock.now = clock.looks[-1] + FIRST_WAIT
    assert clock.queue.count_before("7") == 1
    assert len(clock.looks) == before + 1


def test_slow_look_delays_nobody_else() -> None:
    """Another start gets the last answer, and may be cancelled meanwhile."""
    begun, go_on = threading.Event(), threading.Event()

    def look() -> Sequence[str]:
        begun.set()
        assert go_on.wait(60)
        return ["1"]

    found = Queue(look)
    first = threading.Thread(target=found.count_before, args=("1",))
    first.start()
    try:
        assert begun.wait(60)
        assert found.count_before("1") is None
    finally:
        go_on.set()
        first.join(60)
    assert found.count_before("1") == 0


def test_queues_are_told_apart_by_command_and_configuration(tmp_path: Path) -> None:
    program = tmp_path / "squeue"
    program.write_text('#!/bin/sh\necho 7\necho "$SLURM_CONF"\n')
    program.chmod(0o755)
    one, other = {"SLURM_CONF": "1"}, {"SLURM_CONF": "2"}
    assert find_queue([str(program)], one) is find_queue([str(program)], dict(one))
    assert find_queue([str(program)], one).count_before("1") == 1
    assert find_queue([str(program)], other).count_before("1") is None
