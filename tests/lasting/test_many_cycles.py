"""A kernel hibernates and wakes many times, and its state changes in between.

``random_lives`` has all verbs, and a few wakes a minute; this has nothing but wakes, each with one
cell that looks at all state and changes some of it. ``GK_TEST_CYCLES``: how many.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gvisor_kernel import Sandbox

from ..sweeps import ALL
from .random_lives import BEGIN, WORKERS, Model

CYCLES = int(os.environ.get("GK_TEST_CYCLES", "100" if ALL else "0"))
LIFE = 50
"""Cycles of one kernel."""


class Step(NamedTuple):
    """A change of the state named ``name`` by ``n``."""

    kind: str
    name: str
    n: int


class Sleeper:
    """A kernel beside the model of its state."""

    def __init__(self) -> None:
        self.model, self.cycles = Model(), 0
        self.sandbox = Sandbox(memory="1G", uploads=None, outputs=None)
        assert self.sandbox.run(BEGIN).ok

    def cycle(self, steps: list[Step]) -> None:
        self.sandbox.hibernate()
        assert self.sandbox.is_hibernated
        paths = sorted(self.model.files)
        expected = {**vars(self.model), "files": dict(self.model.files)}
        expected.pop("cells")
        before = ast.literal_eval(repr(expected))
        changes = "\n".join(self.change(step) for step in steps)
        code = f"found = await look({paths!r}); print(found)\n{changes}\ncount += 1\ncount"
        execution = self.sandbox.run(code)
        assert execution.error is None, execution.error
        assert ast.literal_eval(execution.stdout) == before
        self.model.count += 1
        assert execution.text == str(self.model.count)
        number, self.model.cells = self.model.cells, execution.execution_count or 0
        assert number in (0, self.model.cells - 1)
        self.cycles += 1

    def change(self, step: Step) -> str:
        """Change the model, and return the code that changes the kernel."""
        kind, name, n = step
        if kind == "variable":
            self.model.variables[name] = n
            return f"variables[{name!r}] = {n}"
        if kind == "memory":
            self.model.variables[name] = n << 18
            return f"variables[{name!r}] = os.urandom({n << 18})"
        if kind == "rows":
            self.model.rows += n
            return f"for _ in range({n}): base.execute(INSERT)"
        if kind == "opened":
            self.model.opened[name] = self.model.opened.get(name, "") + "x" * n
            opened = f"opened.setdefault({name!r}, open('/tmp/open-{name}', 'a+'))"
            return f"{opened}.write({'x' * n!r})"
        if kind in WORKERS:
            totals: dict[str, int] = getattr(self.model, kind)
            begin = "" if name in totals else f"{kind}[{name!r}] = {WORKERS[kind]}()\n"
            totals[name] = totals.get(name, 0) + n
            return f"{begin}assert await {kind}[{name!r}].add({n}) == {totals[name]}"
        path = f"{kind}/{name}"
        self.model.files[path] = self.model.files.get(path, "") + "y" * n
        return f"with open({path!r}, 'a') as file: file.write({'y' * n!r})"


KINDS = ("variable", "memory", "rows", "opened", *WORKERS)
PLACES = ("/workspace", "/tmp", "/dev/shm", "/home/user")
STEPS = st.lists(
    st.builds(Step, st.sampled_from(KINDS + PLACES), st.sampled_from("abc"), st.integers(1, 9)),
    max_size=6,
)


@pytest.mark.timeout(0)
@pytest.mark.skipif(not CYCLES, reason="takes long: run scripts/test --all")
@pytest.mark.parametrize("worker", range(int(os.environ.get("GK_TEST_WORKERS", "1"))))
def test_state_lasts_over_many_cycles(worker: int) -> None:
    lives: list[Sleeper] = []
    done = 0

    def live(steps: list[Step]) -> None:
        nonlocal done
        if not lives or lives[0].cycles >= LIFE:
            while lives:
                lives.pop().sandbox.close()
            lives.append(Sleeper())
        lives[0].cycle(steps)
        done += 1
        if done % LIFE == 0:
            print(f"worker {worker}: {done} cycles", flush=True)

    some = settings(
        max_examples=CYCLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    test: Callable[[], Any] = some(given(STEPS)(live))
    try:
        test()
    finally:
        for life in lives:
            life.sandbox.close()
    assert done >= CYCLES
