"""Sizes are shown with a unit that suits them."""

from __future__ import annotations

import pytest

from gvisor_kernel.host.sizes import describe_size

MIB = 1024**2


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (300 * MIB, "300 MiB"),
        (1536 * MIB, "1.5 GiB"),
        (4 << 30, "4 GiB"),
    ],
)
def test_size_is_formatted_for_people(size: int, text: str) -> None:
    assert describe_size(size) == text
