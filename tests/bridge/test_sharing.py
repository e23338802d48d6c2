"""The read rate of a kernel that floods its output while clients use other kernels."""

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
    """Return the sum of the pauses while ``size`` bytes are read at once."""
    return sum(share.spend(READ_SIZE) for _ in range(size // READ_SIZE))


def test_only_used_kernel_is_not_limited(sharing: Sharing) -> None:
    share = sharing.add()
    share.note_use()
    assert pauses(share, 100 * MIB) == 0


def test_kernel_beside_used_one_is_read_slowly(sharing: Sharing, clock: Clock) -> None:
    loud, near = sharing.add(), sharing.add()
    near.note_use()
    assert pauses(loud, BURST) == 0
    for _ in range(100):
        pause = loud.spend(READ_SIZE)
        assert pause == pytest.approx(READ_SIZE / PER_SECOND)
        clock.now += pause
        near.note_use()


def test_late_read_reduces_next_pause(sharing: Sharing, clock: Clock) -> None:
    loud, near = sharing.add(), sharing.add()
    near.note_use()
    pauses(loud, BURST)
    clock.now += 1.5 * READ_SIZE / PER_SECOND
    assert loud.spend(READ_SIZE) == 0


def test_unused_kernels_do_not_limit_others(sharing: Sharing, clock: Clock) -> None:
    loud, near = sharing.add(), sharing.add()
    near.note_use()
    clock.now += IN_USE_SECONDS
    assert pauses(loud, 100 * MIB) == 0
    near.note_use()
    near.close()
    near.close()
    assert pauses(loud, 100 * MIB) == 0


def test_ending_kernel_is_not_limited(sharing: Sharing, clock: Clock) -> None:
    loud, near = sharing.add(), sharing.add()
    near.note_use()
    loud.suspend_limit(1)
    assert pauses(loud, 100 * MIB) == 0
    clock.now += 1
    assert pauses(loud, 100 * MIB) > 0
