"""Shortcuts through ipykernel, for a kernel that speaks frames itself.

To pass a message from thread to thread costs 20 µs on Linux and 150 µs inside gVisor. No shortcut
changes what is sent, or in which order. Each is used only if this ipykernel has what it needs;
otherwise messages take ipykernel's own way.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import zmq

from gvisor_kernel.guest.direct import DirectLink
from gvisor_kernel.link import Channel
from gvisor_kernel.link.frames import Part

CAPTURE_WAIT = 0.0005
"""Seconds between two checks of the pipe in which ipykernel captures output of other programs."""
CAPTURE_CHECKS = 20
"""Number of checks before a flush goes on although the pipe is not empty."""
STOP_ABORTING = b"stop aborting"
"""Content of a message that ipykernel sends to itself."""

MAX_STREAM_TEXT = 1024 * 1024
"""Characters of output in one message at most. ipykernel puts all output of 0.2 s into one message:
500 MB would exceed the limit of a message, and the host would have to hold all of it."""

RECURSIVE_MUTEX = 0
"""Kind of a SemLock that only its owner releases, and may take again."""

STREAM_PARTS = (
    *("_buffers", "_fid", "_flush", "_flush_buffers", "_flush_pending", "_schedule_flush"),
    *("flush_interval", "flush_timeout"),
)
"""The attributes of an OutStream that ``flush_by_link`` needs."""


def publish_at_once(iopub_thread: Any, link: DirectLink) -> None:
    """Send iopub messages from the calling thread, without a hop to the IOPub thread.

    Output of ``print`` is still collected there. In a forked child nothing changes.
    """
    original_send, owner_pid = iopub_thread.send_multipart, os.getpid()

    def send_multipart(parts: Any, *args: Any, **kwargs: Any) -> None:
        if os.getpid() != owner_pid or iopub_thread.closed:
            original_send(parts, *args, **kwargs)
            return
        if iopub_thread.thread is not None and iopub_thread.thread.ident != threading.get_ident():
            link.wait_for_room()
        iopub_thread.socket.send_multipart(parts)

    iopub_thread.send_multipart = send_multipart


def flush_by_link(stream: Any, link: DirectLink) -> bool:
    """Let the link's writing thread collect and send printed output, not the IOPub thread.

    ``flush`` wakes that thread only if something was written. It also waits for output of other
    programs that ipykernel has not read from the stream's descriptor yet, so that ipykernel need
    not sleep for it. Returns False, and changes nothing, if this ipykernel lacks what is needed.
    """
    if not all(hasattr(stream, name) for name in STREAM_PARTS):
        return False
    original_flush, send, owner_pid = stream.flush, stream._flush, os.getpid()
    take_buffers = stream._flush_buffers
    if hasattr(stream, "_buffer_lock"):
        stream._buffer_lock = make_lock()
    sending = threading.Lock()

    def _flush_buffers() -> Iterator[tuple[Any, str]]:
        for parent, text in take_buffers():
            for start in range(0, len(text), MAX_STREAM_TEXT):
                yield parent, text[start : start + MAX_STREAM_TEXT]

    def _flush() -> None:
        with sending:
            send()

    def free_locks() -> None:
        """Replace the locks in a forked child: threads that it lacks may have held them."""
        nonlocal sending
        sending = threading.Lock()
        if hasattr(stream, "_buffer_lock"):
            stream._buffer_lock = threading.RLock()

    os.register_at_fork(after_in_child=free_locks)

    def flush() -> None:
        thread = threading.current_thread()
        if os.getpid() != owner_pid or stream.closed or not link.can_wait_for_writer(thread):
            original_flush()
            return
        for _ in range(CAPTURE_CHECKS):
            if not _count_unread(stream._fid):
                break
            time.sleep(CAPTURE_WAIT)
        # Check in this order: text that has left the buffers is being sent under the lock.
        if stream._buffers or sending.locked():
            # Not an Event: an interrupt of the wait could leave the Event's lock in a bad state.
            flushing = threading.Lock()
            flushing.acquire()

            def flush_and_tell() -> None:
                try:
                    _flush()
                finally:
                    flushing.release()

            link.run_soon(flush_and_tell)
            flushing.acquire(timeout=stream.flush_timeout)

    def _schedule_flush() -> None:
        if not stream._flush_pending:
            stream._flush_pending = True
            link.run_later(stream.flush_interval, _flush)

    stream._flush_buffers = _flush_buffers
    stream._flush, stream.flush, stream._schedule_flush = _flush, flush, _schedule_flush
    return True


def make_lock() -> Any:
    """Return a reentrant lock that does not read the clock when nobody holds it.

    Each ``write`` takes a stream's lock. ``threading.RLock`` reads the clock then (Python 3.11 to
    3.13), which is a system call of 10 to 60 µs in the first second after a restore: 5,000 prints
    took 200 ms and more, now 40. It is in C, as RLock is: an interrupt cannot leave it locked. A
    forked child would share it, so a child needs a lock of its own. Returns an RLock where the
    system has no semaphores.
    """
    try:
        # Not multiprocessing, which imports 20 modules and wraps the lock in Python.
        semaphores: Any = importlib.import_module("_multiprocessing")
        name = f"/gvisor-kernel-{os.getpid()}-{os.urandom(8).hex()}"
        return semaphores.SemLock(RECURSIVE_MUTEX, 1, 1, name, True)  # True: no name remains
    except (ImportError, AttributeError, OSError):
        return threading.RLock()


def _count_unread(fd: Any) -> int:
    """Return the number of bytes that wait in a pipe."""
    if fd is None:
        return 0
    try:
        answer = fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0")
    except OSError:
        return 0
    return int(struct.unpack("i", answer)[0])


def reply_at_once(kernel: Any, redirect_sends: Callable[[Any, Channel], None]) -> None:
    """Send replies from the main thread, without a hop to the shell channel's (ipykernel 7)."""
    thread = getattr(kernel, "shell_channel_thread", None)
    pair: Any = getattr(getattr(thread, "manager", None), "_main_to_shell_channel", None)
    if hasattr(pair, "from_socket"):
        redirect_sends(pair.from_socket, Channel.SHELL)


class MainThreadRoute:
    """Passes requests to the main thread, without a hop to the shell channel's (ipykernel 7).

    Not used while the kernel has a subshell, or while a GUI event loop watches its sockets. After a
    subshell it is never used again, so that no request overtakes another.
    """

    def __init__(self, kernel: Any, identity: bytes) -> None:
        self._kernel: Any = kernel
        self._identity = zmq.Frame(identity)
        self._manager: Any = getattr(getattr(kernel, "shell_channel_thread", None), "manager", None)
        self._loop = kernel.io_loop.asyncio_loop
        self._usable = all(
            hasattr(self._manager, name) for name in ("_shell_channel_to_main", "_cache")
        ) and hasattr(kernel, "_post_dummy_stop_aborting_message")
        if self._usable:
            self._original_abort = kernel._abort_queues
            kernel._abort_queues = self._abort_queued

    def deliver(self, parts: Sequence[Part]) -> bool:
        """Pass a request on. Return False if it must go another way. Reading thread of the link."""
        if self._usable and self._manager._cache:
            self._usable = False
        if not self._usable or self._kernel.eventloop is not None:
            return False
        frames = [self._identity, *map(zmq.Frame, parts)]
        try:
            self._loop.call_soon_threadsafe(self._handle, frames)
        except RuntimeError:  # the loop is closed: the kernel ends
            return True
        return True

    def _abort_queued(self, subshell_id: Any = None) -> None:
        """After an error, abort the requests that arrived before, and no later ones.

        The message that ends the aborting must take the way of the requests, to come after them.
        """
        if subshell_id is not None or not self._usable or self._kernel.eventloop is not None:
            self._original_abort(subshell_id)
            return
        self._kernel._aborting = True
        self._loop.call_soon_threadsafe(self._handle, [zmq.Frame(STOP_ABORTING)])

    def _handle(self, frames: list[Any]) -> None:
        """Call the handler of the stream that reads the main thread's socket."""
        stream = self._manager._shell_channel_to_main.to_stream
        stream._run_callback(stream._recv_callback, frames)
