"""The part of a runtime's sandbox that the bridge uses, and how the bridge closes it.

The bridge imports no runtime: whatever has these attributes and methods can be linked.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Protocol, runtime_checkable


class LinkedSandbox(Protocol):
    """The part of a runtime's Sandbox that the bridge uses; see ``runtimes.base.Sandbox``."""

    link_in: int
    link_out: int
    exit_fd: int
    gofer_fd: int

    def poll(self) -> int | None: ...
    def memory_used(self) -> int | None: ...
    def memory_kills(self) -> int: ...
    def note_given_back(self, size: int) -> None: ...
    def stderr_tail(self) -> str: ...
    def find_panic(self) -> str: ...
    def find_cause(self) -> str: ...
    def kill(self) -> None: ...
    def close(self) -> None: ...


@runtime_checkable
class PausableSandbox(Protocol):
    """A sandbox that can be stopped, and of which the host sees whether code runs in it; see
    ``PausableSandbox`` and ``MeasuredSandbox`` of ``runtimes.base``."""

    def pause(self) -> None: ...
    def is_busy(self) -> bool: ...
    def find_code_processes(self) -> list[int]: ...
    def measure_code(self, pids: list[int]) -> int | None: ...
    def resume(self) -> None: ...


async def close_sandbox(sandbox: LinkedSandbox) -> None:
    """Call ``sandbox.close`` in a new thread and wait for it.

    No worker of the executor is used, since copying outputs from a Docker engine may take long and
    would block launches. At the exit of the process no thread can start; then close here.
    """
    loop = asyncio.get_running_loop()
    closed: asyncio.Future[None] = loop.create_future()

    def tell(error: BaseException | None) -> None:
        if closed.done():
            return
        if error is None:
            closed.set_result(None)
        else:
            closed.set_exception(error)

    def close() -> None:
        error: BaseException | None = None
        try:
            sandbox.close()
        except BaseException as raised:
            error = raised
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(tell, error)

    try:
        threading.Thread(target=close, name="gvisor-kernel-close").start()
    except RuntimeError:
        sandbox.close()
        return
    await closed  # no timeout: it is finished or undone, by steps that have timeouts
