"""``python -m benchmarks.links.guests``: the other ends of links that speak the protocol's frames.

Its arguments are pairs of descriptors, one for each link: what it reads, what it writes. Ends with
the last link.
"""

from __future__ import annotations

import hmac
import json
import os
import select
import sys
import uuid
from contextlib import suppress
from typing import Any

from gvisor_kernel.link import (
    Channel,
    Connection,
    Event,
    Hello,
    IdleQuery,
    IdleReply,
    Message,
    Start,
    Started,
)
from gvisor_kernel.link.state import Role

DELIMITER = b"<IDS|MSG>"
READ_SIZE = 64 * 1024
INFO = {
    "status": "ok",
    "protocol_version": "5.4",
    "implementation": "links",
    "implementation_version": "1",
    "language_info": {"name": "python", "version": "3", "file_extension": ".py"},
    "banner": "",
}


class Guest:
    """One link, and the kernel behind it."""

    def __init__(self, read_from: int, write_to: int) -> None:
        self._read_from, self._write_to = read_from, write_to
        self._connection = Connection(Role.GUEST, Hello())
        self._key = b""
        self._count = 0
        self.flush()

    def receive(self) -> bool:
        """Answer what has come; whether the link goes on."""
        data = os.read(self._read_from, READ_SIZE)
        self._connection.receive_data(data)
        while (event := self._connection.next_event()) is not None:
            self._handle(event)
        self.flush()
        return bool(data)

    def flush(self) -> None:
        while data := self._connection.data_to_send():
            with suppress(BrokenPipeError):
                os.write(self._write_to, data)

    def _handle(self, event: Event) -> None:
        if isinstance(event, Start):
            self._key = event.key.encode()
            self._connection.send(Started(event.run))
        elif isinstance(event, IdleQuery):
            self._connection.send(IdleReply(event.run, True))
        elif isinstance(event, Message):
            parts = [bytes(part) for part in event.parts]
            self._connection.consumed(event)
            if event.channel is Channel.HB:
                self._connection.send_message(Channel.HB, parts)
            elif event.channel in (Channel.SHELL, Channel.CONTROL):
                self._answer(event.channel, parts)

    def _answer(self, channel: Channel, parts: list[bytes]) -> None:
        """Send what ipykernel sends, in its order."""
        at = parts.index(DELIMITER)
        header, content = parts[at + 2], json.loads(parts[at + 5])
        kind = json.loads(header)["msg_type"]
        self._publish("status", {"execution_state": "busy"}, header)
        reply: dict[str, Any] = INFO
        if kind == "execute_request":
            self._count += 1
            count, code = self._count, content["code"]
            self._publish("execute_input", {"code": code, "execution_count": count}, header)
            data = {"text/plain": "2"}
            result = {"data": data, "metadata": {}, "execution_count": count}
            self._publish("execute_result", result, header)
            reply = {"status": "ok", "execution_count": count, "user_expressions": {}}
        answer = kind.replace("_request", "_reply")
        self._send(channel, [*parts[:at]], answer, reply, header)
        self._publish("status", {"execution_state": "idle"}, header)

    def _publish(self, kind: str, content: dict[str, Any], parent: bytes) -> None:
        self._send(Channel.IOPUB, [f"kernel.links.{kind}".encode()], kind, content, parent)

    def _send(
        self,
        channel: Channel,
        identities: list[bytes],
        kind: str,
        content: dict[str, Any],
        parent: bytes,
    ) -> None:
        header = {
            "msg_id": uuid.uuid4().hex,
            "msg_type": kind,
            "username": "links",
            "session": "links",
            "date": "2026-01-01T00:00:00.000000Z",
            "version": "5.4",
        }
        dicts = [json.dumps(header).encode(), parent, b"{}", json.dumps(content).encode()]
        signature = hmac.new(self._key, b"".join(dicts), "sha256").hexdigest().encode()
        self._connection.send_message(channel, [*identities, DELIMITER, signature, *dicts])


def main(words: list[str]) -> None:
    numbers = [int(word) for word in words]
    poller = select.epoll()
    guests: dict[int, Guest] = {}
    for read_from, write_to in zip(numbers[::2], numbers[1::2], strict=True):
        guests[read_from] = Guest(read_from, write_to)
        poller.register(read_from, select.EPOLLIN)
    while guests:
        for descriptor, _ in poller.poll():
            if not guests[descriptor].receive():
                poller.unregister(descriptor)
                del guests[descriptor]


if __name__ == "__main__":
    main(sys.argv[1:])
