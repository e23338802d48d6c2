"""Fuzzing: any bytes and changed valid streams raise nothing but RemoteProtocolError.

``check`` of fuzz/fuzz_link.py says what must hold. atheris can run it for hours; this runs seconds.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gvisor_kernel.link.frames import HEADER, FrameType

from ..world import PROJECT
from .helpers import VALID, raw

check: Callable[[bytes], None] = runpy.run_path(str(PROJECT / "fuzz" / "fuzz_link.py"))["check"]
SEEDS = sorted((PROJECT / "fuzz" / "corpus" / "link").iterdir())
FUZZ = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)

firsts = st.integers(0, 255).map(lambda number: bytes([number]))
headers = st.builds(
    HEADER.pack,
    st.integers(0, max(FrameType) + 1),
    st.integers(0, 7),
    st.sampled_from([0, 0, 0, 1, 2]),
    st.sampled_from([0, 0, 0, 0, 1]),
    st.one_of(st.integers(0, 40), st.sampled_from([32760, 32761, 2**32 - 1])),
)
frames = st.builds(
    raw,
    st.sampled_from(FrameType),
    st.one_of(st.binary(max_size=64), st.binary(min_size=4, max_size=16)),
    st.integers(0, 5),
    st.integers(0, 1),
)
valid = st.sampled_from(list(VALID.values()))


@pytest.mark.parametrize("seed", SEEDS, ids=lambda path: path.name)
def test_corpus_is_handled(seed: Path) -> None:
    """Each seed is also checked in every other situation."""
    stream = seed.read_bytes()
    check(stream)
    for first in range(0, 256, 9 if len(stream) < 2000 else 85):
        check(bytes([first]) + stream[1:])


@settings(FUZZ, max_examples=300)
@given(st.binary(max_size=400))
def test_any_bytes_are_handled(data: bytes) -> None:
    check(data)


@settings(FUZZ, max_examples=250)
@given(firsts, st.lists(st.one_of(valid, valid, frames, headers, st.binary(max_size=9))))
def test_any_frames_in_any_order_are_handled(first: bytes, stream: list[bytes]) -> None:
    check(first + b"".join(stream))


@settings(FUZZ, max_examples=250)
@given(st.data())
def test_changed_valid_streams_are_handled(data: st.DataObject) -> None:
    """Bytes are replaced, removed, doubled or inserted, or frames are."""
    seeds = [seed.read_bytes() for seed in SEEDS]
    stream = bytearray(data.draw(st.sampled_from([seed for seed in seeds if len(seed) < 2000])))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, max(0, len(stream) - 1)))
        end = min(len(stream), start + data.draw(st.integers(0, 24)))
        change = data.draw(st.sampled_from(["replace", "remove", "double", "insert", "flip"]))
        if change == "flip" and stream:
            stream[start] ^= 1 << data.draw(st.integers(0, 7))
        elif change == "replace":
            stream[start:end] = data.draw(st.binary(min_size=end - start, max_size=end - start))
        elif change == "remove":
            del stream[start:end]
        elif change == "double":
            stream[start:start] = stream[start:end]
        elif change == "insert":
            stream[start:start] = data.draw(st.one_of(frames, valid, st.binary(max_size=12)))
    check(bytes(stream))
