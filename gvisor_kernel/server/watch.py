"""Watches the kernels of a server, and tells what happens as events of Jupyter and as metrics.

Starts and deaths are told by the kernels; memory, bytes and refused requests are looked at once a
second. That reads no file of a kernel without routes, so that many idle kernels cost nothing. Texts
of events may quote a kernel; control characters are escaped.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, get_args

import yaml
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from gvisor_kernel.bridge.deaths import DeathKind, describe_death
from gvisor_kernel.egress.audit import FILE, Entry, parse_entry
from gvisor_kernel.host.log_files import Follower
from gvisor_kernel.kernel.facts import (
    Died,
    Ended,
    Hibernated,
    KernelEvent,
    KernelEvents,
    KernelFacts,
    Resumed,
    Rewound,
    Started,
    StartKind,
    State,
)
from gvisor_kernel.server.documents import make_unkept
from gvisor_kernel.shown_text import printable

SCHEMAS = Path(__file__).with_name("events.yaml")
SCHEMA = "urn:gvisor-kernel:event:{}:v1"
OF_KERNEL = {
    "kernel_id": {"type": "string", "description": "The kernel's id in Jupyter."},
    "kernel_name": {"type": "string", "description": "The name of its kernelspec."},
}
MAX_TEXT = 1000
"""Characters of a text in an event."""


def read_schemas() -> Iterator[dict[str, Any]]:
    """Yield the schemas of the events."""
    for name, own in yaml.safe_load(SCHEMAS.read_text(encoding="utf-8")).items():
        properties = OF_KERNEL | own["properties"]
        yield {
            **{"$id": SCHEMA.format(name), "version": "1", "personal-data": True, "type": "object"},
            **{**own, "properties": properties, "required": list(properties)},
            "additionalProperties": False,
        }


class Events:
    """Emits events with ``logger``, the event logger of a server. On the server's loop."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        for schema in read_schemas():
            logger.register_event_schema(schema)

    def tell(self, event: KernelEvent) -> None:
        """Something has happened to a kernel."""
        emit = partial(self._emit, event.kernel_id, event.kernel_name)
        match event:
            case Started(start=start):
                emit("started", kind=start.kind, seconds=round(start.seconds, 3))
            case Died(death=death):
                emit("died", kind=death.kind, reason=_text(describe_death(death)))
            case Hibernated():
                emit("hibernated", size=event.saved.size, seconds=round(event.seconds, 3))
            case Resumed():
                emit("resumed", seconds=round(event.seconds, 3))
            case Rewound():
                emit("rewound", checkpoint=event.checkpoint, seconds=round(event.seconds, 3))

    def tell_memory(self, kernel_id: str, facts: KernelFacts) -> None:
        """A sandbox has come near its memory limit."""
        used, limit = facts.memory_used, facts.spec.memory_limit
        self._emit(kernel_id, facts.kernel_name, "memory", used=used, limit=limit)

    def tell_lost(self, event: Ended) -> None:
        """A sandbox has ended; told if files have ended with it, or may have."""
        left = event.left
        if left is not None and (left.total or left.more):
            self._emit(event.kernel_id, event.kernel_name, "files-lost", **make_unkept(left))

    def tell_refused(self, kernel_id: str, kernel_name: str, entry: Entry, more: int) -> None:
        """A request to the network was refused; ``more``: how many others with it."""
        self._emit(
            kernel_id,
            kernel_name,
            "egress-refused",
            route=_text(entry.route),
            method=_text(entry.method),
            host=_text(entry.host),
            reason=_text(entry.reason),
            more=more,
        )

    def _emit(self, kernel_id: str, kernel_name: str, name: str, **data: Any) -> None:
        self._logger.emit(
            schema_id=SCHEMA.format(name),
            data={"kernel_id": kernel_id, "kernel_name": _text(kernel_name), **data},
        )


def _text(text: str) -> str:
    return printable(text)[:MAX_TEXT]


BUCKETS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Seconds: a spare takes 0.1 s, a cold start a second, the limit of a start is 60 s."""


class Metrics:
    """The metrics of this process; use ``metrics()``, as a registry takes each name once."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        own: dict[str, Any] = {"namespace": "gvisor_kernel", "registry": registry}
        times = own | {"buckets": BUCKETS}
        self._sandboxes = Gauge("sandboxes", "Kernels by state.", ["state"], **own)
        self._memory = Gauge("memory_bytes", "Memory of the host that all sandboxes hold.", **own)
        self._limit = Gauge(
            "memory_limit_bytes", "The memory limits of all sandboxes, together.", **own
        )
        self._hibernated = Gauge("hibernated", "Kernels that hibernate.", **own)
        self._saved = Gauge(
            "hibernated_bytes", "Bytes on the disk of kernels that hibernate.", **own
        )
        self.resumes = Histogram(
            "resume_seconds", "Seconds until a kernel that hibernated goes on.", **times
        )
        self.starts = Histogram(
            "start_seconds", "Seconds that starts of kernels took, by kind.", ["kind"], **times
        )
        self.deaths = Counter(
            "deaths", "Ends of kernels that nobody asked for, by reason.", ["reason"], **own
        )
        self.bytes = Counter(
            "link_bytes",
            "Bytes on the links between this server and its sandboxes.",
            ["direction"],
            **own,
        )
        self.refused = Counter(
            "refused_requests", "Requests to the network that no route of the kernel allows.", **own
        )
        for state in get_args(State):
            self._sandboxes.labels(state)
        for kind in get_args(StartKind):
            self.starts.labels(kind)
        for reason in get_args(DeathKind):
            self.deaths.labels(reason)
        for direction in ("received", "sent"):
            self.bytes.labels(direction)

    def show(self, kernels: Iterable[KernelFacts]) -> None:
        """Set what is so now."""
        kernels = list(kernels)
        states = Counts(facts.state for facts in kernels)
        for state in get_args(State):
            self._sandboxes.labels(state).set(states[state])
        saved = [facts.saved for facts in kernels if facts.saved is not None]
        self._hibernated.set(len(saved))
        self._saved.set(sum(one.size for one in saved))
        live = [facts for facts in kernels if facts.identity is not None and facts.saved is None]
        self._memory.set(sum(facts.memory_used or 0 for facts in live))
        self._limit.set(sum(facts.spec.memory_limit for facts in live))


@cache
def metrics() -> Metrics:
    """Return the metrics of this process."""
    return Metrics()


@dataclass(frozen=True)
class RefusedRequests:
    """The last refused request, and how many there were with it."""

    entry: Entry
    count: int


class Refusals:
    """Follows the record of one sandbox, until ``close``. One thread at a time."""

    def __init__(self, directory: Path) -> None:
        self._follower = Follower(directory / FILE)

    def read(self) -> RefusedRequests | None:
        """Return what was refused since the last call; None if nothing was. Blocks."""
        last, count = None, 0
        for line in self._follower.read():
            entry = parse_entry(line)
            if entry is not None and is_refused(entry):
                last, count = entry, count + 1 + entry.more
        return None if last is None else RefusedRequests(last, count)

    def close(self) -> None:
        """Close the file."""
        self._follower.close()


def is_refused(entry: Entry) -> bool:
    """Return whether nothing of a request was sent, because no rule allows it."""
    return bool(entry.reason) and not (entry.is_open or entry.id or entry.up or entry.down)


log = logging.getLogger(__name__)

SECONDS = 1.0
HIGH, LOW = 0.8, 0.7
"""Shares of the memory limit: an event comes above the first, and again only after the second."""


class Watch:
    """Watches from ``start`` to ``end``. On the server's loop."""

    def __init__(
        self, events: Events, executor: Executor, find: Callable[[], Mapping[str, KernelFacts]]
    ) -> None:
        """``find`` returns the facts of the server's kernels by their id; it does not block."""
        self._events = events
        self._executor = executor
        self._find = find
        self._loop = asyncio.get_running_loop()
        self._carried: dict[str, tuple[int, int]] = {}
        self._high: set[str] = set()
        self._refusals: dict[str, Refusals] = {}
        """The readers of refusals, by the identity of the sandbox."""
        self._timer: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None
        self._ended = False

    def start(self) -> None:
        """Begin."""
        KernelEvents.instance().watch(self._on_kernel_event)
        metrics()
        self._schedule()

    def _schedule(self) -> None:
        if not self._ended:
            self._timer = self._loop.call_later(SECONDS, self._begin_look)

    def _begin_look(self) -> None:
        self._looking = self._loop.create_task(self._look_and_go_on())

    async def _look_and_go_on(self) -> None:
        try:
            await self.look()
        except Exception:
            log.exception("The kernels could not be watched")
        finally:
            self._schedule()

    async def look(self) -> None:
        """Look at all kernels once."""
        kernels = self._find()
        metrics().show(kernels.values())
        self._count_bytes(kernels)
        for kernel_id, facts in kernels.items():
            self._check_memory(kernel_id, facts)
        self._high &= kernels.keys()
        with_routes = {
            facts.identity: (kernel_id, facts)
            for kernel_id, facts in kernels.items()
            if facts.routes and facts.identity is not None
        }
        for identity in self._refusals.keys() - with_routes.keys():
            self._refusals.pop(identity).close()
        for identity, (kernel_id, facts) in with_routes.items():
            assert facts.directory is not None
            refusals = self._refusals.setdefault(identity, Refusals(facts.directory))
            found = await self._loop.run_in_executor(self._executor, refusals.read)
            if found is not None:
                self._tell_refused(kernel_id, facts, found)

    def _count_bytes(self, kernels: Mapping[str, KernelFacts]) -> None:
        carried = {}
        for kernel_id, facts in kernels.items():
            received, sent = self._carried.get(kernel_id, (0, 0))
            if facts.received < received or facts.sent < sent:  # another kernel of the same id
                received = sent = 0
            metrics().bytes.labels("received").inc(facts.received - received)
            metrics().bytes.labels("sent").inc(facts.sent - sent)
            carried[kernel_id] = (facts.received, facts.sent)
        self._carried = carried

    def _check_memory(self, kernel_id: str, facts: KernelFacts) -> None:
        used = facts.memory_used or 0
        if used < LOW * facts.spec.memory_limit:
            self._high.discard(kernel_id)
        elif used > HIGH * facts.spec.memory_limit and kernel_id not in self._high:
            self._high.add(kernel_id)
            self._events.tell_memory(kernel_id, facts)

    def _tell_refused(self, kernel_id: str, facts: KernelFacts, refused: RefusedRequests) -> None:
        metrics().refused.inc(refused.count)
        more = refused.count - 1
        self._events.tell_refused(kernel_id, facts.kernel_name, refused.entry, more)

    def _on_kernel_event(self, event: KernelEvent) -> None:
        """Called on the bridge's loop."""
        try:
            self._loop.call_soon_threadsafe(self._take, event)
        except RuntimeError:  # the server's loop is closed
            KernelEvents.instance().unwatch(self._on_kernel_event)

    def _take(self, event: KernelEvent) -> None:
        if isinstance(event, Started):
            metrics().starts.labels(event.start.kind).observe(event.start.seconds)
        elif isinstance(event, Died):
            metrics().deaths.labels(event.death.kind).inc()
        elif isinstance(event, Resumed):
            metrics().resumes.observe(event.seconds)
        self._events.tell(event)

    async def end(self) -> None:
        """Watch no more."""
        self._ended = True
        KernelEvents.instance().unwatch(self._on_kernel_event)
        if self._timer is not None:
            self._timer.cancel()
        if self._looking is not None:
            self._looking.cancel()
        for refusals in self._refusals.values():
            refusals.close()
