"""The bridge's own thread and event loop: one per process, started with the first kernel.

A manager of Jupyter may have no running loop between two calls, so the bridge cannot use that one.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import zmq

from gvisor_kernel.bridge.addresses import (
    Address,
    KernelIdentity,
    make_base,
    owner_name,
    remove_base,
    sweep_bases,
)
from gvisor_kernel.bridge.kernel import KernelBridge
from gvisor_kernel.bridge.limits import Sharing
from gvisor_kernel.bridge.linked_sandbox import LinkedSandbox
from gvisor_kernel.errors import LaunchError
from gvisor_kernel.host.locks import PerProcess
from gvisor_kernel.host.quiet_loop import make_quiet_loop, run_quietly
from gvisor_kernel.host.workers import answer_of
from gvisor_kernel.link.frames import VIEW_ABOVE

T = TypeVar("T")

SIGNER_THREADS = 2
"""Threads that check and sign large messages of all kernels."""
EXIT_SECONDS = 10.0
"""Seconds that the exit of this process waits for the removal of its sandboxes."""


def call_on(
    loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]
) -> concurrent.futures.Future[T]:
    """Schedule ``work`` on ``loop``, which another thread runs.

    As ``asyncio.run_coroutine_threadsafe``; but if nobody waits for ``work`` any more, its error
    is nobody's: asyncio prints no traceback of it.
    """
    answer: concurrent.futures.Future[T] = concurrent.futures.Future()

    def begin() -> None:
        task = loop.create_task(work)
        task.add_done_callback(finish)
        answer.add_done_callback(
            lambda done: done.cancelled() and loop.call_soon_threadsafe(task.cancel)
        )

    def finish(task: asyncio.Task[T]) -> None:
        if task.cancelled():
            answer.cancel()
        error = None if task.cancelled() else task.exception()
        if not answer.set_running_or_notify_cancel():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(task.result())  # no timeout: it is done

    loop.call_soon_threadsafe(begin)
    return answer


class Bridge(PerProcess):
    """All kernels of a process. Use ``Bridge.instance()``. Any thread, where not said otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self._stopped = False
        self._kernels: set[KernelBridge] = set()
        self._bases: dict[Path, Path] = {}
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 65536)
        # With the first uncopied frame pyzmq starts a thread and opens descriptors. If these are
        # not available, that must fail here and not in the middle of a message.
        zmq.Frame(bytes(2 * VIEW_ABOVE), copy=False)
        self.executor = concurrent.futures.ThreadPoolExecutor(8, "gvisor-kernel-launch")
        # A pool of its own, as each launch may occupy a worker for seconds.
        self._signers = concurrent.futures.ThreadPoolExecutor(SIGNER_THREADS, "gvisor-kernel-sign")
        self._sharing = Sharing()
        self.restores = asyncio.Semaphore(max(2, os.cpu_count() or 1))
        """Turns of saved kernels that are restored. Many at once would all take until the end."""
        self._loop = make_quiet_loop()
        self._loop.set_default_executor(self.executor)
        self._thread = threading.Thread(
            target=self._run_loop, name="gvisor-kernel-bridge", daemon=True
        )
        self._thread.start()

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        run_quietly(self._loop)

    @property
    def ended(self) -> bool:
        """Return whether the bridge was stopped, or belongs to the parent of this forked process.

        Call nothing any more then: there would be no answer.
        """
        return self._stopped or self.is_inherited

    def call(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Schedule ``work`` on the bridge's loop. ``run`` also awaits it."""
        return call_on(self._loop, work)

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` on the bridge's loop and await it on the running loop, by ``answer_of``.

        :raises LaunchError: when the bridge's thread has ended
        :raises Exception: what ``work`` raises
        """

        def check() -> None:
            if not self._thread.is_alive():
                work.close()
                raise LaunchError("The kernel cannot be reached: this process is exiting.")

        return await answer_of(self.call(work), check)

    async def open_kernel(
        self, identity: KernelIdentity, address: Address, root: Path
    ) -> KernelBridge:
        """Bind the client sockets of a kernel that has no sandbox yet. On the bridge's loop.

        ``root`` is a private directory for Unix sockets.

        :raises LaunchError: when the sockets cannot be opened
        :raises StateError: when ``root`` cannot be used
        """
        base = self._bases.get(root)
        if base is None or not base.is_dir():  # the first kernel, or the directory was removed
            sweep_bases(root)
            remove_base(root, owner_name(os.getpid()) or "")
            base = self._bases[root] = make_base(root)
        kernel = KernelBridge(
            *(self._context, identity, address, base, self._signers, self._sharing)
        )
        self._kernels.add(kernel)
        return kernel

    async def close_kernel(self, kernel: KernelBridge) -> None:
        """Close ``kernel`` and forget it. On the bridge's loop. Idempotent."""
        await kernel.close()
        self._kernels.discard(kernel)

    async def _detach_all(self) -> list[LinkedSandbox]:
        ending = [kernel for kernel in self._kernels if not kernel.outlives]
        sandboxes = [await kernel.detach() for kernel in ending]
        return [sandbox for sandbox in sandboxes if sandbox is not None]

    def end(self) -> None:
        """End every kernel that does not outlive this process. Called when that exits. Blocks.

        Sandboxes are closed in this thread: at exit the executor accepts no work.
        """
        if self.ended:
            return
        sandboxes: list[LinkedSandbox] = []
        with suppress(concurrent.futures.TimeoutError, RuntimeError):
            sandboxes = self.call(self._detach_all()).result(EXIT_SECONDS)
        self._stopped = True
        for sandbox in sandboxes:
            sandbox.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(EXIT_SECONDS)
        self._context.destroy(linger=200)
        for root in self._bases:
            remove_base(root, owner_name(os.getpid()) or "")
