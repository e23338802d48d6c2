"""Many kernels that hibernate are wanted at once: all come back, and do each thing once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gvisor_kernel import AsyncSandbox
from gvisor_kernel.runtimes.state.listed import find_all

from ..sweeps import needs_all

KERNELS, ROUNDS, AT_ONCE = 50, 2, 4


@needs_all
@pytest.mark.timeout(1800)
def test_fifty_kernels_that_are_wanted_at_once_come_back(tmp_path: Path) -> None:
    asyncio.run(wake_all(tmp_path))


async def wake_all(folder: Path) -> None:
    async with AsyncSandbox(memory="512M", outputs=folder / "out") as source:
        await source.run("import threading; n = 0; open('/workspace/own', 'w').write('')")
        kernels = await source.branch(KERNELS)
        try:
            for number, one in enumerate(kernels):
                await one.run(f"number = {number}")
            for _ in range(ROUNDS):
                await hibernate_all(kernels)
                done = await asyncio.gather(*map(use, kernels))
                assert done == [*range(KERNELS)]
            counts = [(await one.run("n")).text for one in kernels]
            assert counts == [str(2 * ROUNDS)] * KERNELS
        finally:
            await asyncio.gather(*(one.close() for one in kernels))


async def hibernate_all(kernels: list[AsyncSandbox]) -> None:
    turns = asyncio.Semaphore(AT_ONCE)

    async def hibernate(one: AsyncSandbox) -> None:
        async with turns:
            await one.hibernate()

    await asyncio.gather(*map(hibernate, kernels))
    ids = {one.id for one in kernels}
    states = {it.state for it in find_all() if it.record.identity in ids}
    assert states == {"hibernated"}


async def use(one: AsyncSandbox) -> int:
    """Send two cells at once to a kernel that sleeps; return its number."""
    code = "n += 1; file = open('/workspace/own', 'a'); file.write('x'); file.close(); number"
    first, second = await asyncio.gather(one.run(code), one.run(code))
    assert first.error is None
    assert second.error is None
    assert first.text == second.text
    assert (second.execution_count or 0) - (first.execution_count or 0) in (1, -1)
    assert (await one.run("n == len(open('/workspace/own').read())")).text == "True"
    return int(first.text or -1)
