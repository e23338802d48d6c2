"""The link to a container: copies between the engine's sockets for its stdio, and pipes.

One thread per direction, with no buffer but the pipe's: a reader that stops stalls the container,
and nothing is lost. What the engine sends is checked.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

log = logging.getLogger(__name__)

HEADER = 8
STDOUT, STDERR = 1, 2
MAX_FRAME = 16 * 1024 * 1024
"""Bytes that a header may announce; engines send at most 32 KiB at once. No frame is kept, so
this does not bound memory: a larger number shows that these bytes are not a header."""
READ_SIZE = 256 * 1024
"""Bytes of one read."""


class StreamError(Exception):
    """The bytes are not the stream of a container without a terminal."""


class Demultiplexer:
    """Splits the engine's stream into stdout and stderr, at any piece size. Keeps no payload."""

    def __init__(self) -> None:
        self._header = b""
        self._kind = 0
        self._left = 0

    def receive(self, data: bytes) -> Iterator[tuple[int, memoryview]]:
        """Yield pairs of STDOUT or STDERR and some bytes of it.

        :raises StreamError: when a header is malformed
        """
        view = memoryview(data)
        while view:
            if not self._left:
                wanted = HEADER - len(self._header)
                self._header += bytes(view[:wanted])
                view = view[wanted:]
                if len(self._header) == HEADER:
                    self._kind, self._left = read_header(self._header)
                    self._header = b""
                continue
            piece = view[: self._left]
            self._left -= len(piece)
            view = view[len(piece) :]
            yield self._kind, piece


def read_header(header: bytes) -> tuple[int, int]:
    """Return the kind of a frame, and its length in bytes.

    :raises StreamError: when the header is malformed
    """
    kind, size = header[0], int.from_bytes(header[4:])
    if kind not in (STDOUT, STDERR) or any(header[1:4]) or size > MAX_FRAME:
        raise StreamError(f"the engine sent {header.hex(' ')} instead of a frame's header")
    return kind, size


class Pumps:
    """Two threads that copy between a container and the host's ends of its pipes.

    Takes over ``link_in`` (read here), ``link_out`` and ``stderr`` (written here) and the sockets.
    ``ended`` is called once, in a thread, when the container sends nothing more.
    """

    def __init__(
        self,
        *,
        stdin: Any,
        output: Any,
        link_in: int,
        link_out: int,
        stderr: int,
        ended: Callable[[], None],
    ) -> None:
        self._stdin, self._output = stdin, output
        self._link_in, self._link_out, self._stderr = link_in, link_out, stderr
        self._ended = ended
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()  # no timeout: held for a few steps that do not wait
        self._open = True
        for fd in (link_in, link_out, stderr):
            os.set_blocking(fd, False)
        self._threads = [
            threading.Thread(target=run, name=f"gvisor-kernel-{name}", daemon=True)
            for name, run in (("docker-in", self._pump_in), ("docker-out", self._pump_out))
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Close the connections, which ends the container, too. Does not wait. Any thread."""
        with self._lock:
            if not self._open:
                return
            os.eventfd_write(self._stop, 1)
            for sock in (self._stdin, self._output):
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def close(self, seconds: float) -> None:
        """Stop, and wait for the threads, at most ``seconds`` for each. Idempotent."""
        self.stop()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(seconds)
        with self._lock:
            if self._open and not any(thread.is_alive() for thread in self._threads):
                self._open = False
                os.close(self._stop)

    # -- in the threads --------------------------------------------------------------------------

    def _pump_in(self) -> None:
        try:
            while self._wait(self._link_in, select.POLLIN):
                # no timeout: it is ready, or does not block
                data = os.read(self._link_in, READ_SIZE)
                if not data:
                    break
                self._stdin.sendall(data)
        except OSError as error:
            log.debug("A container's stdin was closed: %s", error)
        finally:
            os.close(self._link_in)  # the host's writes fail with EPIPE from now on
            _close(self._stdin)

    def _pump_out(self) -> None:
        frames = Demultiplexer()
        try:
            while data := self._output.recv(READ_SIZE):
                for kind, piece in frames.receive(data):
                    fd = self._link_out if kind == STDOUT else self._stderr
                    if not self._write(fd, piece):
                        return
        except (OSError, StreamError) as error:
            log.debug("A container's stream ended: %s", error)
        finally:
            _close(self._output)
            os.close(self._stderr)
            try:
                self._ended()
            finally:
                os.close(self._link_out)
                self.stop()

    def _write(self, fd: int, piece: memoryview) -> bool:
        while piece:
            if not self._wait(fd, select.POLLOUT):
                return False
            with suppress(BlockingIOError):  # a pipe that has room may have less than 4 KiB
                piece = piece[os.write(fd, piece) :]
        return True

    def _wait(self, fd: int, event: int) -> bool:
        """Wait until ``fd`` is ready; return False once this is stopped."""
        poller = select.poll()
        poller.register(fd, event)
        poller.register(self._stop, select.POLLIN)
        # no timeout: one of the polled pipes reports the end
        return all(ready != self._stop for ready, _ in poller.poll())


def _close(sock: Any) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    with suppress(OSError):
        sock.close()
