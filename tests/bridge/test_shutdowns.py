"""For which kernel a shutdown request was meant."""

from __future__ import annotations

import pytest

from gvisor_kernel.bridge import shutdowns
from gvisor_kernel.bridge.shutdowns import STRAY_SECONDS, ShutdownRequests


@pytest.fixture
def requests() -> ShutdownRequests:
    made = ShutdownRequests()
    made.begin()
    return made


def test_one_ends_the_kernel_that_runs(requests: ShutdownRequests) -> None:
    requests.announce()
    assert requests.arrive(running=True)


def test_nor_has_it_to_be_announced(requests: ShutdownRequests) -> None:
    assert requests.arrive(running=True)


def test_one_that_comes_when_the_next_kernel_runs_does_not_end_that(
    requests: ShutdownRequests,
) -> None:
    requests.announce()
    requests.begin()
    assert not requests.arrive(running=True)
    assert requests.arrive(running=True)


def test_one_that_came_before_it_was_announced_hides_no_other(requests: ShutdownRequests) -> None:
    assert requests.arrive(running=True)
    requests.announce()
    requests.begin()
    assert requests.arrive(running=True)


def test_one_for_a_dead_kernel_ends_nothing(requests: ShutdownRequests) -> None:
    requests.announce()
    assert not requests.arrive(running=False)
    requests.begin()
    assert requests.arrive(running=True)


def test_one_that_never_comes_is_forgotten(
    requests: ShutdownRequests, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests.announce()
    requests.begin()
    late = shutdowns.time.monotonic() + STRAY_SECONDS + 1
    monkeypatch.setattr(shutdowns.time, "monotonic", lambda: late)
    assert requests.arrive(running=True)
