"""The host's end of a kernel's streams for tests: serves simple commands instead of HTTP.

The first line of a stream is the command. ``echo``: everything that follows is sent back.
``count``: after FINISH the number and the digest of the bytes are sent. ``flood``: zeros are sent
without end. ``send N``: N bytes are sent, then FINISH. ``silent``: nothing. ``say WORD``: the word
is sent once ``Peer.may_say`` is set. ``reset``: the stream is reset.
"""

from __future__ import annotations

import hashlib
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from gvisor_kernel.bridge.kernel import KernelBridge
from gvisor_kernel.link.state import Role
from gvisor_kernel.link.streams import (
    Finished,
    Granted,
    Opened,
    Received,
    Reset,
    StreamEvent,
    Streams,
)

READ_SIZE = 256 * 1024
MAX_WAITING = 1024 * 1024
"""Bytes for the guest above which nothing is read from it."""


START, ATTACH = KernelBridge.start_kernel, KernelBridge.attach_restored


class _Served:
    """One stream: what came before the end of its command, and what it still has to send."""

    def __init__(self) -> None:
        self.head: bytes | None = b""
        self.command = ""
        self.waiting = bytearray()
        self.to_send = 0
        self.says = False
        self.finishing = False
        self.digest = hashlib.sha256()
        self.count = 0


class Peer(threading.Thread):
    """Serves one run's streams on ``end`` until it is closed by the bridge."""

    def __init__(self, end: socket.socket) -> None:
        super().__init__(name="test-peer", daemon=True)
        self._socket = end
        self._streams = Streams(Role.HOST)
        self._served: dict[int, _Served] = {}
        self._out = bytearray()
        self._stopping = False
        self.opened = 0
        self.most_open = 0
        self.resets = 0
        self.ended = threading.Event()
        """The bridge has closed its end."""
        self.may_say = threading.Event()
        self.error: BaseException | None = None
        end.setblocking(False)

    def run(self) -> None:
        try:
            while not self._stopping and self._serve():
                pass
        except BaseException as error:  # the test's thread reports it
            self.error = error
        finally:
            self._socket.close()
            self.ended.set()

    def stop(self) -> None:
        """End as a process does that dies."""
        self._stopping = True
        self.join(10)

    def _serve(self) -> bool:
        events = select.POLLIN if len(self._out) < MAX_WAITING else 0
        poller = select.poll()
        poller.register(self._socket, events | (select.POLLOUT if self._out else 0))
        for _, ready in poller.poll(20):
            if ready & ~select.POLLOUT and not self._read():
                return False
        self._work()
        while len(self._out) < MAX_WAITING:
            data = self._streams.data_to_send(READ_SIZE)
            if not data:
                break
            self._out += data
            self._work()
        try:
            while self._out:
                del self._out[: self._socket.send(self._out)]
        except BlockingIOError:
            return True
        except OSError:  # the bridge has closed its end
            return False
        return True

    def _read(self) -> bool:
        try:
            data = self._socket.recv(READ_SIZE)
        except BlockingIOError:
            return True
        except OSError:
            return False
        for event in self._streams.receive_data(data):
            self._handle(event)
        return bool(data)

    def _handle(self, event: StreamEvent) -> None:
        if isinstance(event, Opened):
            self.opened += 1
            self._served[event.stream] = _Served()
            self.most_open = max(self.most_open, len(self._served))
            return
        served = self._served.get(event.stream)
        if served is None or isinstance(event, Granted):
            return
        if isinstance(event, Reset):
            self.resets += 1
            del self._served[event.stream]
        elif isinstance(event, Received):
            self._receive(event.stream, served, event.data)
        elif isinstance(event, Finished):
            if served.command == "count":
                served.waiting += f"{served.count} {served.digest.hexdigest()}".encode()
            served.finishing = True
            served.to_send = 0

    def _receive(self, number: int, served: _Served, data: bytes) -> None:
        size = len(data)
        if served.head is not None:
            served.head += data
            command, end, data = served.head.partition(b"\n")
            if end:
                served.head = None
                self._begin(number, served, command.decode())
            else:
                data = b""
        if served.command == "echo":
            served.waiting += data
        elif served.command == "count":
            served.count += len(data)
            served.digest.update(data)
        if served.command != "echo":
            self._streams.consumed(number, size)
        elif size > len(data):
            self._streams.consumed(number, size - len(data))

    def _begin(self, number: int, served: _Served, line: str) -> None:
        served.command, _, argument = line.partition(" ")
        if served.command == "flood":
            served.to_send = 1 << 60
        elif served.command == "send":
            served.to_send = int(argument)
        elif served.command == "say":
            served.says = True
            served.waiting += argument.encode()
        elif served.command == "reset":
            self._streams.reset(number)
            del self._served[number]

    def _work(self) -> None:
        """Queue what may be sent. The bytes of an echo are consumed as they are queued."""
        for number, served in tuple(self._served.items()):
            if served.says and not self.may_say.is_set():
                continue
            room = self._streams.sendable(number)
            if served.waiting and room:
                piece = bytes(served.waiting[:room])
                del served.waiting[:room]
                self._streams.send(number, piece)
                if served.command == "echo":
                    self._streams.consumed(number, len(piece))
            elif served.to_send and room:
                size = min(room, served.to_send)
                self._streams.send(number, bytes(size))
                served.to_send -= size
                served.finishing = not served.to_send
            if served.finishing and not served.waiting and not served.to_send:
                self._streams.finish(number)
                del self._served[number]


@contextmanager
def kernels_with_egress(patch: pytest.MonkeyPatch) -> Iterator[list[Peer]]:
    """Give each kernel that starts or is restored a Peer; yield the list, the newest last."""
    peers: list[Peer] = []

    async def make_peer() -> socket.socket:
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        peers.append(Peer(far))
        peers[-1].start()
        return near

    async def start_kernel(self: KernelBridge, *args: Any, **more: Any) -> None:
        await START(self, *args, **{**more, "egress": make_peer})

    async def attach_restored(self: KernelBridge, *args: Any, **more: Any) -> None:
        await ATTACH(self, *args, **{**more, "egress": make_peer})

    patch.setattr(KernelBridge, "start_kernel", start_kernel)
    patch.setattr(KernelBridge, "attach_restored", attach_restored)
    yield peers
    for peer in peers:
        peer.stop()
        assert peer.error is None, peer.error


def without_egress(patch: pytest.MonkeyPatch) -> None:
    """Let kernels start without a Peer, also while others have one."""
    patch.setattr(KernelBridge, "start_kernel", START)
    patch.setattr(KernelBridge, "attach_restored", ATTACH)
