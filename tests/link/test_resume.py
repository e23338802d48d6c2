"""A guest that was restored in the middle of a run, and the host that tells it to go on."""

from __future__ import annotations

from gvisor_kernel.link import Channel, Connection, Diverted, Exited, Hello, Resume, Resumed
from gvisor_kernel.link.frames import FLAG_LAST, FrameType, pack_message
from gvisor_kernel.link.state import Role, State

from .helpers import RESUME, START, brought_to, carried, credit, data, events, joined, raw


def used_guest() -> Connection:
    """A guest as an image has it: in run 1, its windows half used, a message half sent."""
    guest = brought_to(Role.GUEST, State.RUNNING)
    guest.receive_data(data(Channel.SHELL, [bytes(20_000)]))
    guest.send_message(Channel.IOPUB, [bytes(500_000)])
    while guest.data_to_send():
        pass
    guest.send_message(Channel.IOPUB, [bytes(5_000_000)])
    return guest


def test_both_sides_begin_with_full_windows() -> None:
    guest = used_guest()
    (old,) = events(guest)
    host = Connection(Role.HOST, Hello(), RESUME)
    host.send_message(Channel.SHELL, [bytes(900_000)])
    guest.receive_data(host.data_to_send(10_000_000))
    assert isinstance(guest.next_event(), Resume)
    guest.consumed(old)  # type: ignore[arg-type]
    guest.send(Resumed(1, True))
    guest.send_message(Channel.IOPUB, [bytes(1_000_000)])
    to_host, to_guest = carried(host, guest)
    assert [len(m.parts[0]) for m in to_host] == [1_000_000]  # and nothing of the image's life
    assert [len(m.parts[0]) for m in to_guest] == [900_000]
    assert host.state is guest.state is State.RUNNING


def test_a_host_drops_uncounted_what_came_before() -> None:
    host = Connection(Role.HOST, Hello(), RESUME)
    stale = data(Channel.IOPUB, [bytes(20_000)]) * 100 + credit(Channel.SHELL, 2**31)
    host.receive_data(stale + raw(FrameType.RESUMED, Resumed(1, True).encode()))
    assert events(host) == [Resumed(1, True)]
    assert host.held(Channel.IOPUB) == 0


def test_a_guest_says_nothing_on_channels_before_it_has_resumed() -> None:
    guest = used_guest()
    host = Connection(Role.HOST, Hello(), RESUME)
    guest.receive_data(host.data_to_send())
    guest.send_message(Channel.IOPUB, [b"early"])
    assert guest.data_to_send() == b""
    guest.send(Resumed(1, True))
    host.receive_data(guest.data_to_send())
    assert [type(event).__name__ for event in events(host)] == ["Resumed", "Message"]


def test_a_kernel_may_die_instead() -> None:
    host = Connection(Role.HOST, Hello(), RESUME)
    host.receive_data(raw(FrameType.EXIT, Exited(1, -9).encode()))
    assert events(host) == [Exited(1, -9)]
    host.send(START)


def test_diverted_frames_pass_unread_and_heartbeats_do_not() -> None:
    host, guest = joined()
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


def test_what_is_held_of_an_earlier_run_is_nobody_s() -> None:
    host, guest = joined()
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
