"""The sandbox's end of a kernel's socket, as PID 1 would hold it, for tests without a sandbox."""

from __future__ import annotations

import select
import socket
import time
from dataclasses import dataclass, field

from gvisor_kernel.link.state import Role
from gvisor_kernel.link.streams import Finished, Received, Reset, Streams

from ..patience import scale_seconds

SECONDS = 20.0


@dataclass
class PeerStream:
    """What came on one stream. ``closed``: "" while it is open, else "finished" or "reset"."""

    number: int
    received: bytearray = field(default_factory=bytearray)
    count: int = 0
    closed: str = ""


class Peer:
    """Opens streams on a socket, and passes bytes while one of its methods waits."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.streams = Streams(Role.GUEST)
        self.open_streams: dict[int, PeerStream] = {}
        self.ended = False
        self.keeps = True
        """Whether received bytes are kept, not only counted."""
        sock.setblocking(False)

    def open(self, data: bytes = b"", *, finish: bool = False) -> PeerStream:
        """Open a stream and send ``data`` on it."""
        stream = PeerStream(self.streams.open())
        self.open_streams[stream.number] = stream
        self.send(stream, data)
        if finish:
            self.streams.finish(stream.number)
            self.pump(0)
        return stream

    def send(self, stream: PeerStream, data: bytes, seconds: float = SECONDS) -> None:
        """Send all of ``data``, unless the stream is closed meanwhile."""
        view = memoryview(data)
        end = time.monotonic() + scale_seconds(seconds)
        while view and stream.closed != "reset" and not self.ended:
            room = self.streams.sendable(stream.number)
            if room:
                self.streams.send(stream.number, view[:room])
                view = view[room:]
            self.pump(0 if room else 0.2)
            assert time.monotonic() < end, f"{len(view)} bytes could not be sent"
        self.pump(0)

    def finish(self, stream: PeerStream) -> None:
        """Send no more."""
        self.streams.finish(stream.number)
        self.pump(0)

    def reset(self, stream: PeerStream) -> None:
        """Give a stream up."""
        self.streams.reset(stream.number)
        self.pump(0)

    def pump(self, seconds: float) -> None:
        """Write what may be written, and read once what comes within ``seconds``."""
        while data := self.streams.data_to_send():
            view = memoryview(data)
            while view:
                try:
                    view = view[self.sock.send(view) :]
                except BlockingIOError:
                    self._read()
                    select.select([self.sock], [self.sock], [], 1)
                except OSError:
                    self.ended = True
                    return
        if select.select([self.sock], [], [], seconds)[0]:
            self._read()

    def _read(self) -> None:
        try:
            data = self.sock.recv(256 * 1024)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.ended = True
            for stream in self.open_streams.values():
                stream.closed = stream.closed or "reset"
            return
        for event in self.streams.receive_data(data):
            stream = self.open_streams[event.stream]
            if isinstance(event, Received):
                stream.count += len(event.data)
                if self.keeps:
                    stream.received += event.data
                self.streams.consumed(event.stream, len(event.data))
            elif isinstance(event, Finished):
                stream.closed = "finished"
            elif isinstance(event, Reset):
                stream.closed = "reset"

    def wait(self, stream: PeerStream, seconds: float = SECONDS) -> bytes:
        """Wait until the worker sends no more on ``stream``; return what it has sent."""
        return self.wait_for(lambda: bool(stream.closed), stream, seconds)

    def wait_for_text(self, stream: PeerStream, text: bytes, seconds: float = SECONDS) -> bytes:
        """Wait until ``text`` has come on ``stream``; return what has come."""
        return self.wait_for(lambda: text in stream.received, stream, seconds)

    def wait_for(self, done, stream: PeerStream, seconds: float = SECONDS) -> bytes:  # type: ignore[no-untyped-def]
        """Pass bytes until ``done()``."""
        end = time.monotonic() + scale_seconds(seconds)
        while not done():
            assert time.monotonic() < end, f"only {bytes(stream.received[:500])!r} came"
            assert not self.ended or done(), "the socket ended"
            self.pump(0.2)
        return bytes(stream.received)

    def ask(self, raw: bytes, seconds: float = SECONDS) -> bytes:
        """Send ``raw`` on a stream of its own and return the whole answer."""
        return self.wait(self.open(raw), seconds)

    def get(self, path: str, *headers: str) -> bytes:
        """GET a path, as the last request of a stream of its own."""
        lines = [f"GET {path} HTTP/1.1", "Host: 127.0.0.1:3128", "Connection: close", *headers]
        return self.ask(("\r\n".join(lines) + "\r\n\r\n").encode())

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()


def status_of(answer: bytes) -> int:
    """Return the status of an answer."""
    assert answer.startswith(b"HTTP/1.1 "), answer[:200]
    return int(answer[9:12])


def body_of(answer: bytes) -> bytes:
    """Return the body of an answer, without its chunks' marks."""
    head, _, body = answer.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head.lower():
        return body
    parts = []
    while True:
        size, _, body = body.partition(b"\r\n")
        if not int(size, 16):
            return b"".join(parts)
        parts.append(body[: int(size, 16)])
        body = body[int(size, 16) + 2 :]
