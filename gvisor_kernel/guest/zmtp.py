"""ZMTP 3.0, the wire protocol of ZMQ, as far as a client of a kernel needs it. No I/O.

Only the NULL mechanism and only the connecting side. PID 1 speaks it itself: libzmq would add a
thread, which is expensive to wake inside gVisor, and an image would need pyzmq for its kernels.
The specification is RFC 23 of ZeroMQ (rfc.zeromq.org/spec/23). libzmq, JeroMQ and zeromq.js speak
3.0 to a peer that announces 3.0.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from gvisor_kernel.link.frames import Part

MORE, LONG, COMMAND = 0x01, 0x02, 0x04
GREETING = b"\xff" + bytes(7) + b"\x01\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
VERSION_END = 11
"""Bytes of the greeting up to its major version, which tell whether a peer speaks ZMTP 3."""
_LONG_SIZE = struct.Struct(">Q")
_VALUE_SIZE = struct.Struct(">I")

MAX_FRAME = 1 << 40
"""Bytes of a frame that are accepted. The frame is in the sandbox's memory anyway; this only
refuses sizes that are absurd."""


class ZmtpError(Exception):
    """The peer does not speak ZMTP 3 with the NULL mechanism, or violates the protocol."""


class ZmtpConnection:
    """One connection, without its socket. The greeting and the READY are queued at once."""

    def __init__(self, socket_type: str, identity: bytes = b"") -> None:
        properties = _property(b"Socket-Type", socket_type.encode())
        if identity:
            properties += _property(b"Identity", identity)
        self._out: list[Part] = [GREETING, _command(b"READY", properties)]
        self._in = bytearray()
        self._greeted = False
        self.ready = False
        """True once the handshake is complete on both sides."""
        self._parts: list[bytes] = []

    # -- sending ---------------------------------------------------------------------------------

    def send(self, parts: Sequence[Part]) -> None:
        """Queue a message."""
        last = len(parts) - 1
        for index, part in enumerate(parts):
            more = MORE if index < last else 0
            if len(part) > 255:
                self._out.append(bytes((more | LONG,)) + _LONG_SIZE.pack(len(part)))
            else:
                self._out.append(bytes((more, len(part))))
            self._out.append(part)

    def subscribe(self) -> None:
        """Subscribe to all topics of a publisher."""
        self.send([b"\x01"])

    def data_to_send(self) -> bytes:
        """Return everything that is queued."""
        if not self._out:
            return b""
        data = b"".join(self._out)
        self._out.clear()
        return data

    # -- receiving -------------------------------------------------------------------------------

    def receive_data(self, data: bytes) -> list[list[bytes]]:
        """Process received bytes. Return the messages that are complete.

        :raises ZmtpError: when they violate the protocol
        """
        self._in += data
        if not self._greeted and not self._take_greeting():
            return []
        messages: list[list[bytes]] = []
        offset, end = 0, len(self._in)
        while end - offset >= 2:
            flags = self._in[offset]
            if flags & ~(MORE | LONG | COMMAND):
                raise ZmtpError(f"a frame has the flags {flags:#x}")
            if flags & LONG:
                if end - offset < 9:
                    break
                (size,) = _LONG_SIZE.unpack_from(self._in, offset + 1)
                start = offset + 9
            else:
                size, start = self._in[offset + 1], offset + 2
            if size > MAX_FRAME:
                raise ZmtpError(f"a frame announces {size} bytes")
            if end - start < size:
                break
            with memoryview(self._in) as view:
                body = bytes(view[start : start + size])
            offset = start + size
            if flags & COMMAND:
                self._take_command(body)
                continue
            if not self.ready:
                raise ZmtpError("a message came before the handshake was complete")
            self._parts.append(body)
            if not flags & MORE:
                messages.append(self._parts)
                self._parts = []
        del self._in[:offset]
        return messages

    def _take_greeting(self) -> bool:
        if len(self._in) >= VERSION_END:
            if self._in[0] != 0xFF or self._in[9] != 0x7F:
                raise ZmtpError("the peer does not speak ZMTP")
            if self._in[10] < 3:
                raise ZmtpError(f"the peer speaks ZMTP {self._in[10]}; version 3 is required")
        if len(self._in) < len(GREETING):
            return False
        mechanism = bytes(self._in[12:32]).rstrip(b"\0")
        if mechanism != b"NULL":
            raise ZmtpError(f"the peer requires the mechanism {mechanism!r} instead of NULL")
        del self._in[: len(GREETING)]
        self._greeted = True
        return True

    def _take_command(self, body: bytes) -> None:
        size = body[0] if body else 0
        name, rest = body[1 : 1 + size], body[1 + size :]
        if name == b"READY":
            self.ready = True
        elif name == b"ERROR":
            raise ZmtpError(f"the peer sent an ERROR: {rest[1:200]!r}")
        elif name == b"PING":  # a time to live of two bytes, and the context for the PONG
            self._out.append(_command(b"PONG", rest[2:18]))


def _property(name: bytes, value: bytes) -> bytes:
    return bytes((len(name),)) + name + _VALUE_SIZE.pack(len(value)) + value


def _command(name: bytes, data: bytes) -> bytes:
    body = bytes((len(name),)) + name + data
    if len(body) > 255:
        return bytes((COMMAND | LONG,)) + _LONG_SIZE.pack(len(body)) + body
    return bytes((COMMAND, len(body))) + body
