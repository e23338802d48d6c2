"""The bridge's own thread and loop: one a process, started with its first kernel.

A manager of Jupyter's may have no running loop between two calls; nothing of ours may live there.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import os
import threading
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import zmq

from gvisor_kernel.bridge.clients import Address
from gvisor_kernel.bridge.endpoints import make_base, owner_name, remove_base, sweep_bases
from gvisor_kernel.bridge.identity import KernelIdentity
from gvisor_kernel.bridge.kernel import KernelBridge
from gvisor_kernel.bridge.sandbox_link import LinkedSandbox
from gvisor_kernel.bridge.sharing import Sharing
from gvisor_kernel.errors import LaunchError
from gvisor_kernel.host.locks import ThreadLock
from gvisor_kernel.link.frames import VIEWED

T = TypeVar("T")

SIGNERS = 2
"""Threads that check and sign large messages, of all kernels."""
EXIT_SECONDS = 10.0
"""How long the end of this process waits for its sandboxes to be removed."""


LOOK_SECONDS = 0.1
"""How long a wake-up that was lost can delay an answer."""


class Bridge:
    """Use ``Bridge.instance()``. Its methods may be called from any thread."""

    _instance: Bridge | None = None
    _lock = ThreadLock()

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._stopped = False
        self._kernels: set[KernelBridge] = set()
        self._bases: dict[Path, Path] = {}
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 65536)
        # What pyzmq needs to send large messages uncopied, a thread and descriptors, comes with the
        # first: to be had now, and not in the middle of a message.
        zmq.Frame(bytes(2 * VIEWED), copy=False)
        self.executor = concurrent.futures.ThreadPoolExecutor(8, "gvisor-kernel-launch")
        # Apart from launches, each of which may take a worker for seconds.
        self._signers = concurrent.futures.ThreadPoolExecutor(SIGNERS, "gvisor-kernel-sign")
        self._sharing = Sharing()
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(self.executor)
        self._thread = threading.Thread(target=self._run, name="gvisor-kernel-bridge", daemon=True)
        self._thread.start()

    @classmethod
    def instance(cls) -> Bridge:
        """This process's bridge; a forked child gets one of its own."""
        with cls._lock:
            if cls._instance is None or cls._instance._pid != os.getpid():
                cls._instance = cls()
                atexit.register(cls._instance.stop)
            return cls._instance

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    @property
    def ended(self) -> bool:
        """Its kernels have ended with it, or belong to the process that this one was forked from.

        Nothing is to be called any more then: nobody would answer.
        """
        return self._stopped or self._pid != os.getpid()

    def call(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run ``work`` on the bridge's loop. ``awaited`` awaits the future on another one."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def awaited(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` on the bridge's loop and await it on the running one, whosever that is.

        That loop is looked after by a timer: its wake-up may be lost. A process that forks after
        it has used Jupyter shares the loop that jupyter_core keeps with its children, the pipe by
        which other threads wake it included, and any of them may read what was meant for another.

        Raises what ``work`` does, and LaunchError when the bridge's thread has ended.
        """
        done = asyncio.wrap_future(self.call(work))
        try:
            while not done.done():
                if not self._thread.is_alive():
                    work.close()
                    raise LaunchError("No kernel can be reached any more: this process ends.")
                await asyncio.wait({done}, timeout=LOOK_SECONDS)
        except (asyncio.CancelledError, LaunchError):
            done.cancel()
            raise
        return done.result()

    async def open_kernel(
        self, identity: KernelIdentity, address: Address, root: Path
    ) -> KernelBridge:
        """A kernel's client sockets, bound, without a sandbox yet. On the loop.

        ``root`` is a private directory for Unix sockets. Raises LaunchError, StateError.
        """
        base = self._bases.get(root)
        if base is None or not base.is_dir():  # the first one, or somebody has removed it
            sweep_bases(root)
            remove_base(root, owner_name(os.getpid()) or "")
            base = self._bases[root] = make_base(root)
        kernel = KernelBridge(
            *(self._context, identity, address, base, self._signers, self._sharing)
        )
        self._kernels.add(kernel)
        return kernel

    async def close_kernel(self, kernel: KernelBridge) -> None:
        """Close ``kernel`` and forget it. On the loop; idempotent."""
        await kernel.close()
        self._kernels.discard(kernel)

    async def _detach_all(self) -> list[LinkedSandbox]:
        sandboxes = [await kernel.detach() for kernel in tuple(self._kernels)]
        return [sandbox for sandbox in sandboxes if sandbox is not None]

    def stop(self) -> None:
        """End every kernel; called when the process exits.

        Sandboxes are closed here and not on the executor: by now Python lets it start nothing.
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
