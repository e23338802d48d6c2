"""Fuzzing: any bytes and changed valid streams raise nothing but RemoteProtocolError.

``check`` and ``check_streams`` of fuzz/fuzz_link.py say what must hold. atheris can run them
for hours; this runs seconds.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gvisor_kernel.link.frames import HEADER, encode_bytes, encode_grant, encode_short
from gvisor_kernel.link.frames import FrameType as F

from ..world import PROJECT
from .helpers import VALID, raw

fuzz_link = runpy.run_path(str(PROJECT / "fuzz" / "fuzz_link.py"))
check: Callable[[bytes], None] = fuzz_link["check"]
check_streams: Callable[[bytes], None] = fuzz_link["check_streams"]
SEEDS = sorted((PROJECT / "fuzz" / "corpus" / "link").iterdir())
SHORT_SEEDS = [seed.read_bytes() for seed in SEEDS if seed.stat().st_size < 2000]
STREAM_SEEDS = sorted((PROJECT / "fuzz" / "corpus" / "streams").iterdir())
FIRSTS = (*range(0, 256, 17), 193, 195)
"""First bytes for all eight situations twice, and for diverting guests in each of their four."""
FUZZ = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)

firsts = st.integers(0, 255).map(lambda number: bytes([number]))
headers = st.builds(
    HEADER.pack,
    st.integers(0, max(F) + 1),
    st.integers(0, 7),
    st.sampled_from([0, 0, 0, 1, 2]),
    st.sampled_from([0, 0, 0, 0, 1]),
    st.one_of(st.integers(0, 40), st.sampled_from([32760, 32761, 2**32 - 1])),
)
frames = st.builds(
    raw,
    st.sampled_from(F),
    st.one_of(st.binary(max_size=64), st.binary(min_size=4, max_size=16)),
    st.integers(0, 5),
    st.integers(0, 1),
)
numbers = st.integers(0, 4)
stream_frames = st.one_of(
    st.builds(encode_short, st.sampled_from([F.OPEN, F.FINISH, F.RESET]), numbers),
    st.builds(encode_bytes, numbers, st.binary(min_size=1, max_size=40)),
    st.builds(encode_grant, numbers, st.one_of(st.integers(0, 9), st.integers(0, 2**32 - 1))),
)
valid = st.sampled_from(list(VALID.values()))


@pytest.mark.parametrize("seed", SEEDS, ids=lambda path: path.name)
def test_corpus_is_handled(seed: Path) -> None:
    """Each seed is also checked in every other situation."""
    stream = seed.read_bytes()
    check(stream)
    for first in FIRSTS if len(stream) < 2000 else FIRSTS[::5]:
        check(bytes([first]) + stream[1:])


@settings(FUZZ, max_examples=300)
@given(st.binary(max_size=400))
def test_any_bytes_are_handled(data: bytes) -> None:
    check(data)


@settings(FUZZ, max_examples=250)
@given(
    firsts, st.lists(st.one_of(valid, valid, stream_frames, frames, headers, st.binary(max_size=9)))
)
def test_any_frames_in_any_order_are_handled(first: bytes, stream: list[bytes]) -> None:
    check(first + b"".join(stream))


@settings(FUZZ, max_examples=250)
@given(st.data())
def test_changed_valid_streams_are_handled(data: st.DataObject) -> None:
    """Bytes are replaced, removed, doubled or inserted, or frames are."""
    stream = bytearray(data.draw(st.sampled_from(SHORT_SEEDS)))
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


@pytest.mark.parametrize("seed", STREAM_SEEDS, ids=lambda path: path.name)
def test_corpus_of_streams_is_handled(seed: Path) -> None:
    stream = seed.read_bytes()
    for first in range(stream[0], 256, 18 if len(stream) < 2000 else 86):
        check_streams(bytes([first]) + stream[1:])


@settings(FUZZ, max_examples=300)
@given(firsts, st.lists(st.one_of(stream_frames, stream_frames, frames, st.binary(max_size=9))))
def test_any_frames_of_streams_are_handled(first: bytes, stream: list[bytes]) -> None:
    check_streams(first + b"".join(stream))


@settings(FUZZ, max_examples=200)
@given(st.integers(1, 4), firsts, st.lists(stream_frames))
def test_any_frames_of_open_streams_are_handled(
    count: int, first: bytes, stream: list[bytes]
) -> None:
    opens = b"".join(encode_short(F.OPEN, number) for number in range(1, count + 1))
    check_streams(bytes([first[0] & 0xFE]) + opens + b"".join(stream))
