"""Lets a Jupyter server hold nothing open for kernels that hibernate and that no page looks at.

A server has clients of its own to each kernel: it follows what the kernel publishes, keeps a socket
for its shutdown, and those of a page that has gone. They are closed while the kernel sleeps, and
what is followed is followed again as soon as it is woken, before it is there. On the server's loop.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from gvisor_kernel.kernel.facts import KernelEvent, KernelEvents, Started, Waking
from gvisor_kernel.server.sandboxes import Sandboxes
from gvisor_kernel.strict_json import parse_json

LOOK_SECONDS = 2.0
"""Seconds between looks for kernels that fell asleep, or whose last page has gone."""
KINDS = ("kernel_info", "comm_info", "debug", "history", "is_complete")
MAX_HEADER = 1024 * 1024
"""Bytes of a message's header that are read."""
ANSWERED = {"iopub_welcome", "status", *(f"{kind}_request" for kind in KINDS)}
"""What a page that comes back asks or gets anew, without the kernel (``bridge/memory_answers``)."""


class Resting:
    """The kernels of one server that sleep unseen, from ``start`` to ``end``."""

    def __init__(self, manager: Any, sandboxes: Sandboxes) -> None:
        self._manager = manager
        self._sandboxes = sandboxes
        self._unwatched: set[str] = set()
        """Kernels that the server does not follow."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin. May be called again."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            KernelEvents.instance().watch(self._on_event)
            self._timer = self._loop.call_later(LOOK_SECONDS, self._look)

    def end(self) -> None:
        """Close nothing more. Idempotent."""
        KernelEvents.instance().unwatch(self._on_event)
        if self._timer is not None:
            self._timer.cancel()

    def is_asleep(self, kernel_id: str) -> bool:
        """Return whether a kernel hibernates."""
        kernel = self._sandboxes.find_kernel(kernel_id)
        return kernel is not None and kernel.hibernation.saved is not None

    def _look(self) -> None:
        assert self._loop is not None
        self._timer = self._loop.call_later(LOOK_SECONDS, self._look)
        left = getattr(self._manager, "_kernel_buffers", {})
        for kernel_id in self._manager.list_kernel_ids():
            kernel = self._manager.get_kernel(kernel_id)
            if kernel_id in left or getattr(kernel, "_activity_stream", None) is not None:
                self.begin(kernel_id)

    def begin(self, kernel_id: str) -> None:
        """Close what the server holds open for a kernel, if that is asleep and no page is there."""
        manager, kernel = self._manager, self._sandboxes.find_kernel(kernel_id)
        facts = kernel.describe() if kernel is not None else None
        if facts is None or facts.saved is None or facts.state != "idle":  # it is about to go on
            return
        with suppress(Exception):  # another version or manager: it costs descriptors
            if manager.kernel_model(kernel_id)["connections"]:
                return
            left = getattr(manager, "_kernel_buffers", {}).get(kernel_id)
            if left is not None and all(_is_asked_again(parts) for _, parts in left["buffer"]):
                manager.stop_buffering(kernel_id)
            manager.stop_watching_activity(kernel_id)
            self._unwatched.add(kernel_id)
            # Opened again where it is needed. Nothing public closes it.
            getattr(manager.get_kernel(kernel_id), "_close_control_socket", lambda: None)()

    def _on_event(self, event: KernelEvent) -> None:
        """Called on the bridge's loop."""
        if isinstance(event, (Waking, Started)) and self._loop is not None:
            with suppress(RuntimeError):  # the server's loop is closed
                self._loop.call_soon_threadsafe(self._follow, event.kernel_id)

    def _follow(self, kernel_id: str) -> None:
        if kernel_id in self._unwatched:
            self._unwatched.discard(kernel_id)
            if kernel_id in self._manager:
                self._manager.start_watching_activity(kernel_id)


def _is_asked_again(parts: list[bytes]) -> bool:
    """Return whether a page that has gone, and comes back, does not miss this message."""
    place = parts.index(b"<IDS|MSG>") + 2
    header, parent = (parse_json(part, MAX_HEADER) for part in parts[place : place + 2])
    return parent.get("msg_type", header["msg_type"]) in ANSWERED
