"""Records the steps of a kernel's start with their times, for ``gvisor-kernel start --trace``.

``step`` may be called anywhere. It records something only inside ``tracing``, in tasks that were
created there, and in workers that run in its context.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

log = logging.getLogger(__name__)


@dataclass
class Trace:
    """Steps in the order in which they ended, with seconds since the start of the trace."""

    began: float = field(default_factory=time.perf_counter)
    steps: list[tuple[str, float]] = field(default_factory=list)

    def note(self, name: str) -> None:
        """Record the end of a step."""
        seconds = time.perf_counter() - self.began
        last = self.steps[-1][1] if self.steps else 0.0
        self.steps.append((name, seconds))
        log.debug("%7.1f ms  %7.1f ms  %s", 1e3 * seconds, 1e3 * (seconds - last), name)


_current: ContextVar[Trace | None] = ContextVar("gvisor_kernel_trace", default=None)


def step(name: str) -> None:
    """Record the end of a step, if there is a current trace."""
    trace = _current.get()
    if trace is not None:
        trace.note(name)


@contextmanager
def tracing(trace: Trace | None = None) -> Iterator[Trace]:
    """Record the steps that end inside this context."""
    trace = trace or _current.get() or Trace()
    token = _current.set(trace)
    try:
        yield trace
    finally:
        _current.reset(token)
