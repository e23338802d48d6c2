"""A kernel that sends much, beside others that clients use."""

from __future__ import annotations

import pytest

from gvisor_kernel.bridge.sandbox_link import READ_SIZE
from gvisor_kernel.bridge.sharing import BURST, IN_USE_SECONDS, PER_SECOND, Share, Sharing

MIB = 1024 * 1024


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sharing(clock: Clock) -> Sharing:
    return Sharing(clock)


def pauses(share: Share, size: int) -> float:
    """Over ``size`` bytes that come as fast as they are read."""
    return sum(share.take(READ_SIZE) for _ in range(size // READ_SIZE))


def test_alone_it_is_read_at_once(sharing: Sharing) -> None:
    share = sharing.add()
    share.note_use()
    assert pauses(share, 100 * MIB) == 0


def test_beside_one_that_is_used_it_is_read_slowly(sharing: Sharing, clock: Clock) -> None:
    loud, near = sharing.add(), sharing.add()
    near.note_use()
    assert pauses(loud, BURST) == 0
    for _ in range(100):
        pause = loud.take(READ_SIZE)
        assert pause == pytest.approx(READ_SIZE / PER_SECOND)
        clock.now += pause
        near.note_use()


def test_what_is_read_late_is_not_held_against_it_twice(sharing: Sharing, clock: Clock) -> None:
    loud, near = sharing.add(), sharing.add()
    near.note_use()
    pauses(loud, BURST)
    clock.now += 1.5 * READ_SIZE / PER_SECOND
    assert loud.take(READ_SIZE) == 0


def test_others_that_nobody_uses_do_not_count(sharing: Sharing, clock: Clock) -> None:
    loud, near = sharing.add(), sharing.add()
    near.note_use()
    clock.now += IN_USE_SECONDS
    assert pauses(loud, 100 * MIB) == 0
    near.note_use()
    near.close()
    near.close()
    assert pauses(loud, 100 * MIB) == 0


def test_one_that_is_being_ended_is_read_at_once(sharing: Sharing, clock: Clock) -> None:
    loud, near = sharing.add(), sharing.add()
    near.note_use()
    loud.suspend_limit(1)
    assert pauses(loud, 100 * MIB) == 0
    clock.now += 1
    assert pauses(loud, 100 * MIB) > 0
