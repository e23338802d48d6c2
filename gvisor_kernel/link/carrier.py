"""Carries two byte streams over a connection that may be cut, without losing a byte. No I/O.

Each side keeps what the other has not confirmed, at most WINDOW bytes. After a cut the host makes
another connection and sends a RESUME; the guest answers with one; each says how far it has read,
and the other continues from there. Both find a RESUME wherever it stands, also behind half a
packet of the connection before: it begins with a mark that contains a secret of the two sides.

A packet is a head of HEAD.size bytes and a payload. ``crc`` is the CRC-32 of the head's other
fields and the payload; it shows bytes that were lost or doubled, not those that an attacker made.

    kind u8, length u32, offset u64, received u64, crc u32        payload
"""

from __future__ import annotations

import struct
import zlib
from collections import deque

from gvisor_kernel.link.frames import RemoteProtocolError

HEAD = struct.Struct(">BIQQI")
MAX_PAYLOAD = 32 * 1024
"""Bytes of a packet. What is read at once stays small, and so does what is sent again."""
WINDOW = 1024 * 1024
"""Bytes that may be unconfirmed in one direction."""
CONFIRM_AFTER = WINDOW // 8
"""Bytes after which they are confirmed without an own packet on the way."""
MAX_NOTE = 4096
"""Bytes of a note."""
SECRET_SIZE, NONCE_SIZE = 16, 16
MARK = b"\x00gvisor-kernel-resume\x00"
_REST = struct.Struct(f">{NONCE_SIZE}sQI")
DATA, CONFIRM, NOTE, END = 1, 2, 3, 4


class Carrier:
    """One side of both streams.

    ``received`` and ``confirmed``: bytes so far of the other side's stream, and of this side's that
    the other has. ``ended``: the other side has sent END. ``notes``: short messages of the other
    side, of which some may be lost in a cut; the owner takes them out.
    """

    def __init__(self, secret: bytes, *, is_host: bool) -> None:
        """``secret``: SECRET_SIZE random bytes that both sides know, and no code in the sandbox."""
        assert len(secret) == SECRET_SIZE
        self._mark = MARK + secret
        self._is_host = is_host
        self.connected = False
        """True while bytes may be sent. The host waits for the answer to its RESUME, the guest for
        a RESUME."""
        self.received = 0
        self.confirmed = 0
        self.ended = False
        self.notes: deque[bytes] = deque(maxlen=16)
        self._sent = 0
        self._kept = bytearray()
        """This side's stream from ``confirmed`` on."""
        self._told = 0
        """The value of ``received`` that the other side was told last."""
        self._first: deque[bytes] = deque()
        """Whole packets that go before any data."""
        self._arrived = bytearray()
        self._searched = 0
        self._lost = True
        """Bytes are dropped until a RESUME."""
        self._nonces: set[bytes] = set()
        self._ready: list[bytes] = []
        self._restarted = False

    # -- to the other side -----------------------------------------------------------------------

    @property
    def room(self) -> int:
        """Return the number of bytes that ``write`` takes now."""
        return max(0, WINDOW - len(self._kept))

    @property
    def wants_to_send(self) -> bool:
        return bool(self._first) or (self.connected and self._sent < self._end)

    @property
    def _end(self) -> int:
        return self.confirmed + len(self._kept)

    def write(self, data: bytes) -> None:
        """Take bytes of this side's stream, at most ``room``."""
        assert len(data) <= self.room
        self._kept += data

    def note(self, content: bytes) -> None:
        """Send a note. It is dropped while there is no connection, and may be lost."""
        assert len(content) <= MAX_NOTE
        if self.connected and len(self._first) < 16:
            self._first.append(self._pack(NOTE, content))

    def end(self) -> None:
        """Tell the other side that nothing follows, and that it must end."""
        if self.connected:
            self._first.append(self._pack(END, b""))

    def data_to_send(self) -> bytes:
        """Return whole packets, of one payload at most; empty if there is nothing to send."""
        packets = [self._first.popleft() for _ in range(len(self._first))]
        if self.connected and self._sent < self._end:
            begin = self._sent - self.confirmed
            payload = bytes(self._kept[begin : begin + MAX_PAYLOAD])
            packets.append(self._pack(DATA, payload, self._sent))
            self._sent += len(payload)
        elif self.connected and self.received - self._told >= CONFIRM_AFTER:
            packets.append(self._pack(CONFIRM, b""))
        return b"".join(packets)

    def _pack(self, kind: int, payload: bytes, offset: int = 0) -> bytes:
        self._told = self.received
        crc = _sum(kind, offset, self.received, payload)
        return HEAD.pack(kind, len(payload), offset, self.received, crc) + payload

    # -- cuts ------------------------------------------------------------------------------------

    def disconnect(self) -> None:
        """Note that the host's connection is gone: what was on its way may be lost."""
        self.connected = False
        self._lost = True
        self._first.clear()
        self._arrived.clear()
        self._searched = 0
        self._nonces.clear()

    def resume(self, nonce: bytes) -> bytes:
        """Return the host's RESUME for a new connection. ``nonce``: NONCE_SIZE random bytes. It may
        be sent again with another nonce, as long as ``connected`` is False."""
        self._nonces.add(nonce)
        return self._make_resume(nonce)

    def _make_resume(self, nonce: bytes) -> bytes:
        crc = zlib.crc32(nonce + struct.pack(">Q", self.received))
        return self._mark + _REST.pack(nonce, self.received, crc)

    def _take_resume(self, at: int) -> bool:
        """Take the RESUME at ``at`` of what has arrived; return False if it is not whole yet."""
        begin = at + len(self._mark)
        if len(self._arrived) < begin + _REST.size:
            return False
        nonce, received, crc = _REST.unpack_from(self._arrived, begin)
        del self._arrived[: begin + _REST.size]
        self._searched = 0
        if crc != zlib.crc32(nonce + struct.pack(">Q", received)):
            return True
        if self._is_host and nonce not in self._nonces:
            return True
        self._confirm(received)
        self._sent = max(received, self.confirmed)
        self._first.clear()
        self._lost = False
        self.connected = self._restarted = True
        if not self._is_host:
            self._told = self.received
            self._first.append(self._make_resume(nonce))
        return True

    def take_restart(self) -> bool:
        """Return whether a RESUME has come since the last call: what was packed for the connection
        before, and is not written yet, must not be written."""
        restarted, self._restarted = self._restarted, False
        return restarted

    # -- from the other side ---------------------------------------------------------------------

    def receive(self, data: bytes) -> bytes:
        """Take bytes of the connection; return what they add to the other side's stream.

        :raises RemoteProtocolError: when the other side claims what cannot be
        """
        self._arrived += data
        while True:
            at = self._arrived.find(self._mark, self._searched)
            if at < 0:
                break
            self._take_packets(at)
            at = self._arrived.find(self._mark)
            if at < 0 or not self._take_resume(at):
                break
        self._take_packets(len(self._arrived))
        if self._lost:
            del self._arrived[: max(0, len(self._arrived) - len(self._mark) - _REST.size)]
        # Only as far back as the beginning of a mark, or of a RESUME that is not whole yet.
        self._searched = max(0, len(self._arrived) - len(self._mark) - _REST.size)
        ready, self._ready = self._ready, []
        return b"".join(ready)

    def _take_packets(self, end: int) -> None:
        """Take the whole packets among the first ``end`` bytes that have arrived."""
        at = 0
        while not self._lost and end - at >= HEAD.size:
            kind, length, offset, received, crc = HEAD.unpack_from(self._arrived, at)
            if not DATA <= kind <= END or length > MAX_PAYLOAD:
                self._lost = True
                break
            if end - at < HEAD.size + length:
                break
            payload = bytes(self._arrived[at + HEAD.size : at + HEAD.size + length])
            if crc != _sum(kind, offset, received, payload):
                self._lost = True
                break
            at += HEAD.size + length
            self._take_packet(kind, offset, received, payload)
        del self._arrived[:at]

    def _take_packet(self, kind: int, offset: int, received: int, payload: bytes) -> None:
        self._confirm(received)
        if kind == NOTE:
            self.notes.append(payload[:MAX_NOTE])
        elif kind == END:
            self.ended = True
        elif kind == DATA:
            if offset > self.received:
                self._lost = True  # a packet before it is missing
                return
            new = payload[self.received - offset :]
            self.received += len(new)
            if new:
                self._ready.append(new)

    def _confirm(self, received: int) -> None:
        if received > self._end:
            raise RemoteProtocolError(
                f"the other side has {received} bytes of {self._end} that were sent"
            )
        if received > self.confirmed:
            del self._kept[: received - self.confirmed]
            self.confirmed = received
            self._sent = max(self._sent, received)

    @property
    def is_lost(self) -> bool:
        """Return whether the bytes that arrive make no sense, and are dropped until a RESUME."""
        return self._lost


def _sum(kind: int, offset: int, received: int, payload: bytes) -> int:
    return zlib.crc32(
        payload, zlib.crc32(struct.pack(">BIQQ", kind, len(payload), offset, received))
    )
