"""Events for Jupyter's event system: the schemas, and how what happens becomes an event.

Texts may quote a kernel; control characters are escaped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gvisor_kernel.bridge.deaths import describe_death
from gvisor_kernel.egress.audit import Entry
from gvisor_kernel.kernel.facts import Died, Ended, KernelFacts, Started
from gvisor_kernel.server.documents import make_unkept
from gvisor_kernel.shown_text import printable

SCHEMAS = Path(__file__).parent / "event_schemas"
STARTED = "urn:gvisor-kernel:event:started:v1"
DIED = "urn:gvisor-kernel:event:died:v1"
MEMORY = "urn:gvisor-kernel:event:memory:v1"
LOST = "urn:gvisor-kernel:event:files-lost:v1"
REFUSED = "urn:gvisor-kernel:event:egress-refused:v1"
MAX_TEXT = 1000
"""Characters of a text in an event."""


class Events:
    """Emits events with ``logger``, the event logger of a server. On the server's loop."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        for path in sorted(SCHEMAS.glob("*.yaml")):
            logger.register_event_schema(path)

    def tell_started(self, event: Started) -> None:
        """A kernel was started."""
        self._emit(
            STARTED,
            event.kernel_id,
            event.kernel_name,
            kind=event.start.kind,
            seconds=round(event.start.seconds, 3),
        )

    def tell_died(self, event: Died) -> None:
        """A kernel died."""
        kind, reason = event.death.kind, _text(describe_death(event.death))
        self._emit(DIED, event.kernel_id, event.kernel_name, kind=kind, reason=reason)

    def tell_memory(self, kernel_id: str, facts: KernelFacts) -> None:
        """A sandbox has come near its memory limit."""
        self._emit(
            MEMORY,
            kernel_id,
            facts.kernel_name,
            used=facts.memory_used,
            limit=facts.spec.memory_limit,
        )

    def tell_lost(self, event: Ended) -> None:
        """A sandbox has ended; told if files have ended with it, or may have."""
        left = event.left
        if left is not None and (left.total or left.more):
            self._emit(
                LOST,
                event.kernel_id,
                event.kernel_name,
                **make_unkept(left),
            )

    def tell_refused(self, kernel_id: str, kernel_name: str, entry: Entry, more: int) -> None:
        """A request to the network was refused; ``more``: how many others with it."""
        self._emit(
            REFUSED,
            kernel_id,
            kernel_name,
            route=_text(entry.route),
            method=_text(entry.method),
            host=_text(entry.host),
            reason=_text(entry.reason),
            more=more,
        )

    def _emit(self, schema: str, kernel_id: str, kernel_name: str, **data: Any) -> None:
        self._logger.emit(
            schema_id=schema,
            data={"kernel_id": kernel_id, "kernel_name": _text(kernel_name), **data},
        )


def _text(text: str) -> str:
    return printable(text)[:MAX_TEXT]
