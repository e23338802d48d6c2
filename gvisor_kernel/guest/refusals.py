"""Answers the requests of a kernel without egress: each with a line that says why, and what to do.

The requests come on the port of ``egress``. They are HTTP; nothing of them is used. The kernel is
hostile: connections are few at once, each has a deadline, and little is read from each.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Callable

MAX_REFUSALS = 64
"""Connections that are answered at once. More wait in the listener's queue."""
MAX_HEAD = 8 * 1024
"""Bytes that are read before the answer is sent, if no empty line ends the head earlier."""
MAX_LINE = 300
"""Bytes of a request's line that are looked at."""
MAX_REST = 1024 * 1024
"""Bytes that are read and dropped after the answer. A connection that is closed while bytes of it
are unread is reset, and its client may not see the answer."""
DEADLINE_SECONDS = 5.0
"""Seconds after which a connection is answered, and closed, whatever came."""
READ_SIZE = 16 * 1024

NO_EGRESS = "403 This kernel has no network"
REMEDY = "GVISOR_KERNEL_NO_NETWORK"
"""The kernel's variable with what gives it one, from the host (``egress/environment.py``)."""
DETAILS = "docs/egress.md has the details."


def find_status(environment: Mapping[str, str]) -> str:
    """Return the code and reason of each answer to a kernel with these variables."""
    remedy = environment.get(REMEDY, "")
    return f"{NO_EGRESS}; {remedy}" if remedy else NO_EGRESS


def make_answer(status: str) -> bytes:
    """Return a whole HTTP response. ``status``: its code and reason."""
    body = f"{status[4:]}.\n{DETAILS}\n".encode()
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


class _Refusal:
    """One connection. ``deadline`` is a monotonic time."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self.connection = connection
        self.deadline = deadline
        self.head = b""
        self.answered = False
        self.rest = 0


class Refusals:
    """The connections that are being answered, registered at ``poller`` for reading."""

    def __init__(self, poller: select.epoll, tell: Callable[[str], None]) -> None:
        """``tell`` is called with what a program may hide: why a tunnel was refused."""
        self._poller = poller
        self._tell = tell
        self._refusals: dict[int, _Refusal] = {}
        """The refused connections by descriptor, the oldest first."""

    def __contains__(self, fd: int) -> bool:
        return fd in self._refusals

    @property
    def full(self) -> bool:
        """Return whether no connection may be added now."""
        return len(self._refusals) >= MAX_REFUSALS

    @property
    def wait_ms(self) -> int | None:
        """Milliseconds until ``expire`` must be called; None while there is no connection."""
        for refusal in self._refusals.values():
            return max(0, int((refusal.deadline - time.monotonic()) * 1000) + 1)
        return None

    def add(self, connection: socket.socket) -> None:
        """Take over a connection whose socket does not block."""
        self._refusals[connection.fileno()] = _Refusal(
            connection, time.monotonic() + DEADLINE_SECONDS
        )
        self._poller.register(connection.fileno(), select.EPOLLIN)

    def read(self, fd: int, status: str) -> int:
        """Read once from a connection that is ready; answer and close it if it is time.

        Returns the number of bytes read.
        """
        refusal = self._refusals[fd]
        try:
            data = refusal.connection.recv(READ_SIZE)
        except BlockingIOError:
            return 0
        except OSError:
            self._close(fd)
            return 0
        if not refusal.answered:
            refusal.head += data
            if not data or _is_complete(refusal.head) or len(refusal.head) >= MAX_HEAD:
                self._answer(refusal, status)
        refusal.rest += len(data)
        if not data or refusal.rest > MAX_REST:
            self._close(fd)
        return len(data)

    def expire(self, status: str) -> None:
        """Answer and close the connections whose time is over."""
        if not self._refusals:
            return  # PID 1 calls this at each turn, and reading the clock may be a system call
        now = time.monotonic()
        for fd, refusal in tuple(self._refusals.items()):
            if refusal.deadline > now:
                return
            if not refusal.answered:
                self._answer(refusal, status)
            self._close(fd)

    def close(self) -> None:
        """Close all connections."""
        for fd in tuple(self._refusals):
            self._close(fd)

    def _answer(self, refusal: _Refusal, status: str) -> None:
        refusal.answered = True
        words = refusal.head[:MAX_LINE].split(b" ", 2)
        if words[0] == b"CONNECT" and len(words) > 1:
            self._tell(f"{words[1].decode('ascii', 'replace')}: {status[4:]}\n")
        refusal.head = b""
        with suppress(OSError):  # the client has gone
            refusal.connection.send(make_answer(status))
            refusal.connection.shutdown(socket.SHUT_WR)

    def _close(self, fd: int) -> None:
        with suppress(OSError):
            self._poller.unregister(fd)
        self._refusals.pop(fd).connection.close()


def _is_complete(head: bytes) -> bool:
    return b"\r\n\r\n" in head or b"\n\n" in head
