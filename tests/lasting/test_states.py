"""Each state of ``states`` holds over three sleeps, in a branch and after a rewind."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from gvisor_kernel import Sandbox

from ..sweeps import ALL, needs_all
from .states import STATES, State

PRESENT = [one for one in STATES if not one.asks or importlib.util.find_spec(one.asks)]
USUAL = [one for one in PRESENT if not one.heavy]
COMBINATIONS = 20


def check_all(sandbox: Sandbox, states: Sequence[State], when: str) -> None:
    for state in states:
        error = sandbox.run(state.check).error
        assert error is None, f"{state.name}, {when}: {error.name}: {error.value}"


def live(states: Sequence[State], folder: Path) -> None:
    (folder / "read").mkdir(parents=True)
    (folder / "read" / "read.csv").write_text("1,2\n")
    with Sandbox(
        uploads=folder / "read", outputs=folder / "out", memory="4G", branch_outputs="shared"
    ) as sandbox:
        for state in states:
            error = sandbox.run(state.begin).error
            assert error is None, f"{state.name} cannot be made: {error.name}: {error.value}"
        for number in range(3):
            sandbox.hibernate()
            check_all(sandbox, states, f"sleep {number + 1}")
        sandbox.checkpoint("then")
        [branch] = sandbox.branch()
        with branch:
            check_all(branch, states, "in a branch")
            if ALL:
                branch.hibernate()
                check_all(branch, states, "in a branch that slept")
        check_all(sandbox, states, "beside a branch")
        for _ in range(2 if ALL else 1):
            sandbox.rewind("then")
            check_all(sandbox, states, "after a rewind")


@needs_all
def test_all_states_hold_together(tmp_path: Path) -> None:
    live(USUAL, tmp_path / "a")


@needs_all
@pytest.mark.parametrize("state", PRESENT, ids=lambda one: one.name)
def test_each_state_holds_alone(state: State, tmp_path: Path) -> None:
    live([state], tmp_path / "a")


@needs_all
@pytest.mark.parametrize("seed", range(COMBINATIONS if ALL else 0))
def test_any_states_hold_together(seed: int, tmp_path: Path) -> None:
    chosen = random.Random(seed)  # noqa: S311
    live(chosen.sample(PRESENT, chosen.randint(2, 8)), tmp_path / "a")
