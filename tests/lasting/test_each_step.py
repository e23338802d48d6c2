"""SIGKILL at each step of each verb: the kernel or what was saved of it is there, and no more.

As ``tests/faults/test_each_step``, whose steps are found at run time.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from .. import leaks
from ..faults.test_each_step import NOT_FOR_PEOPLE, Lane, Stages
from ..sweeps import needs_all
from ..world import World

VERBS: Stages = {name: (name, "auto") for name in ("hibernate", "wake", "save", "rewind", "branch")}
VERBS |= {"branch of a sleeper": ("branch_saved", "auto"), "take": ("take", "auto")}
HAS = {verb: {"2"} for verb in VERBS} | {"rewind": {"1", "2"}}
"""What ``x`` may be after each verb that was finished or not."""
CHOSEN = [name for name in VERBS if name != "take"]


@pytest.fixture
def lane(world: World, shared_snapshot: str) -> Iterator[Lane]:
    lane = Lane(world.base / "l", "tests.lasting.points", VERBS)
    try:
        yield lane
    finally:
        lane.close()
        shutil.rmtree(lane.world.base)


@needs_all
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("verb", CHOSEN)
def test_a_kernel_is_there_whenever_its_server_is_killed(lane: Lane, verb: str) -> None:
    listed = lane.ask(verb, None, "owner")
    assert listed["status"] == 0, lane.words()
    before = leaks.cgroups(lane.world)
    points = list(listed["points"])
    print(len(points), "points")
    missed = 0
    for at in points:
        try:
            ended = lane.ask(verb, at, "owner")
            assert ended["status"] in (0, -9), lane.words()
            missed += ended["status"] == 0
            taken = lane.ask("take", None, "owner")
            assert taken["status"] == 0, lane.words()
            if ended["status"] == -9:
                (said,) = taken["said"]
                assert said in HAS[verb], said
            assert lane.ask("sweep", None, "owner")["status"] == 0
            lane.assert_clean(before)
        except (AssertionError, ValueError) as error:
            raise AssertionError(f"the owner, killed at {verb} / {at}: {error}") from error
    assert missed <= 1 + len(points) // 10, "too many points were not passed again"
    assert not NOT_FOR_PEOPLE.search(lane.words()), lane.words()


@needs_all
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("verb", CHOSEN)
def test_a_kernel_is_there_whenever_a_part_is_killed(lane: Lane, verb: str) -> None:
    lane.ask(verb, None, "")
    listed = lane.ask(verb, None, "")
    before = leaks.cgroups(lane.world)
    cases = [(at, part) for at, parts in listed["points"].items() for part in parts]
    missed, dead = 0, 0
    for at, part in cases:
        try:
            ended = lane.ask(verb, at, part)
            missed += ended["points"].get(at) != ["done"]
            (said,) = ended["said"]
            dead += said == "may be dead"
            assert said in HAS[verb] | {"may be dead"}, said
            lane.assert_clean(before)
        except (AssertionError, ValueError) as error:
            raise AssertionError(f"{part}, killed at {verb} / {at}: {error}") from error
    print(len(cases), "cases, the kernel has died in", dead)
    assert missed <= 1 + len(cases) // 10, "too many points were not passed again"
    assert not NOT_FOR_PEOPLE.search(lane.words()), lane.words()
