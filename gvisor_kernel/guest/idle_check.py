"""Decides whether a kernel is idle. Runs in the kernel process, in the reading thread of its link.

Idle means that nothing happens in the kernel until a message or a signal comes, so that the whole
sandbox may be stopped until then. Everything not known to be harmless counts as work.
"""

from __future__ import annotations

import _thread
import asyncio
import os
import signal
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

FRAMEWORKS = ("asyncio", "ipykernel", "tornado", "zmq")
"""Packages whose coroutines serve the kernel. Coroutines of other packages count as work."""
SERVING_MODULES = ("IPython.", "ipykernel.", "zmq.")
"""Modules whose threads only wait for requests. Threads of subshells run cells, too."""
SUBSHELL = "ipykernel.subshell"
REQUEST_COROUTINES = ("do_execute", "process_control")
"""Names of coroutines of ipykernel that are in the middle of a request."""


class IdleCheck:
    """Inspects one IPKernelApp.

    The threads and descriptors that exist when it is created count as the kernel's own. It cannot
    see work of native code in threads that Python does not know.
    """

    def __init__(self, application: Any) -> None:
        self._kernel = application.kernel
        self._threads = frozenset(threading.enumerate())
        self._loop: Any = self._kernel.io_loop.asyncio_loop
        self._watched = frozenset(self._iter_watched())
        self._subshells: Any = weakref.WeakKeyDictionary()
        """The descriptors that each subshell's loop watched at first, by its thread."""
        self._control: Any = getattr(self._kernel, "control_thread", None)

    def is_idle(self) -> bool:
        """Return whether the kernel has nothing to do. The link calls it for an IDLE_QUERY."""
        return not self.find_work()

    def find_work(self) -> str:
        """Describe some work that the kernel has to do; empty if it is idle."""
        try:
            return (
                self._find_in_main_thread()
                or self._find_thread()
                or self._find_request()
                or self._find_task(self._loop)
                or _find_system_timer()
            )
        except Exception as error:  # an unknown version of Python or ipykernel
            return f"{type(error).__name__}: {error}"

    # -- the main thread -------------------------------------------------------------------------

    def _iter_watched(self) -> Iterator[int]:
        return iter(list(self._loop._selector.get_map()))

    def _find_in_main_thread(self) -> str:
        if self._kernel.eventloop is not None:
            return "the loop of a user interface"
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        if not _waits_in_loop(frame):
            return "code in the main thread"
        if self._loop._ready:
            return "a callback"
        if any(not timer.cancelled() for timer in list(self._loop._scheduled)):
            return "a timer of the loop"
        if not self._watched.issuperset(self._iter_watched()):
            return "a descriptor that the loop watches"
        return ""

    @staticmethod
    def _find_task(loop: Any) -> str:
        for task in asyncio.all_tasks(loop):
            if not task.done() and not _is_serving_coroutine(task.get_coro()):
                return "a task of the loop"
        return ""

    # -- other threads ---------------------------------------------------------------------------

    def _find_request(self) -> str:
        """Find a request on the control channel. Its thread answers some itself (memory usage)."""
        if self._control is None:
            return ""
        frame = sys._current_frames().get(self._control.ident)
        return self._find_in_loop(self._control, frame, "a request on control")

    def _find_in_loop(self, thread: Any, frame: Any, what: str) -> str:
        """Find work in the loop of one of ipykernel's threads."""
        loop = thread.io_loop.asyncio_loop
        if not _waits_in_loop(frame) or loop._ready:
            return what
        return self._find_task(loop)

    def _find_in_subshell(self, thread: Any, frame: Any) -> str:
        """Find work of a subshell: cells run in its thread and may leave something in its loop."""
        loop = thread.io_loop.asyncio_loop
        watched = frozenset(loop._selector.get_map())
        if not watched.issubset(self._subshells.setdefault(thread, watched)):
            return "a descriptor that a subshell watches"
        if any(not timer.cancelled() for timer in list(loop._scheduled)):
            return "a timer of a subshell"
        return self._find_in_loop(thread, frame, f"the thread {thread.name}")

    def _find_thread(self) -> str:
        """Find a thread that may do work, also one started without the module ``threading``."""
        threads: dict[int | None, Any] = {t.ident: t for t in threading.enumerate()}
        if _thread._count() >= len(threads):  # it counts all threads except the main one
            return "a thread without a name"
        for ident, frame in sys._current_frames().items():
            thread = threads.get(ident)
            if thread is None:
                return "a thread without a name"
            if thread in self._threads or _is_serving_thread(thread, frame):
                continue
            if type(thread).__module__ != SUBSHELL:
                return f"the thread {thread.name}"
            work = self._find_in_subshell(thread, frame)
            if work:
                return work
        return ""


def _waits_in_loop(frame: Any) -> bool:
    """Return whether a thread waits in asyncio's event loop, and in no nested one."""
    if frame is None or frame.f_globals.get("__name__") != "selectors":
        return False
    loops = 0
    caller = frame.f_back
    if caller is None or caller.f_code.co_name != "_run_once":
        return False
    while caller is not None:
        if caller.f_globals.get("__name__") == "asyncio.base_events":
            loops += caller.f_code.co_name == "_run_once"
        caller = caller.f_back
    return loops == 1


def _walk_awaited(coroutine: Any) -> Iterator[Any]:
    """Yield a coroutine, the coroutine that it awaits, and so on."""
    yield coroutine
    while hasattr(coroutine.cr_await, "cr_await"):
        coroutine = coroutine.cr_await
        yield coroutine


def _is_serving_coroutine(coroutine: Any) -> bool:
    """Return whether this coroutine of ipykernel only waits for a request.

    In ipykernel 6 the coroutine that receives requests also runs the cells.
    """
    chain = [
        (str(c.cr_frame.f_globals.get("__name__")).partition(".")[0], c.cr_code.co_name)
        for c in _walk_awaited(coroutine)
    ]
    return chain[0][0] == "ipykernel" and all(
        package in FRAMEWORKS and name not in REQUEST_COROUTINES for package, name in chain
    )


def _is_serving_thread(thread: Any, frame: Any) -> bool:
    """Return whether a thread that was started later only waits for others, without a timer."""
    module = type(thread).__module__
    if module.startswith(SERVING_MODULES) and module != SUBSHELL:
        return True
    if frame.f_code.co_name == "_worker":
        return bool(frame.f_globals.get("__name__") == "concurrent.futures.thread")  # idle
    if module == "tqdm._monitor":  # this thread stays after the first progress bar
        return not list(thread.get_instances())
    return False


# -- the process ---------------------------------------------------------------------------------


def _find_system_timer() -> str:
    for which in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
        if signal.getitimer(which)[0]:
            return "an alarm"
    for name in os.listdir("/proc/self/fd"):
        try:
            if "timerfd" in os.readlink(f"/proc/self/fd/{name}"):
                return "a timer"
        except OSError:  # the descriptor of the directory itself is closed already
            continue
    return ""
