"""What a server that stops leaves: each kernel has its turn, however slow others are."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from gvisor_kernel.server import hibernating
from gvisor_kernel.server.hibernating import Hibernating


@pytest.mark.parametrize("count", [1, 2, 5])
def test_slow_kernels_take_no_others_turn(
    count: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hibernating, "STOP_SECONDS", 0.5)
    slow = [f"slow {number}" for number in range(count)]
    asyncio.run(leave([*slow, "last"]))
    assert [line.split(" does ")[0] for line in caplog.messages] == slow


async def leave(names: list[str]) -> None:
    never = asyncio.Event()

    def make(name: str) -> Any:
        async def hibernate() -> None:
            if name.startswith("slow"):
                await never.wait()

        return SimpleNamespace(hibernation=SimpleNamespace(leave=hibernate, saved=None))

    begin = datetime.now(UTC)
    managers = {
        name: SimpleNamespace(
            stop_restarter=lambda: None, last_activity=begin + timedelta(seconds=at)
        )
        for at, name in enumerate(names)
    }
    kernels = {name: make(name) for name in names}
    manager = SimpleNamespace(list_kernel_ids=lambda: names, get_kernel=managers.__getitem__)

    async def find() -> dict[str, Any]:
        return {}

    server: Any = SimpleNamespace(kernel_manager=manager, log=hibernating.log)
    sandboxes: Any = SimpleNamespace(find_kernel=kernels.get)
    saved: Any = SimpleNamespace(find=find)
    await Hibernating(server, sandboxes, leaves=True)._leave_all(saved)
