"""Metrics for Prometheus, in the registry that Jupyter's server shows at its ``/metrics``.

No label names a kernel, a sandbox, a folder or a person.
"""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Iterable
from functools import cache
from typing import get_args

from prometheus_client import Counter, Gauge, Histogram

from gvisor_kernel.kernel.facts import DeathKind, KernelFacts, StartKind, State

BUCKETS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Seconds: a spare takes 0.1 s, a cold start a second, the limit of a start is 60 s."""


class Metrics:
    """The metrics of this process; use ``metrics()``, as a registry takes each name once."""

    def __init__(self) -> None:
        self._sandboxes = Gauge("gvisor_kernel_sandboxes", "Kernels by state.", ["state"])
        self._memory = Gauge(
            "gvisor_kernel_memory_bytes", "Memory of the host that all sandboxes hold."
        )
        self._limit = Gauge(
            "gvisor_kernel_memory_limit_bytes", "The memory limits of all sandboxes, together."
        )
        self._starts = Histogram(
            "gvisor_kernel_start_seconds",
            "Seconds that starts of kernels took, by kind.",
            ["kind"],
            buckets=BUCKETS,
        )
        self._deaths = Counter(
            "gvisor_kernel_deaths", "Ends of kernels that nobody asked for, by reason.", ["reason"]
        )
        self._bytes = Counter(
            "gvisor_kernel_link_bytes",
            "Bytes on the links between this server and its sandboxes.",
            ["direction"],
        )
        self._refused = Counter(
            "gvisor_kernel_refused_requests",
            "Requests to the network that no route of the kernel allows.",
        )
        for state in get_args(State):
            self._sandboxes.labels(state)
        for kind in get_args(StartKind):
            self._starts.labels(kind)
        for reason in get_args(DeathKind):
            self._deaths.labels(reason)
        for direction in ("received", "sent"):
            self._bytes.labels(direction)

    def show(self, kernels: Iterable[KernelFacts]) -> None:
        """Set what is so now."""
        kernels = list(kernels)
        states = Counts(facts.state for facts in kernels)
        for state in get_args(State):
            self._sandboxes.labels(state).set(states[state])
        live = [facts for facts in kernels if facts.identity is not None]
        self._memory.set(sum(facts.memory_used or 0 for facts in live))
        self._limit.set(sum(facts.spec.memory_limit for facts in live))

    def count_start(self, kind: StartKind, seconds: float) -> None:
        """Count a start."""
        self._starts.labels(kind).observe(seconds)

    def count_death(self, kind: DeathKind) -> None:
        """Count a death."""
        self._deaths.labels(kind).inc()

    def count_bytes(self, received: int, sent: int) -> None:
        """Count bytes on links."""
        self._bytes.labels("received").inc(received)
        self._bytes.labels("sent").inc(sent)

    def count_refused(self, requests: int) -> None:
        """Count requests to the network that were refused."""
        self._refused.inc(requests)


@cache
def metrics() -> Metrics:
    """Return the metrics of this process."""
    return Metrics()
