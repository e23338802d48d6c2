"""Feed the link with what a hostile end may send; see README.md in this directory.

``check`` checks what must hold for any bytes. It needs nothing but the project, and the tests call
it too. Only ``main`` needs atheris.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import replace

from gvisor_kernel.link import (
    Connection,
    Diverted,
    Event,
    Exited,
    Hello,
    IdleQuery,
    IdleReply,
    LocalProtocolError,
    Message,
    RemoteProtocolError,
    Resume,
    Resumed,
    Signal,
    Start,
)
from gvisor_kernel.link.flow import WINDOW
from gvisor_kernel.link.frames import DATA_CHANNELS, MAX_FRAME, MAX_MESSAGE, FrameType, encode_frame
from gvisor_kernel.link.state import Role, State

START = Start(1, ("x",), (), "/", "k")
RESUME = Resume(1, (("A", "b"),), "/", "k", "00" * 64)
PEER_HELLO = encode_frame(FrameType.HELLO, Hello().encode())


def make_end(situation: int) -> Connection:
    """Return an end in one of eight situations, chosen by the low bits of the input's first byte.

    If its two highest bits are set, a guest diverts frames to a kernel that speaks them itself.
    """
    role = Role.GUEST if situation & 1 else Role.HOST
    stage = situation >> 1 & 3
    if stage == 3 and role is Role.HOST:
        return Connection(role, Hello(), RESUME)
    end = Connection(role, Hello())
    end.diverts = role is Role.GUEST and situation >> 6 == 3
    if stage >= 1:
        end.receive_data(PEER_HELLO)
    if stage >= 2:
        if role is Role.HOST:
            end.send(START)
        else:
            end.receive_data(encode_frame(FrameType.START, START.encode()))
    if stage == 3:
        end.send(Exited(1, 0))
    return end


def split(stream: bytes, size: int) -> list[bytes]:
    return [stream[index : index + size] for index in range(0, len(stream), size)]


def events(end: Connection) -> list[Event]:
    return list(iter(end.next_event, None))


def feed(end: Connection, stream: list[bytes]) -> tuple[list[Event], str | None, State]:
    """Return all events, the error's text and the state. Any other exception is a finding."""
    error = None
    try:
        for piece in stream:
            end.receive_data(piece)
    except RemoteProtocolError as broken:
        error = str(broken)
        assert end.state is State.CLOSED
    return events(end), error, end.state


def reply_to(end: Connection, event: Event) -> None:
    """Reply to an event: SIGKILL ends the kernel, and after its end the next one is started."""
    if end.run is not None:
        with suppress(LocalProtocolError):  # the state may be ahead of the event
            if isinstance(event, Signal) and event.signum == 9:
                end.send(Exited(end.run, -9))
            elif isinstance(event, Resume):
                end.send(Resumed(event.run, True))
            elif isinstance(event, IdleQuery):
                end.send(IdleReply(event.run, True))
            elif isinstance(event, Diverted):
                end.divert(event.frame)
            elif isinstance(event, Exited):
                end.send(replace(START, run=end.run + 1))


def drive(end: Connection, stream: list[bytes], consume: int) -> None:
    """Use an end as an owner does: take events between reads, consume some messages late, write."""
    held: list[Message] = []
    for piece in stream:
        with suppress(RemoteProtocolError):
            end.receive_data(piece)
        for event in events(end):
            repr(event)
            if isinstance(event, Message):
                held.append(event)
            reply_to(end, event)
        for channel in DATA_CHANNELS:
            assert 0 <= end.held(channel) <= WINDOW + MAX_MESSAGE
        while len(held) > consume:
            end.consumed(held.pop(0))
        with suppress(LocalProtocolError):  # refused while there is no kernel
            end.send_message(DATA_CHANNELS[len(piece) % 5], [piece, b""])
        for output in iter(end.data_to_send, b""):
            assert len(output) < 256 * 1024 + 2 * MAX_FRAME
    while held:
        end.consumed(held.pop())
    assert all(end.held(channel) == 0 for channel in DATA_CHANNELS)


def check(data: bytes) -> None:
    """Check that bytes raise nothing but RemoteProtocolError, and the same however they are cut."""
    if not data:
        return
    first, stream = data[0], data[1:]
    size = (first >> 3 & 7) * 5 + 1
    whole = feed(make_end(first), [stream])
    assert feed(make_end(first), split(stream, 1)) == whole
    assert feed(make_end(first), split(stream, size)) == whole
    drive(make_end(first), split(stream, size), consume=first >> 6)


def main() -> None:
    import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]

    atheris.instrument_all()
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
