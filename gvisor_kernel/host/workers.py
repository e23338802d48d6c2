"""Threads for work that blocks, on behalf of coroutines on a loop of somebody else.

A program's loop may be a forked child's copy of its parent's: jupyter_core keeps one for all calls
of a process. The copy's default executor counts threads that the child does not have, so what is
given to it is never done; and the pipe that wakes the loop is shared with the parent and all
siblings, so a wake-up may be lost. Neither is used here: the threads are of this process, and a
timer looks for the answer.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from gvisor_kernel.host.locks import PerProcess

P = ParamSpec("P")
T = TypeVar("T")

THREADS = 32
"""The most that a loop's default executor has, too. A thread is started when it is needed."""
POLL_SECONDS = 0.1
"""Seconds by which a lost wake-up can delay an answer."""


class _Threads(PerProcess):
    def __init__(self) -> None:
        super().__init__()
        self.executor = ThreadPoolExecutor(THREADS, "gvisor-kernel-work")

    def end(self) -> None:
        """Do nothing: Python waits for the threads before it calls this."""


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do ``work`` in a thread, with the caller's context, and return its result. On any loop.

    If the caller is cancelled, work that has begun goes on.

    :raises RuntimeError: when this process is exiting
    :raises Exception: what ``work`` raises
    """
    context = contextvars.copy_context()
    call = partial(context.run, work, *args, **kwargs)
    return await answer_of(_Threads.instance().executor.submit(call))


async def answer_of(answer: Future[T], check: Callable[[], None] = lambda: None) -> T:
    """Await what another thread answers. Cancelled, it cancels ``answer``.

    ``check`` is called before each wait; what it raises ends the wait.
    """
    done = asyncio.wrap_future(answer)
    try:
        while not done.done():
            check()
            await asyncio.wait({done}, timeout=POLL_SECONDS)
    except BaseException:
        done.cancel()
        raise
    return done.result()  # no timeout: it is done
