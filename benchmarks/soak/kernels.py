"""One kernel with a client, and the actions of the mixed load.

Each action raises Lost when output of a finished cell did not arrive whole, or when anything else
went wrong that a user would notice.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from queue import Empty
from typing import Any

from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.session import Session

from gvisor_kernel.host import processes
from gvisor_kernel.runtimes.state import records

SECONDS = 120.0
"""Seconds that an answer may take on a busy machine."""


class Lost(Exception):
    """A message did not arrive, or not whole; the text says what."""


@dataclass
class Result:
    status: str
    text: str
    error: str


class Kernel:
    """Call ``start``, and always ``close`` at the end."""

    def __init__(self, name: str) -> None:
        self.manager = AsyncKernelManager(kernel_name=name)
        self.client: AsyncKernelClient | None = None

    async def start(self) -> str:
        """Start the kernel; return the identity of its sandbox."""
        await self.manager.start_kernel()
        await self._connect()
        return await self.identity()

    async def identity(self) -> str:
        assert self.manager.provisioner is not None
        info = await self.manager.provisioner.get_provisioner_info()
        return str(info["sandbox"])

    async def _connect(self) -> None:
        if self.client is not None:
            self.client.stop_channels()
        self.client = self.manager.client(session=Session(key=self.manager.session.key))
        self.client.start_channels(hb=False)
        await self.client.wait_for_ready(timeout=SECONDS)

    async def close(self, *, now: bool = False) -> None:
        if self.client is not None:
            self.client.stop_channels()
            self.client = None
        if self.manager.has_kernel:
            await self.manager.shutdown_kernel(now=now)
        self.manager.cleanup_connection_file()

    async def run(self, code: str, *, on_text: Callable[[], Any] | None = None) -> Result:
        """Run a cell until it has ended and all of its output has arrived.

        ``on_text`` is called, and awaited, when the first output has come.
        """
        assert self.client is not None
        message_id = self.client.execute(code)
        deadline = time.monotonic() + SECONDS
        texts: list[str] = []
        while True:
            message = await self._get("iopub", deadline)
            if message["parent_header"].get("msg_id") != message_id:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "stream":
                texts.append(content["text"])
                if on_text is not None:
                    act, on_text = on_text, None
                    await act()
            elif kind == "error" and content["ename"] == "KernelDied":
                return Result("died", "".join(texts), content["evalue"])
            elif kind == "status" and content["execution_state"] == "idle":
                break
        while True:
            message = await self._get("shell", deadline)
            if message["parent_header"].get("msg_id") == message_id:
                content = message["content"]
                return Result(content["status"], "".join(texts), content.get("ename", ""))

    async def _get(self, channel: str, deadline: float) -> dict[str, Any]:
        assert self.client is not None
        try:
            get = getattr(self.client, f"get_{channel}_msg")
            message: dict[str, Any] = await get(timeout=max(0.0, deadline - time.monotonic()))
        except Empty:
            raise Lost(f"no message on {channel} within {SECONDS:g} s") from None
        return message

    async def expect(self, code: str, text: str) -> None:
        """Run a cell that must print ``text``.

        :raises Lost: when it prints something else
        """
        result = await self.run(code)
        if result.status != "ok":
            raise Lost(f"a cell ended with {result.status} {result.error}")
        if result.text != text:
            raise Lost(f"a cell printed {len(text)} characters, but {len(result.text)} arrived")

    async def until_dead(self) -> None:
        deadline = time.monotonic() + SECONDS
        while await self.manager.is_alive():
            if time.monotonic() > deadline:
                raise Lost("a killed kernel is still reported alive")
            await asyncio.sleep(0.05)


# -- actions of the mixed load -------------------------------------------------------------------


async def cell(kernel: Kernel, number: int) -> None:
    await kernel.expect(f"x = {number}; print(x * x)", f"{number * number}\n")


async def flood(kernel: Kernel, number: int) -> None:
    """Print some megabytes in numbered lines."""
    lines = 20_000 + number % 50_000
    code = f"for i in range({lines}): print(i, 'x' * 80)"
    await kernel.expect(code, "".join(f"{i} {'x' * 80}\n" for i in range(lines)))


async def interrupt(kernel: Kernel, number: int) -> None:
    code = "import time; print('begun', flush=True); time.sleep(1000)"
    result = await kernel.run(code, on_text=kernel.manager.interrupt_kernel)
    if (result.status, result.error) != ("error", "KeyboardInterrupt"):
        raise Lost(f"an interrupted cell ended with {result.status} {result.error}")
    await cell(kernel, number)


async def restart(kernel: Kernel, number: int) -> None:
    await kernel.manager.restart_kernel(now=bool(number % 2))
    assert kernel.client is not None
    await kernel.client.wait_for_ready(timeout=SECONDS)
    await cell(kernel, number)


async def kill_kernel(kernel: Kernel, number: int) -> None:
    """The kernel's process dies, and its cell says so."""
    result = await kernel.run("import os; os.kill(os.getpid(), 9)")
    if result.status != "died":
        raise Lost(f"the cell of a kernel that died ended with {result.status} {result.error}")
    await kernel.until_dead()
    await restart(kernel, number)


async def kill_sandbox(kernel: Kernel, number: int) -> None:
    """The sandbox is killed from outside, in the middle of a cell."""
    victim = ("sentry", "gofer")[number % 2]
    identity = await kernel.identity()

    async def strike() -> None:
        for _, record in records.find_sandboxes():
            if record.identity == identity and victim in record.processes:
                process = record.processes[victim]
                if processes.is_alive(process):
                    os.kill(process.pid, signal.SIGKILL)
                    return
        raise Lost(f"the record of a sandbox names no {victim}")

    code = "import time; print('begun', flush=True); time.sleep(1000)"
    result = await kernel.run(code, on_text=strike)
    if result.status != "died":
        raise Lost(f"the cell of a sandbox without its {victim} ended with {result.status}")
    await kernel.until_dead()
    await restart(kernel, number)


Action = Callable[[Kernel, int], Coroutine[Any, Any, None]]
ACTIONS: dict[str, tuple[Action, int]] = {
    "cells": (cell, 40),
    "output floods": (flood, 8),
    "interrupts": (interrupt, 10),
    "restarts": (restart, 8),
    "deaths of the kernel": (kill_kernel, 4),
    "kills of a sandbox": (kill_sandbox, 4),
}
"""The actions with their relative frequency."""


@contextlib.asynccontextmanager
async def a_kernel(name: str, note: Callable[[str], None], *, now: bool = False) -> Any:
    """Start a kernel and always close it. ``note`` gets the identity of its sandbox."""
    kernel = Kernel(name)
    try:
        note(await kernel.start())
        yield kernel
    finally:
        await kernel.close(now=now)
