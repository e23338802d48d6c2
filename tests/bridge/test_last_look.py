"""Whether files are read at the end of a kernel, and that PID 1 is told not to wait in any case."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gvisor_kernel.bridge import last_look
from gvisor_kernel.bridge.last_look import LastLook

pytestmark = pytest.mark.once


def make(work: Any, **run: object) -> tuple[LastLook, list[str]]:
    said: list[str] = []
    facts = SimpleNamespace(**{"cause": None, "end_expected": True, "has_failed": False, **run})
    look = LastLook(cast(Any, facts), lambda: said.append("released"))

    async def do() -> None:
        said.append("looked")
        await work()

    look.work = do if work is not None else None
    return look, said


async def nothing() -> None:
    pass


@pytest.mark.parametrize("facts", [{"end_expected": False}, {"cause": "memory"}])
def test_at_a_death_nothing_is_read(facts: dict[str, object]) -> None:
    async def end() -> list[str]:
        look, said = make(nothing, **facts)
        look.begin()
        assert not await look.wait()
        return said

    assert asyncio.run(end()) == ["released"]


def test_after_a_cell_that_failed_nothing_is_read_and_that_is_told_once() -> None:
    async def end() -> list[str]:
        look, said = make(nothing, has_failed=True)
        look.on_failed = lambda: said.append("told")
        look.begin()
        look.begin()
        assert not await look.wait()
        return said

    assert asyncio.run(end()) == ["told", "released", "released"]


def test_a_sandbox_that_tells_its_end_again_and_again_is_read_once() -> None:
    async def end() -> list[str]:
        look, said = make(nothing)
        for _ in range(100):
            look.begin()
        assert look.is_under_way
        assert await look.wait()
        look.begin()
        assert not look.is_under_way
        look.forget()
        look.begin()
        assert await look.wait()
        return said

    assert asyncio.run(end()) == ["looked", "released"] * 2


def test_a_look_that_does_not_end_or_fails_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail() -> None:
        raise TimeoutError

    async def end(work: Any) -> list[str]:
        look, said = make(work)
        look.begin()
        assert await look.wait()
        return said

    monkeypatch.setattr(last_look, "LAST_SECONDS", 0.01)
    for work in (asyncio.Event().wait, fail):
        assert asyncio.run(end(work)) == ["looked", "released"]
