"""The event loop of sandboxes whose program has none: one thread for each process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from gvisor_kernel.bridge.thread import call_on
from gvisor_kernel.errors import SandboxError
from gvisor_kernel.host.locks import PerProcess
from gvisor_kernel.host.quiet_loop import make_quiet_loop, run_quietly

T = TypeVar("T")

END_SECONDS = 20.0
"""Seconds that the sandboxes that are still open may take to end when the process exits."""
CANCEL_SECONDS = 15.0
"""Seconds that a call may take to end after its Ctrl-C: its code is interrupted, or killed."""


class LoopThread(PerProcess):
    """Runs coroutines for blocking callers. Use ``LoopThread.instance()``. Any thread."""

    def __init__(self) -> None:
        super().__init__()
        self._loop = make_quiet_loop()
        self._open: set[Any] = set()
        self._ended = False
        self._thread = threading.Thread(
            target=self._run_loop, name="gvisor-kernel-api", daemon=True
        )
        self._thread.start()

    def _run_loop(self) -> None:
        run_quietly(self._loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` and return its result.

        Ctrl-C, or another exception of a signal's handler, cancels it, waits until it has ended,
        and is raised.

        :raises SandboxError: when this process is exiting, or is a forked child with the parent's
        """
        if self._ended or self.is_inherited:
            work.close()
            reason = "exiting" if self._ended else "a forked child of the one that made it"
            raise SandboxError(f"The sandbox cannot be used: this process is {reason}.")
        if threading.current_thread() is self._thread:  # it would wait for itself
            work.close()
            raise SandboxError("The sandbox cannot be used in the thread that serves it.")
        future = call_on(self._loop, work)
        try:
            return future.result()  # no timeout: the program's code: its timeout, or Ctrl-C
        except BaseException:
            if not future.done():  # a signal's handler has raised it, such as that of Ctrl-C
                _cancel(future)
            raise

    def finish(self, work: Coroutine[Any, Any, object]) -> None:
        """Run ``work``, whose end matters to nobody; never raises.

        Called from a generator's end, which may come in any thread, at any time.
        """
        if self._ended or self.is_inherited:
            work.close()
        elif threading.current_thread() is self._thread:
            call_on(self._loop, work)
        else:
            self.run(work)

    def note_open(self, closable: Any) -> None:
        """Close ``closable`` (its ``close`` is a coroutine function) when this process exits.
        Not for what outlives it."""
        self._open.add(closable)

    def note_closed(self, closable: Any) -> None:
        """Undo ``note_open``."""
        self._open.discard(closable)

    def end(self) -> None:
        """Close what is open. Called when this process exits. Idempotent."""
        if self._ended or self.is_inherited:
            return
        self._ended = True

        async def close_all() -> None:
            closing = [closable.close() for closable in tuple(self._open)]
            # no timeout: bounded by END_SECONDS
            await asyncio.gather(*closing, return_exceptions=True)

        future = call_on(self._loop, close_all())
        with suppress(BaseException):  # an exit must not hang; what is left has another sweep
            future.result(END_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)


def _cancel(future: Future[Any]) -> None:
    """Cancel a call, and wait until its coroutine has ended."""
    future.cancel()
    ended = threading.Event()
    future.add_done_callback(lambda _: ended.set())
    with suppress(KeyboardInterrupt):
        ended.wait(CANCEL_SECONDS)
