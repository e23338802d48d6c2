"""When the bridge measures a sandbox's memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gvisor_kernel.bridge.memory import (
    MAX_GROWTH,
    MAX_LOOK_SECONDS,
    MIN_LOOK_SECONDS,
    seconds_to_next_look,
)

MIB = 1024**2
SIZES = st.integers(0, 1 << 45)


@given(SIZES, SIZES)
def test_next_look_is_soon_enough_for_fastest_growth(used: int, limit: int) -> None:
    wait = seconds_to_next_look(used, limit)
    assert MIN_LOOK_SECONDS <= wait <= MAX_LOOK_SECONDS
    if used <= limit:
        assert used + wait * MAX_GROWTH <= limit + MIN_LOOK_SECONDS * MAX_GROWTH + 1
