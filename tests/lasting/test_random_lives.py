"""Kernels live through random verbs, and lose nothing. ``GK_TEST_CYCLES``: how many wakes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from ..sweeps import ALL
from .random_lives import Cycles, RandomLife

CYCLES = int(os.environ.get("GK_TEST_CYCLES", "1000" if ALL else "0"))


@pytest.mark.timeout(0)
@pytest.mark.skipif(not CYCLES, reason="takes long: run scripts/test --all")
def test_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    numbers = iter(range(10**9))

    class Life(RandomLife):
        folder: Path

        def make_outputs(self) -> str:
            self.folder = tmp_path / str(next(numbers))
            return str(self.folder)

        def read_output(self) -> str:
            file = self.folder / "f"
            return file.read_text() if file.exists() else ""

    some = settings(
        max_examples=5,
        stateful_step_count=40,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    while Cycles.wakes < CYCLES:
        run_state_machine_as_test(Life, settings=some)
        print(f"{Cycles.wakes} wakes, {Cycles.done}", flush=True)
