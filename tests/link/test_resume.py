"""RESUME: a guest that was restored in the middle of a run, and its new host."""

from __future__ import annotations

from gvisor_kernel.link import Channel, Connection, Diverted, Exited, Hello, Resume, Resumed
from gvisor_kernel.link.frames import FLAG_LAST, FrameType, pack_message
from gvisor_kernel.link.state import Role, State

from .helpers import (
    RESUME,
    START,
    connected_pair,
    connection_in,
    credit,
    data,
    events,
    exchange,
    raw,
)


def make_used_guest() -> Connection:
    """Return a guest as in a snapshot: in run 1, windows half used, a message half sent."""
    guest = connection_in(Role.GUEST, State.RUNNING)
    guest.receive_data(data(Channel.SHELL, [bytes(20_000)]))
    guest.send_message(Channel.IOPUB, [bytes(500_000)])
    while guest.data_to_send():
        pass
    guest.send_message(Channel.IOPUB, [bytes(5_000_000)])
    return guest


def test_resume_fills_the_windows_of_both_sides() -> None:
    guest = make_used_guest()
    (old,) = events(guest)
    host = Connection(Role.HOST, Hello(), RESUME)
    host.send_message(Channel.SHELL, [bytes(900_000)])
    guest.receive_data(host.data_to_send(10_000_000))
    assert isinstance(guest.next_event(), Resume)
    guest.consumed(old)  # type: ignore[arg-type]
    guest.send(Resumed(1, True))
    guest.send_message(Channel.IOPUB, [bytes(1_000_000)])
    to_host, to_guest = exchange(host, guest)
    assert [len(m.parts[0]) for m in to_host] == [1_000_000]  # nothing from before the snapshot
    assert [len(m.parts[0]) for m in to_guest] == [900_000]
    assert host.state is guest.state is State.RUNNING


def test_resuming_host_drops_stale_frames_uncounted() -> None:
    host = Connection(Role.HOST, Hello(), RESUME)
    stale = data(Channel.IOPUB, [bytes(20_000)]) * 100 + credit(Channel.SHELL, 2**31)
    host.receive_data(stale + raw(FrameType.RESUMED, Resumed(1, True).encode()))
    assert events(host) == [Resumed(1, True)]
    assert host.held(Channel.IOPUB) == 0


def test_guest_sends_no_data_before_resumed() -> None:
    guest = make_used_guest()
    host = Connection(Role.HOST, Hello(), RESUME)
    guest.receive_data(host.data_to_send())
    guest.send_message(Channel.IOPUB, [b"early"])
    assert guest.data_to_send() == b""
    guest.send(Resumed(1, True))
    host.receive_data(guest.data_to_send())
    assert [type(event).__name__ for event in events(host)] == ["Resumed", "Message"]


def test_kernel_may_exit_while_resuming() -> None:
    host = Connection(Role.HOST, Hello(), RESUME)
    host.receive_data(raw(FrameType.EXIT, Exited(1, -9).encode()))
    assert events(host) == [Exited(1, -9)]
    host.send(START)


def test_diverted_frames_are_not_decoded_except_heartbeats() -> None:
    host, guest = connected_pair()
    guest.diverts = True
    nonsense = raw(FrameType.DATA, b"no message", Channel.SHELL, FLAG_LAST)
    beat = data(Channel.HB, [b"beat"])
    guest.receive_data(nonsense + credit(Channel.IOPUB, 2**31) + beat)
    kinds = [type(event).__name__ for event in events(guest)]
    assert kinds == ["Diverted", "Diverted", "Message"]
    own = raw(FrameType.DATA, b"".join(pack_message([b"x"])), Channel.IOPUB, FLAG_LAST)
    guest.divert(own)
    assert guest.queued() == len(own)
    assert guest.data_to_send() == own
    assert Diverted(nonsense).frame == nonsense
    guest.divert(own)
    guest.send(Exited(1, 0))
    assert guest.queued() == 0
    host.receive_data(guest.data_to_send())
    assert events(host) == [Exited(1, 0)]


def test_held_message_of_an_earlier_run_does_not_count() -> None:
    host, guest = connected_pair()
    guest.send_message(Channel.IOPUB, [bytes(900_000)])
    host.receive_data(guest.data_to_send(2_000_000))
    (message,) = events(host)
    guest.send(Exited(1, 0))
    host.receive_data(guest.data_to_send())
    host.send(SECOND_START)
    assert host.held(Channel.IOPUB) == 0
    host.consumed(message)  # type: ignore[arg-type]
    host.consumed(message)  # type: ignore[arg-type]
    assert host.held(Channel.IOPUB) == 0


SECOND_START = type(START)(2, START.argv, START.environment, START.cwd, START.key)
