"""Whether a kernel has anything to do by itself. Asked in its own process, by the link's thread.

Quiet means: nothing will happen here before a message or a signal comes, so the whole sandbox may
be stopped until then. Whatever is not known to be harmless is taken for something to do.
"""

from __future__ import annotations

import _thread
import asyncio
import os
import signal
import sys
import threading
import weakref
from typing import Any, Dict, Iterator, Optional

FRAMEWORKS = ("asyncio", "ipykernel", "tornado", "zmq")
"""Packages whose coroutines serve the kernel; a cell's are somebody else's."""
SERVING = ("IPython.", "ipykernel.", "zmq.")
"""Modules whose threads only wait for what the kernel tells them; a subshell's run cells, too."""
SUBSHELL = "ipykernel.subshell"
AT_WORK = ("do_execute", "process_control")
"""Of the coroutines that wait for requests, those that are in the middle of one."""


class Quietness:
    """Looks at one IPKernelApp, whose threads and descriptors at construction are known as its own.

    Not seen: what native code keeps in threads of its own, unknown to Python.
    """

    def __init__(self, application: Any) -> None:
        self._kernel = application.kernel
        self._threads = frozenset(threading.enumerate())
        self._loop: Any = self._kernel.io_loop.asyncio_loop
        self._watched = frozenset(self._watched_now())
        self._subshells: Any = weakref.WeakKeyDictionary()
        """What the loop of each watched when it was first seen."""
        self._control: Any = getattr(self._kernel, "control_thread", None)

    def is_quiet(self) -> bool:
        return not self.find_work()

    def find_work(self) -> str:
        """What there is to do, in a few words; an empty text if nothing."""
        try:
            return (
                self._find_in_loop()
                or self._find_thread()
                or self._find_request()
                or self._find_task(self._loop)
                or _find_timer_of_the_system()
            )
        except Exception as error:  # another Python or ipykernel than those that are known
            return f"{type(error).__name__}: {error}"

    # -- the main thread -------------------------------------------------------------------------

    def _watched_now(self) -> Iterator[int]:
        return iter(list(self._loop._selector.get_map()))

    def _find_in_loop(self) -> str:
        if self._kernel.eventloop is not None:
            return "the loop of a user interface"
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        if not _waits_in_loop(frame):
            return "code in the main thread"
        if self._loop._ready:
            return "a callback"
        if any(not timer.cancelled() for timer in list(self._loop._scheduled)):
            return "a timer of the loop"
        if not self._watched.issuperset(self._watched_now()):
            return "a descriptor that the loop watches"
        return ""

    @staticmethod
    def _find_task(loop: Any) -> str:
        for task in asyncio.all_tasks(loop):
            if not task.done() and not _is_serving(task.get_coro()):
                return "a task of the loop"
        return ""

    # -- other threads ---------------------------------------------------------------------------

    def _find_request(self) -> str:
        """On the control channel, whose thread also answers: how much memory is used, say."""
        if self._control is None:
            return ""
        frame = sys._current_frames().get(self._control.ident)
        return self._find_in_loop_of(self._control, frame, "a request on control")

    def _find_in_loop_of(self, thread: Any, frame: Any, what: str) -> str:
        """Of one of ipykernel's threads that has a loop."""
        loop = thread.io_loop.asyncio_loop
        if not _waits_in_loop(frame) or loop._ready:
            return what
        return self._find_task(loop)

    def _find_in_subshell(self, thread: Any, frame: Any) -> str:
        """Cells run in it as they do in the main thread, and may leave something in its loop."""
        loop = thread.io_loop.asyncio_loop
        watched = frozenset(loop._selector.get_map())
        if not watched.issubset(self._subshells.setdefault(thread, watched)):
            return "a descriptor that a subshell watches"
        if any(not timer.cancelled() for timer in list(loop._scheduled)):
            return "a timer of a subshell"
        return self._find_in_loop_of(thread, frame, f"the thread {thread.name}")

    def _find_thread(self) -> str:
        """Also a thread that was started without the module ``threading``."""
        threads: Dict[Optional[int], Any] = {t.ident: t for t in threading.enumerate()}
        if _thread._count() >= len(threads):  # it counts all but the main one
            return "a thread without a name"
        for ident, frame in sys._current_frames().items():
            thread = threads.get(ident)
            if thread is None:
                return "a thread without a name"
            if thread in self._threads or _only_serves(thread, frame):
                continue
            if type(thread).__module__ != SUBSHELL:
                return f"the thread {thread.name}"
            work = self._find_in_subshell(thread, frame)
            if work:
                return work
        return ""


def _waits_in_loop(frame: Any) -> bool:
    """Whether a thread waits in asyncio's loop for something to do, and in no second one."""
    if frame is None or frame.f_globals.get("__name__") != "selectors":
        return False
    turns = 0
    caller = frame.f_back
    if caller is None or caller.f_code.co_name != "_run_once":
        return False
    while caller is not None:
        if caller.f_globals.get("__name__") == "asyncio.base_events":
            turns += caller.f_code.co_name == "_run_once"
        caller = caller.f_back
    return turns == 1


def _awaited(coroutine: Any) -> Iterator[Any]:
    """A coroutine, the one that it awaits, and so on, as far as they are coroutines."""
    yield coroutine
    while hasattr(coroutine.cr_await, "cr_await"):
        coroutine = coroutine.cr_await
        yield coroutine


def _is_serving(coroutine: Any) -> bool:
    """Whether it is one of ipykernel's that waits for a request, and is not in the middle of one.

    In ipykernel 6 the coroutine that takes requests also runs the cells.
    """
    chain = [
        (str(c.cr_frame.f_globals.get("__name__")).partition(".")[0], c.cr_code.co_name)
        for c in _awaited(coroutine)
    ]
    return chain[0][0] == "ipykernel" and all(
        package in FRAMEWORKS and name not in AT_WORK for package, name in chain
    )


def _only_serves(thread: Any, frame: Any) -> bool:
    """Whether a thread that came later only waits for others, with no timer of its own."""
    module = type(thread).__module__
    if module.startswith(SERVING) and module != SUBSHELL:
        return True
    if frame.f_code.co_name == "_worker":
        return bool(frame.f_globals.get("__name__") == "concurrent.futures.thread")  # idle
    if module == "tqdm._monitor":  # stays for ever after the first progress bar
        return not list(thread.get_instances())
    return False


# -- the process ---------------------------------------------------------------------------------


def _find_timer_of_the_system() -> str:
    for which in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
        if signal.getitimer(which)[0]:
            return "an alarm"
    for name in os.listdir("/proc/self/fd"):
        try:
            if "timerfd" in os.readlink(f"/proc/self/fd/{name}"):
                return "a timer"
        except OSError:  # the descriptor of the directory itself
            continue
    return ""
