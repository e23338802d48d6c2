"""When the bridge measures a sandbox's memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gvisor_kernel.host.cgroups import (
    MAX_GROWTH,
    MAX_INTERVAL_SECONDS,
    MIN_INTERVAL_SECONDS,
    seconds_to_next_measurement,
)

MIB = 1024**2
SIZES = st.integers(0, 1 << 45)


@given(SIZES, SIZES)
def test_next_measurement_is_soon_enough_for_fastest_growth(used: int, limit: int) -> None:
    wait = seconds_to_next_measurement(used, limit)
    assert MIN_INTERVAL_SECONDS <= wait <= MAX_INTERVAL_SECONDS
    if used <= limit:
        assert used + wait * MAX_GROWTH <= limit + MIN_INTERVAL_SECONDS * MAX_GROWTH + 1
