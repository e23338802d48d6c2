"""When memory is measured, and how fast a kernel is read while clients use other kernels."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gvisor_kernel.bridge.limits import (
    BURST,
    CONTROL_BURST,
    CONTROL_PER_SECOND,
    CPU_BURST,
    CPU_PER_SECOND,
    IN_USE_SECONDS,
    PER_SECOND,
    MemoryWatch,
    Share,
    Sharing,
)
from gvisor_kernel.bridge.sandbox_link import READ_SIZE
from gvisor_kernel.host.cgroups import (
    MAX_GROWTH,
    MAX_INTERVAL_SECONDS,
    MIN_INTERVAL_SECONDS,
    seconds_to_next_measurement,
)
from gvisor_kernel.link import Connection, Hello, Start
from gvisor_kernel.link.connection import FRAME_PRICE
from gvisor_kernel.link.frames import FLAG_LAST, Channel, FrameType, encode_frame, pack_message
from gvisor_kernel.link.state import Role

from .conftest import Clock

MIB = 1024 * 1024


@pytest.fixture
def sharing(clock: Clock) -> Sharing:
    return Sharing(clock)


def make_end() -> Connection:
    """Return a host's end in a run."""
    end = Connection(Role.HOST, Hello())
    end.receive_data(encode_frame(FrameType.HELLO, Hello().encode()))
    end.send(Start(1, ("x",), (), "/", "k"))
    return end


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


def test_cpu_time_is_shared(sharing: Sharing, clock: Clock) -> None:
    """Also by a kernel whose messages are small, but only while others are used."""
    loud, near = sharing.add(), sharing.add()
    assert loud.spend(1, 0, 100.0) == 0
    near.note_use()
    assert loud.spend(1, 0, CPU_BURST) == 0
    for _ in range(100):
        pause = loud.spend(1, 0, 0.01)
        assert pause == pytest.approx(0.01 / CPU_PER_SECOND)
        clock.now += pause
        near.note_use()


def test_frames_that_carry_nothing_have_a_rate(sharing: Sharing, clock: Clock) -> None:
    """Also for a kernel that is used alone, or ends."""
    share = sharing.add()
    share.suspend_limit(1000)
    assert share.spend(1, CONTROL_BURST) == 0
    for _ in range(100):
        pause = share.spend(1, 1000)
        assert pause == pytest.approx(1000 / CONTROL_PER_SECOND)
        clock.now += pause


def test_frames_without_credit_are_counted() -> None:
    end = make_end()
    before = end.control_received
    end.receive_data(encode_frame(FrameType.CREDIT, bytes(4), Channel.SHELL) * 10)
    assert end.control_received == before + 10 * (4 + FRAME_PRICE)
    before = end.control_received
    text = b"".join(bytes(part) for part in pack_message([b"x"]))
    end.receive_data(encode_frame(FrameType.DATA, text, Channel.IOPUB, FLAG_LAST))
    assert end.control_received == before
    for kind, size in ((FrameType.PONG, 8), (FrameType.PING, 8), (FrameType.LOG, 0)):
        before = end.control_received
        end.receive_data(encode_frame(kind, bytes(size)))
        assert end.control_received == before + size + FRAME_PRICE


SIZES = st.integers(0, 1 << 45)


@given(SIZES, SIZES)
def test_next_measurement_is_soon_enough_for_fastest_growth(used: int, limit: int) -> None:
    wait = seconds_to_next_measurement(used, limit)
    assert MIN_INTERVAL_SECONDS <= wait <= MAX_INTERVAL_SECONDS
    if used <= limit:
        assert used + wait * MAX_GROWTH <= limit + MIN_INTERVAL_SECONDS * MAX_GROWTH + 1


def test_kernel_is_asked_for_memory_before_its_limit() -> None:
    """Once at each step towards the limit, and again when it was far from it."""

    class Sandbox:
        used = 0

        def memory_used(self) -> int:
            return self.used

    async def measure(*percents: int, answer: bool = True, is_saved: bool = False) -> list[str]:
        sandbox: Any = Sandbox()
        done: list[str] = []

        def ask() -> bool:
            done.append("short")
            return answer

        watch = MemoryWatch(
            *(sandbox, 1000 * MIB, lambda used: done.append("over")),
            *(lambda used: done.append("far over"), ask),
        )
        watch.only_overruns = is_saved
        for percent in percents:
            sandbox.used = percent * 10 * MIB
            watch.start()
            watch.stop()
        return done

    assert asyncio.run(measure(30, 49, 51, 52, 45, 52)) == ["short"]
    assert asyncio.run(measure(51, 90, 101, 120)) == [*["short"] * 3, "over", "far over"]
    assert asyncio.run(measure(51, 35, 51)) == ["short", "short"]
    assert asyncio.run(measure(51, 51, answer=False)) == ["short", "short"], "nobody was asked"
    assert asyncio.run(measure(51, 101, 120, is_saved=True)) == ["far over"]


@pytest.mark.parametrize("used", [600, 1100, 2000])
def test_watch_that_is_stopped_by_what_it_calls_measures_no_more(used: int) -> None:
    """A sandbox that sleeps is woken to be asked, and so its watch is stopped and started."""

    class Sandbox:
        measured = 0

        def memory_used(self) -> int:
            self.measured += 1
            return used * MIB

    async def measure() -> int:
        sandbox: Any = Sandbox()
        calls = 0

        def renew(*_: int) -> bool:
            nonlocal calls
            calls += 1
            watch.stop()
            if calls == 1:
                watch.start()
                watch.stop()
            return True

        watch = MemoryWatch(sandbox, 1000 * MIB, renew, renew, renew)
        loop = asyncio.get_running_loop()
        timers: list[asyncio.TimerHandle] = []
        call_later = loop.call_later

        def note(*arguments: Any) -> asyncio.TimerHandle:
            timers.append(call_later(*arguments))
            return timers[-1]

        loop.call_later = note  # type: ignore[method-assign,assignment]
        watch.start()
        assert calls
        return sum(not timer.cancelled() for timer in timers)

    assert asyncio.run(measure()) == 0
