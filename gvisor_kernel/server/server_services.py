"""The services of this extension in one server, from its start to its end."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from typing import Any

from gvisor_kernel.server.doctor import Doctor
from gvisor_kernel.server.kernel_preparer import KernelPreparer, Listings
from gvisor_kernel.server.page_network import Artifacts
from gvisor_kernel.server.recorded import EndedKernels, Recorded
from gvisor_kernel.server.sandboxes import Sandboxes, UnkeptLooks
from gvisor_kernel.server.trust import Notary
from gvisor_kernel.server.watch import Events

THREADS = 2


@dataclass(frozen=True)
class ServerServices:
    """``kernel_manager``: the server's. ``executor``: for what blocks, so that neither the
    server's loop nor the bridge's waits for it."""

    kernel_manager: Any
    executor: ThreadPoolExecutor
    sandboxes: Sandboxes
    recorded: Recorded
    doctor: Doctor
    preparer: KernelPreparer
    events: Events
    ended: EndedKernels
    unkept: UnkeptLooks
    notary: Notary
    listings: Listings
    artifacts: Artifacts
    stopping: Event
    """Set when the server stops: whoever works in a thread ends after its step."""

    @classmethod
    def make(cls, application: Any, *, warm: bool, shared_storage: str = "") -> ServerServices:
        """Make the services for ``application``, the server's. Starts nothing."""
        executor = ThreadPoolExecutor(THREADS, thread_name_prefix="gvisor-kernel-server")
        manager = application.kernel_manager
        events = Events(application.event_logger)
        preparer = KernelPreparer(application, executor, warm)
        return cls(
            manager,
            executor,
            Sandboxes(manager, executor),
            Recorded(executor),
            Doctor(),
            preparer,
            events,
            EndedKernels(application.kernel_spec_manager, events.tell_lost),
            UnkeptLooks(),
            Notary(application.contents_manager, executor),
            Listings(application.event_logger, manager.root_dir, executor, preparer.visit),
            Artifacts(manager.root_dir, shared_storage, application.config, application.log),
            Event(),
        )

    async def end(self) -> None:
        """End all of them."""
        self.stopping.set()
        self.listings.end()
        await self.preparer.end()
        await self.doctor.end()
        self.ended.end()
        self.unkept.end()
        self.artifacts.end()
        self.executor.shutdown(wait=False, cancel_futures=True)
