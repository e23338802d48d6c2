"""What the handlers of one server share."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from gvisor_kernel.server.sandboxes import Sandboxes


@dataclass(frozen=True)
class Parts:
    """``kernel_manager``: the server's. ``executor``: for what blocks, so that neither the
    server's loop nor the bridge's waits for it."""

    kernel_manager: Any
    executor: Executor
    sandboxes: Sandboxes

    async def end(self) -> None:
        """End all of them."""
        self.executor.shutdown(wait=False, cancel_futures=True)
