"""When the bridge measures a sandbox's memory, and how it formats a size."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gvisor_kernel.bridge.memory import (
    MAX_GROWTH,
    MAX_LOOK_SECONDS,
    MIN_LOOK_SECONDS,
    format_size,
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


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (300 * MIB, "300 MiB"),
        (1536 * MIB, "1.5 GiB"),
        (4 << 30, "4 GiB"),
    ],
)
def test_size_is_formatted_for_people(size: int, text: str) -> None:
    assert format_size(size) == text
