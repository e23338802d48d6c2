"""When a sandbox naps, and when its kernel is asked for memory: steps of one ``NapWatch`` and one
``RestWatch``, with a clock and a sandbox of the test's own."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from gvisor_kernel.bridge.sleep import (
    BREAK_SECONDS,
    LOOK_SECONDS,
    LOOKS,
    NAP_SECONDS,
    PONG_SECONDS,
    REST_SECONDS,
    SETTLE_LOOKS,
    SETTLE_SECONDS,
    SHORT_LOOK_SECONDS,
    NapPolicy,
    NapWatch,
    RestWatch,
)

PID_1_WAIT_SECONDS = 10.0
"""After that long without a byte PID 1 wakes by itself."""


class Clock:
    """The part of a loop that is used. One timer at a time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.late = 0.0
        """How late each timer goes off."""
        self._due: tuple[float, Callable[[], None]] | None = None

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Any:
        self._due = due = (self.now + seconds, callback)

        def cancel() -> None:
            if self._due is due:
                self._due = None

        return SimpleNamespace(cancel=cancel)

    def step(self) -> float:
        """Let the timer go off; return how long it has waited."""
        assert self._due is not None
        (at, callback), self._due = self._due, None
        waited, self.now = at - self.now, at + self.late
        callback()
        return waited


class Room:
    """A sandbox, and what its owner is told."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.code: int | None = 7
        self.stopped = False
        self.allowed = True
        self.pings = self.ends = 0
        self.told: list[bool] = []

    def find_code_processes(self) -> list[int]:
        return [1]

    def measure_code(self, pids: list[int]) -> int | None:
        assert pids == [1]
        return self.code

    def pause(self) -> None:
        self.stopped = True

    def resume(self) -> None:
        self.stopped = False

    def ping(self) -> None:
        assert not self.stopped
        self.pings += 1

    def end(self) -> None:
        self.ends += 1

    def run_code(self) -> None:
        assert self.code is not None
        self.code += 1


@pytest.fixture
def room() -> Room:
    return Room()


@pytest.fixture
def watch(room: Room) -> NapWatch:
    policy = NapPolicy(lambda: room.allowed, room.ping, room.told.append, room.end)
    watch = NapWatch(room, policy, room.clock)  # type: ignore[arg-type]
    watch.begin()
    return watch


def go_to_break(room: Room) -> None:
    assert room.stopped
    assert room.clock.step() == pytest.approx(NAP_SECONDS)
    assert not room.stopped


def look(room: Room) -> None:
    room.clock.step()  # PID 1 ends its reply
    for _ in range(LOOKS):
        assert not room.stopped
        room.clock.step()


def delay_ping(room: Room, watch: NapWatch) -> None:
    """Pings have tests of their own."""
    watch._sent_at = room.clock.now


def test_a_quiet_sandbox_naps_with_breaks(room: Room, watch: NapWatch) -> None:
    assert (watch.active, watch.napping) == (True, False)
    look(room)
    assert room.clock.now == pytest.approx(BREAK_SECONDS + LOOK_SECONDS)
    for _ in range(3):
        assert watch.napping
        delay_ping(room, watch)
        go_to_break(room)
        assert room.clock.step() == pytest.approx(BREAK_SECONDS)
    assert room.told == [True, *[False, True] * 3]


def test_code_that_runs_twice_during_the_look_prevents_naps(room: Room, watch: NapWatch) -> None:
    room.clock.step()
    for _ in range(2):
        assert watch.active
        room.run_code()
        room.clock.step()
    assert not watch.active
    assert (room.told, room.ends) == ([], 1)


def test_code_that_runs_once_during_the_look_does_not(room: Room, watch: NapWatch) -> None:
    """Nor does what PID 1 still runs for its reply."""
    for runs in (True, False, True, *[False] * (LOOKS - 2)):
        if runs:
            room.run_code()
        room.clock.step()
    assert watch.napping


def test_an_owner_who_has_work_prevents_naps(room: Room, watch: NapWatch) -> None:
    room.allowed = False
    for _ in range(2):
        room.clock.step()
    assert not watch.active
    assert (room.told, room.ends) == ([], 1)


def test_rare_code_runs_in_a_break_and_naps_go_on(room: Room, watch: NapWatch) -> None:
    look(room)
    for runs in (True, *[False] * int(LOOK_SECONDS / NAP_SECONDS), True):
        go_to_break(room)
        delay_ping(room, watch)
        if runs:
            room.run_code()
            room.clock.step()
            assert not room.stopped
            assert room.clock.step() == pytest.approx(SETTLE_SECONDS)
        else:
            room.clock.step()
        assert room.stopped
    assert room.ends == 0


def test_code_that_goes_on_ends_the_naps(room: Room, watch: NapWatch) -> None:
    look(room)
    go_to_break(room)
    for _ in range(1 + SETTLE_LOOKS):
        assert watch.active
        room.run_code()
        room.clock.step()
    assert not watch.active
    assert (room.stopped, room.told[-1], room.ends) == (False, False, 1)


def test_code_that_ends_soon_does_not(room: Room, watch: NapWatch) -> None:
    look(room)
    go_to_break(room)
    for _ in range(SETTLE_LOOKS):
        room.run_code()
        room.clock.step()
    assert not room.stopped
    delay_ping(room, watch)
    room.clock.step()
    assert (room.stopped, room.ends) == (True, 0)


def test_code_in_every_nap_ends_the_naps(room: Room, watch: NapWatch) -> None:
    """Also code that runs while the sandbox is stopped, as it does until its next system call."""
    look(room)
    room.run_code()
    go_to_break(room)
    room.clock.step()
    delay_ping(room, watch)
    room.clock.step()
    room.run_code()
    go_to_break(room)
    room.clock.step()
    assert (watch.active, room.ends) == (False, 1)


def test_work_of_the_owner_in_a_break_ends_the_naps(room: Room, watch: NapWatch) -> None:
    look(room)
    go_to_break(room)
    room.allowed = False
    room.clock.step()
    assert (watch.active, room.stopped, room.ends) == (False, False, 1)


def test_an_end_of_a_process_ends_the_naps(room: Room, watch: NapWatch) -> None:
    look(room)
    go_to_break(room)
    room.code = None
    room.clock.step()
    assert (watch.active, room.ends) == (False, 1)


def test_a_sandbox_whose_code_cannot_be_measured_never_naps(room: Room, watch: NapWatch) -> None:
    watch.end()
    room.code = None
    watch.begin()
    assert not watch.active


def nap_until_ping(room: Room) -> None:
    look(room)
    while not room.pings:
        go_to_break(room)
        room.clock.step()


def test_pid_1_shows_that_it_lives_and_its_work_does_not_count(room: Room, watch: NapWatch) -> None:
    nap_until_ping(room)
    assert not room.stopped
    room.run_code()
    watch.note_pong()
    room.clock.step()
    assert (room.stopped, room.pings, room.ends) == (True, 1, 0)
    go_to_break(room)
    assert room.clock.step() == pytest.approx(BREAK_SECONDS)
    assert room.stopped


@pytest.mark.parametrize("late", [0.0, 0.3])
def test_pid_1_is_asked_before_it_wakes_by_itself(room: Room, watch: NapWatch, late: float) -> None:
    """Also on a busy host, where each nap is longer. Else it could not be told from other code."""
    room.clock.late = late
    asked = 0.0
    for pings in range(1, 4):
        while room.pings < pings:
            room.clock.step()
        assert room.clock.now - asked < PID_1_WAIT_SECONDS
        asked = room.clock.now
        watch.note_pong()


def test_naps_end_without_a_sign_of_life(room: Room, watch: NapWatch) -> None:
    nap_until_ping(room)
    assert room.clock.step() == pytest.approx(PONG_SECONDS)
    assert (watch.active, room.stopped, room.ends) == (False, False, 1)


def test_a_message_ends_the_naps_at_once(room: Room, watch: NapWatch) -> None:
    look(room)
    assert room.stopped
    watch.end()
    assert (watch.active, watch.napping, room.stopped, room.ends) == (False, False, False, 0)
    assert room.told == [True, False]
    watch.end()
    assert room.told == [True, False]


# -- memory ----------------------------------------------------------------------------------------


class Owner:
    """The owner of a kernel that rests, and what it was asked."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.short = self.busy = False
        self.asked: list[tuple[float, bool]] = []
        loop: Any = self.clock
        self.watch = RestWatch(self.give_back, lambda: self.short, loop)

    def give_back(self, short: bool) -> bool:
        if self.busy and not short:
            return False
        self.asked.append((self.clock.now, short))
        return True

    def step_until(self, seconds: float) -> None:
        while self.watch.active and self.clock.now < seconds:
            self.clock.step()


def test_a_kernel_is_asked_once_when_it_has_rested() -> None:
    owner = Owner()
    owner.watch.note_activity()
    owner.step_until(20)
    owner.watch.note_activity()
    owner.step_until(1000)
    ((at, short),) = owner.asked
    assert 0 <= at - 20 - REST_SECONDS <= SHORT_LOOK_SECONDS
    assert not short
    owner.watch.note_activity()
    owner.step_until(2000)
    assert len(owner.asked) == 2
    owner.watch.note_activity()
    owner.watch.end()
    owner.watch.note_activity()
    assert not owner.watch.active


def test_a_kernel_that_works_is_asked_only_if_the_host_is_short() -> None:
    owner = Owner()
    owner.busy = True
    owner.watch.note_activity()
    owner.step_until(100)
    assert not owner.asked
    owner.short = True
    owner.step_until(200)
    assert [short for _, short in owner.asked] == [True]
    assert owner.clock.now <= 100 + 2 * SHORT_LOOK_SECONDS
