"""Shorter ways through ipykernel, for a kernel that speaks frames itself.

A message that ipykernel hands from thread to thread costs 20 µs a step on Linux and 150 µs inside
gVisor. Nothing here changes what is sent, or in which order; each shortcut is taken only where
this ipykernel has what it needs, and else the message goes ipykernel's own way.
"""

from __future__ import annotations

import fcntl
import os
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, List, Sequence, Tuple

import zmq

from gvisor_kernel.guest.direct import DirectLink
from gvisor_kernel.link import Channel
from gvisor_kernel.link.frames import Part

CAPTURE_WAIT = 0.0005
CAPTURE_LOOKS = 20
"""Output of other programs that is still in the pipe to ipykernel's thread: looked at so often."""


STOP_ABORTING = b"stop aborting"
"""A message of ipykernel's to itself."""

MERGED = 1024 * 1024
"""Characters of output in one message at most. ipykernel puts all that was printed within 0.2 s
into one, be it 500 MB: more than a message may have, and all of it for the host to hold at once."""

STREAM_PARTS = (
    *("_buffers", "_fid", "_flush", "_flush_buffers", "_flush_pending", "_schedule_flush"),
    *("flush_interval", "flush_timeout"),
)
"""Of an OutStream, what ``flush_by_link`` relies on."""


def publish_at_once(iopub_thread: Any, link: DirectLink) -> None:
    """iopub messages leave from the thread that makes them, not by way of the IOPub thread.

    Output of ``print`` is collected there as ever. In a forked child nothing changes.
    """
    publish, master = iopub_thread.send_multipart, os.getpid()

    def send_multipart(parts: Any, *args: Any, **kwargs: Any) -> None:
        if os.getpid() != master or iopub_thread.closed:
            publish(parts, *args, **kwargs)
            return
        if iopub_thread.thread is not None and iopub_thread.thread.ident != threading.get_ident():
            link.wait_for_room()
        iopub_thread.socket.send_multipart(parts)

    iopub_thread.send_multipart = send_multipart


def flush_by_link(stream: Any, link: DirectLink) -> bool:
    """The link's writing thread collects and sends what is printed, not the IOPub thread.

    ``flush`` asks for it only if something was written. It also waits for what other programs
    wrote to the stream's descriptor and ipykernel has not read yet, so that ipykernel need not
    sleep for that. False where this ipykernel has it otherwise.
    """
    if not all(hasattr(stream, name) for name in STREAM_PARTS):
        return False
    ask, send, master = stream.flush, stream._flush, os.getpid()
    take = stream._flush_buffers
    sending = threading.Lock()

    def _flush_buffers() -> Iterator[Tuple[Any, str]]:
        for parent, text in take():
            for start in range(0, len(text), MERGED):
                yield parent, text[start : start + MERGED]

    def _flush() -> None:
        with sending:
            send()

    def free_locks() -> None:
        """In a forked child: threads that it has not may have held them at the fork."""
        nonlocal sending
        sending = threading.Lock()
        if hasattr(stream, "_buffer_lock"):
            stream._buffer_lock = threading.RLock()

    os.register_at_fork(after_in_child=free_locks)

    def flush() -> None:
        thread = threading.current_thread()
        if os.getpid() != master or stream.closed or not link.serves(thread):
            ask()
            return
        for _ in range(CAPTURE_LOOKS):
            if not _unread(stream._fid):
                break
            time.sleep(CAPTURE_WAIT)
        # In this order: what is no longer in the buffers was taken by somebody who is sending.
        if stream._buffers or sending.locked():
            # A bare lock: an interrupt of this wait may leave an Event's own lock in disorder.
            under_way = threading.Lock()
            under_way.acquire()

            def flush_and_tell() -> None:
                try:
                    _flush()
                finally:
                    under_way.release()

            link.run_soon(flush_and_tell)
            under_way.acquire(timeout=stream.flush_timeout)

    def _schedule_flush() -> None:
        if not stream._flush_pending:
            stream._flush_pending = True
            link.run_later(stream.flush_interval, _flush)

    stream._flush_buffers = _flush_buffers
    stream._flush, stream.flush, stream._schedule_flush = _flush, flush, _schedule_flush
    return True


def _unread(fd: Any) -> int:
    """Bytes that wait in a pipe."""
    if fd is None:
        return 0
    try:
        answer = fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0")
    except OSError:
        return 0
    return int(struct.unpack("i", answer)[0])


def reply_at_once(kernel: Any, lead_out: Callable[[Any, Channel], None]) -> None:
    """Replies leave from the main thread, not by way of the shell channel's (ipykernel 7)."""
    thread = getattr(kernel, "shell_channel_thread", None)
    pair: Any = getattr(getattr(thread, "manager", None), "_main_to_shell_channel", None)
    if hasattr(pair, "from_socket"):
        lead_out(pair.from_socket, Channel.SHELL)


class ToMain:
    """Requests go to the main thread at once, not by way of the shell channel's (ipykernel 7).

    While the kernel has a subshell, or a GUI's loop that watches its sockets, they do not; once
    it had a subshell, never again, so that no request overtakes another.
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
            self._abort_elsewhere = kernel._abort_queues
            kernel._abort_queues = self._abort_queued

    def deliver(self, parts: Sequence[Part]) -> bool:
        """Whether the request went this way. In the link's reading thread."""
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
        """After an error: what was requested before this is aborted, and nothing later.

        The message that ends it must come the way that requests come, to stand behind them.
        """
        if subshell_id is not None or not self._usable or self._kernel.eventloop is not None:
            self._abort_elsewhere(subshell_id)
            return
        self._kernel._aborting = True
        self._loop.call_soon_threadsafe(self._handle, [zmq.Frame(STOP_ABORTING)])

    def _handle(self, frames: List[Any]) -> None:
        """As the stream does that reads the main thread's socket."""
        stream = self._manager._shell_channel_to_main.to_stream
        stream._run_callback(stream._recv_callback, frames)
