"""What a start of a kernel waits for, step by step: noted where it happens, shown by whoever asks.

``step`` may be called from anywhere, and notes nothing unless somebody listens: in ``tracing``,
in tasks that were made there, and in workers that were given its context.
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
    """Steps in the order in which they ended, with the seconds since the trace began."""

    began: float = field(default_factory=time.perf_counter)
    steps: list[tuple[str, float]] = field(default_factory=list)

    def note(self, words: str) -> None:
        """A step has ended."""
        seconds = time.perf_counter() - self.began
        last = self.steps[-1][1] if self.steps else 0.0
        self.steps.append((words, seconds))
        log.debug("%7.1f ms  %7.1f ms  %s", 1e3 * seconds, 1e3 * (seconds - last), words)


_current: ContextVar[Trace | None] = ContextVar("gvisor_kernel_trace", default=None)


def step(words: str) -> None:
    """Note that a step has ended, if somebody traces."""
    trace = _current.get()
    if trace is not None:
        trace.note(words)


@contextmanager
def tracing(trace: Trace | None = None) -> Iterator[Trace]:
    """Note the steps of what is done inside."""
    trace = trace or _current.get() or Trace()
    token = _current.set(trace)
    try:
        yield trace
    finally:
        _current.reset(token)
