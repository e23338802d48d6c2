"""Connections in a given state, frames as raw bytes, and a wire between two ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from gvisor_kernel.link import (
    Channel,
    Connection,
    Event,
    Exited,
    Hello,
    IdleQuery,
    IdleReply,
    LogSource,
    Message,
    Ping,
    Pong,
    RemoteProtocolError,
    Resume,
    Resumed,
    Signal,
    Start,
    Started,
    Stats,
    Trim,
    flow,
    frames,
)
from gvisor_kernel.link.frames import (
    FLAG_LAST,
    HEADER,
    FrameType,
    encode_bytes,
    encode_grant,
    encode_short,
    pack_message,
)
from gvisor_kernel.link.state import Role, State

OTHER = {Role.HOST: Role.GUEST, Role.GUEST: Role.HOST}
START = Start(
    1, ("python3", "-m", "x"), (("HOME", "/home/user"),), "/workspace", "secret", egress=True
)
RESUME = Resume(1, (("HOME", "/home/user"),), "/workspace", "secret", "00" * 64, egress=True)


def raw(kind: int, payload: bytes = b"", channel: int = 0, flags: int = 0, zero: int = 0) -> bytes:
    """Return a frame without any check."""
    return HEADER.pack(kind, channel, flags, zero, len(payload)) + payload


def data(channel: Channel, parts: list[bytes]) -> bytes:
    """Return a message in one DATA frame."""
    return raw(FrameType.DATA, b"".join(pack_message(parts)), channel, FLAG_LAST)


def credit(channel: Channel, amount: int) -> bytes:
    return raw(FrameType.CREDIT, amount.to_bytes(4, "big"), channel)


VALID = {
    FrameType.HELLO: raw(FrameType.HELLO, Hello().encode()),
    FrameType.START: raw(FrameType.START, START.encode()),
    FrameType.STARTED: raw(FrameType.STARTED, Started(1).encode()),
    FrameType.DATA: data(Channel.SHELL, [b"x"]),
    FrameType.CREDIT: credit(Channel.SHELL, 0),
    FrameType.SIGNAL: raw(FrameType.SIGNAL, Signal(1, 2).encode()),
    FrameType.EXIT: raw(FrameType.EXIT, Exited(1, 0).encode()),
    FrameType.STATS: raw(FrameType.STATS, Stats(1, 2, 3).encode()),
    FrameType.LOG: raw(FrameType.LOG, b"text", LogSource.STDERR),
    FrameType.PING: raw(FrameType.PING, Ping(7).encode()),
    FrameType.PONG: raw(FrameType.PONG, Pong(7).encode()),
    FrameType.RESUME: raw(FrameType.RESUME, RESUME.encode()),
    FrameType.RESUMED: raw(FrameType.RESUMED, Resumed(1, True).encode()),
    FrameType.IDLE_QUERY: raw(FrameType.IDLE_QUERY, IdleQuery(1).encode()),
    FrameType.IDLE_REPLY: raw(FrameType.IDLE_REPLY, IdleReply(1, True).encode()),
    FrameType.OPEN: encode_short(FrameType.OPEN, 1),
    FrameType.STREAM: encode_bytes(1, b"x"),
    FrameType.GRANT: encode_grant(1, 5),
    FrameType.FINISH: encode_short(FrameType.FINISH, 1),
    FrameType.RESET: encode_short(FrameType.RESET, 1),
    FrameType.TRIM: raw(FrameType.TRIM, Trim(1).encode()),
}
"""A valid frame of each type, for run 1."""


def connection_in(role: Role, state: State, after_run: bool = False) -> Connection:
    """Return an end in ``state`` with nothing to send and no event; ``after_run``: IDLE again."""
    if state is State.RESUMING and role is Role.HOST:
        end = Connection(role, Hello(), RESUME)
        assert end.data_to_send() == VALID[FrameType.RESUME]
        return end
    end = Connection(role, Hello())
    if state is not State.OPENING:
        end.receive_data(VALID[FrameType.HELLO])
    if state in (State.RUNNING, State.RESUMING) or after_run:
        if role is Role.HOST:
            end.send(START)
        else:
            end.receive_data(VALID[FrameType.START])
    if after_run:
        if role is Role.HOST:
            end.receive_data(VALID[FrameType.EXIT])
        else:
            end.send(Exited(1, 0))
    if state is State.RESUMING:
        end.receive_data(VALID[FrameType.RESUME])
    if state is State.CLOSED:
        with pytest.raises(RemoteProtocolError):
            end.receive_data(b"\xff" * HEADER.size)
    while end.data_to_send() or end.next_event():
        pass
    assert end.state is state
    return end


def connected_pair() -> tuple[Connection, Connection]:
    """Return host and guest in run 1, with nothing under way."""
    return connection_in(Role.HOST, State.RUNNING), connection_in(Role.GUEST, State.RUNNING)


def events(end: Connection) -> list[Event]:
    """Return all events that wait. Messages stay held."""
    return list(iter(end.next_event, None))


def partial(end: Connection, channel: Channel) -> int:
    """Return the bytes of a message that is not whole yet."""
    return end._flow.partial(channel)


def consume_messages(end: Connection) -> list[Message]:
    """Take all events that wait, consume the messages among them and return these."""
    messages = [event for event in events(end) if isinstance(event, Message)]
    for message in messages:
        end.consumed(message)
    return messages


def exchange(host: Connection, guest: Connection) -> tuple[list[Message], list[Message]]:
    """Move bytes and consume messages until neither end has more; what host and guest received."""
    to_host: list[Message] = []
    to_guest: list[Message] = []
    while True:
        down, up = host.data_to_send(), guest.data_to_send()
        if not down and not up:
            return to_host, to_guest
        guest.receive_data(down)
        host.receive_data(up)
        to_guest += consume_messages(guest)
        to_host += consume_messages(host)


@contextmanager
def small_limits(
    window: int = 4096, step: int = 1024, cost: int = 64, payload: int = 512, message: int = 65536
) -> Iterator[None]:
    """Run the same code with limits that a test reaches at once."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            *(("WINDOW", window), ("CREDIT_STEP", step), ("FRAME_COST", cost)),
            *(("MAX_PAYLOAD", payload), ("JOIN_BELOW", payload)),
        ):
            patch.setattr(flow, name, value)
        patch.setattr(frames, "MAX_MESSAGE", message)
        yield


def whole(feed: Callable[[bytes], object], stream: bytes) -> None:
    feed(stream)


def byte_by_byte(feed: Callable[[bytes], object], stream: bytes) -> None:
    for index in range(len(stream)):
        feed(stream[index : index + 1])
