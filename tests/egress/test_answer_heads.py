"""Heads of answers are bounded before they are parsed, however they are cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gvisor_kernel.egress.upstream import MAX_BYTES, MAX_INTERIM, MAX_LINES, HeadWatch

INTERIM = b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n"
FINAL = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"
BODY = b"\n\n\r\n\r\nHTTP/1.1 103" * 1000


@given(st.integers(0, MAX_INTERIM), st.lists(st.integers(0, 700), max_size=10), st.booleans())
def test_the_end_is_found_however_the_answer_is_cut(
    interim: int, cuts: list[int], bare: bool
) -> None:
    data = INTERIM * interim + FINAL
    if bare:
        data = data.replace(b"\r\n", b"\n")
    watch = HeadWatch()
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for begin, end in pairwise(places):
        assert not watch.is_over or begin == len(data)
        watch.feed(data[begin:end])
    assert watch.is_over
    watch.feed(BODY)


@pytest.mark.parametrize(
    "data",
    [
        INTERIM * (MAX_INTERIM + 1),
        b"HTTP/1.1 200 OK\r\n" + b"a:\r\n" * MAX_LINES,
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * MAX_BYTES,
        b"x" * (MAX_BYTES + 1),
        (b"HTTP/1.1 103 E\r\nX: " + b"x" * 30_000 + b"\r\n\r\n") * 3,
    ],
)
@pytest.mark.parametrize("size", [100, 16_384, 1_000_000])
def test_a_head_over_a_bound_is_refused(data: bytes, size: int) -> None:
    def feed() -> None:
        watch = HeadWatch()
        for at in range(0, len(data), size):
            watch.feed(data[at : at + size])

    with pytest.raises(ValueError, match="too"):
        feed()
