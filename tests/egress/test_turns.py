"""Kernels take turns, and those who give up lose nothing for the others."""

from __future__ import annotations

import asyncio

from gvisor_kernel.egress.turns import Turns


async def take_turns(turns: Turns, kernels: str, most: int) -> str:
    """Let each letter be a request of a kernel, all made at once; return them in their order."""
    order: list[str] = []
    active: list[str] = []

    async def request(kernel: str) -> None:
        async with turns.take(kernel):
            order.append(kernel)
            active.append(kernel)
            assert len(active) <= most
            await asyncio.sleep(0)
            active.remove(kernel)

    await asyncio.gather(*map(request, kernels))
    return "".join(order)


def test_kernels_take_turns() -> None:
    async def check() -> None:
        assert await take_turns(Turns(1), "aaaabbc", 1) == "aabcaba"
        assert (await take_turns(Turns(2, 1), "aaaaaab", 2))[:2] == "ab"
        assert (await take_turns(Turns(4, 3), "aaaaab", 4))[:4] == "aaab"

    asyncio.run(check())


def test_a_request_that_is_given_up_leaves_its_turn_to_the_next() -> None:
    async def hold(turns: Turns, kernel: str) -> None:
        async with turns.take(kernel):
            await asyncio.Event().wait()

    async def check() -> None:
        turns = Turns(1)
        tasks = [asyncio.create_task(hold(turns, kernel)) for kernel in "aab"]
        await asyncio.sleep(0)
        for task in tasks:  # one that has it, one that waits, and one that gets it now
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert await take_turns(turns, "ab", 1) == "ab"

    asyncio.run(check())
