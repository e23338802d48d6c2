"""Two carriers over connections that lose, keep and cut bytes anywhere."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gvisor_kernel.link.carrier import HEAD, MAX_NOTE, MAX_PAYLOAD, WINDOW, Carrier
from gvisor_kernel.link.frames import RemoteProtocolError

SECRET = bytes(range(16))


def make_pair() -> tuple[Carrier, Carrier]:
    host, guest = Carrier(SECRET, is_host=True), Carrier(SECRET, is_host=False)
    connect(host, guest)
    return host, guest


def connect(host: Carrier, guest: Carrier, *, before: bytes = b"", after: bytes = b"") -> bytes:
    """Make another connection. ``before`` and ``after``: what is left of the one before, on the way
    to the guest and to the host. Returns what the guest has received."""
    got = guest.receive(before + host.resume(os.urandom(16)))
    host.receive(after + guest.data_to_send())
    assert host.connected
    return got


def drain(carrier: Carrier) -> bytes:
    pieces = []
    while data := carrier.data_to_send():
        pieces.append(data)
    return b"".join(pieces)


@given(
    steps=st.lists(
        st.tuples(
            st.booleans(),  # the guest writes, or the host
            st.binary(max_size=300),
            st.integers(0, 400),  # how many of the bytes on the way arrive
            st.booleans(),  # the connection is cut
        ),
        max_size=30,
    )
)
def test_no_byte_is_lost_or_doubled_by_cuts_anywhere(
    steps: list[tuple[bool, bytes, int, bool]],
) -> None:
    host, guest = make_pair()
    wires = {True: b"", False: b""}
    sent = {True: b"", False: b""}
    got = {True: b"", False: b""}

    def deliver(from_guest: bool, size: int) -> None:
        data, wires[from_guest] = wires[from_guest][:size], wires[from_guest][size:]
        got[from_guest] += (host if from_guest else guest).receive(data)

    for from_guest, data, size, cut in steps:
        sender = guest if from_guest else host
        sender.write(data)
        sent[from_guest] += data
        wires[from_guest] += drain(sender)
        deliver(from_guest, size)
        if cut:
            host.disconnect()
            # Half a packet of the connection before may still be in the guest's pipes.
            got[False] += guest.receive(wires[False][: size // 2])
            resume = host.resume(os.urandom(16))
            got[False] += guest.receive(resume)
            got[True] += host.receive(wires[True][:size] + drain(guest))
            assert host.connected
            wires = {True: b"", False: b""}
    for _ in range(2):
        for from_guest, sender in ((True, guest), (False, host)):
            wires[from_guest] += drain(sender)
            deliver(from_guest, len(wires[from_guest]))
    assert got == sent


def test_what_is_not_confirmed_is_bounded_and_sent_again() -> None:
    host, guest = make_pair()
    guest.write(b"x" * WINDOW)
    assert guest.room == 0
    with pytest.raises(AssertionError):
        guest.write(b"y")
    drain(guest)
    host.disconnect()
    host.receive(b"")
    guest.receive(host.resume(os.urandom(16)))
    assert len(host.receive(drain(guest))) == WINDOW
    guest.receive(drain(host))
    assert guest.room == WINDOW


def test_a_lost_packet_stops_the_stream_until_the_next_resume() -> None:
    host, guest = make_pair()
    guest.write(b"first")
    drain(guest)
    guest.write(b"second")
    assert host.receive(drain(guest)) == b""
    assert host.is_lost
    host.disconnect()
    guest.receive(host.resume(os.urandom(16)))
    assert host.receive(drain(guest)) == b"firstsecond"


def test_what_is_sent_for_two_resumes_is_taken_once() -> None:
    """The host repeats a RESUME whose answer is late."""
    host, guest = make_pair()
    guest.write(b"only once")
    drain(guest)
    host.disconnect()
    guest.receive(host.resume(os.urandom(16)))
    second = host.resume(os.urandom(16))
    assert host.receive(drain(guest)) == b"only once"
    guest.receive(second)
    assert host.receive(drain(guest)) == b""
    assert host.connected
    assert not host.is_lost


def test_changed_bytes_are_noticed() -> None:
    host, guest = make_pair()
    guest.write(b"number 1")
    data = bytearray(drain(guest))
    data[-1] ^= 1
    assert host.receive(bytes(data)) == b""
    assert host.is_lost


def test_a_resume_is_answered_only_to_who_has_the_secret() -> None:
    _, guest = make_pair()
    stranger = Carrier(bytes(16), is_host=True)
    guest.receive(stranger.resume(bytes(16)))
    assert not guest.wants_to_send


def test_an_answer_to_an_earlier_connection_is_no_answer() -> None:
    host, guest = make_pair()
    guest.receive(host.resume(os.urandom(16)))
    late = drain(guest)
    host.disconnect()
    host.resume(os.urandom(16))
    host.receive(late)
    assert not host.connected


def test_more_than_was_sent_cannot_be_confirmed() -> None:
    host, guest = make_pair()
    other_host, _ = make_pair()
    other_host.received = 10
    with pytest.raises(RemoteProtocolError):
        guest.receive(other_host.resume(os.urandom(16)))
    assert host.room == WINDOW


def test_packets_are_small_whatever_is_claimed() -> None:
    host, _ = make_pair()
    host.receive(HEAD.pack(1, MAX_PAYLOAD + 1, 0, 0, 0) + bytes(MAX_PAYLOAD))
    assert host.is_lost
    assert len(host._arrived) < 1000


def test_notes_and_the_end_arrive_before_data() -> None:
    host, guest = make_pair()
    guest.write(b"data")
    guest.note(b"n" * MAX_NOTE)
    guest.end()
    assert host.receive(guest.data_to_send()) == b"data"
    assert list(host.notes) == [b"n" * MAX_NOTE]
    assert host.ended
