"""A shutdown request ends only the kernel that it was sent to."""

from __future__ import annotations

import pytest

from gvisor_kernel.bridge.run import STRAY_SECONDS, ShutdownRequests

from .conftest import Clock


@pytest.fixture
def requests(clock: Clock) -> ShutdownRequests:
    made = ShutdownRequests(clock)
    made.begin()
    return made


def test_announced_request_ends_running_kernel(requests: ShutdownRequests) -> None:
    requests.announce()
    assert requests.arrive(running=True)


def test_shutdown_is_accepted_without_announcement(requests: ShutdownRequests) -> None:
    assert requests.arrive(running=True)


def test_late_request_does_not_end_next_kernel(
    requests: ShutdownRequests,
) -> None:
    requests.announce()
    requests.begin()
    assert not requests.arrive(running=True)
    assert requests.arrive(running=True)


def test_request_before_announcement_hides_no_other(requests: ShutdownRequests) -> None:
    assert requests.arrive(running=True)
    requests.announce()
    requests.begin()
    assert requests.arrive(running=True)


def test_request_for_dead_kernel_ends_nothing(requests: ShutdownRequests) -> None:
    requests.announce()
    assert not requests.arrive(running=False)
    requests.begin()
    assert requests.arrive(running=True)


def test_missing_request_is_forgotten(requests: ShutdownRequests, clock: Clock) -> None:
    requests.announce()
    requests.begin()
    clock.now += STRAY_SECONDS + 1
    assert requests.arrive(running=True)
