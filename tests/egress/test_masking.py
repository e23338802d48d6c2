"""A credential in an answer's body is found however the body is cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gvisor_kernel.egress.forward import MIN_SECRET, Masking, is_quoted

SECRET = b"sk-aab-aab-aabc"
MASKED = b"*" * len(SECRET)


def mask(parts: list[bytes], secret: bytes = SECRET) -> bytes:
    masking = Masking(secret)
    return b"".join([*(masking.feed(part) for part in parts), masking.finish()])


@given(
    st.lists(st.sampled_from([SECRET, b"sk-aab-", b"sk", b"-aab", b"x", b"\xff"]), max_size=20),
    st.lists(st.integers(0, 300), max_size=10),
)
def test_a_secret_is_masked_however_the_body_is_cut(words: list[bytes], cuts: list[int]) -> None:
    body = b"".join(words)
    places = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    parts = [body[a:b] for a, b in pairwise(places)]
    assert mask(parts) == body.replace(SECRET, MASKED)


def test_what_cannot_be_the_secret_is_passed_on_at_once() -> None:
    masking = Masking(SECRET)
    assert masking.feed(b"data: 1\n\n") == b"data: 1\n\n"
    assert masking.feed(b"data: sk-aa") == b"data: "
    assert masking.feed(b"!\n") == b"sk-aa!\n"
    assert masking.finish() == b""


@pytest.mark.parametrize("secret", [b"", b"a" * (MIN_SECRET - 1)])
def test_a_secret_that_is_too_short_masks_nothing(secret: bytes) -> None:
    assert mask([b"aaaaaaaaaa", b"bb"], secret) == b"aaaaaaaaaabb"


@pytest.mark.parametrize("text", [b"X-SK-AAB-aab-aabc-1", b"sk-aab-  aab-\taabc", SECRET])
def test_a_secret_is_found_in_a_head_whatever_became_of_it(text: bytes) -> None:
    assert is_quoted(SECRET, text)
    assert is_quoted(b"two " + SECRET, b"two  " + text) is (not text.startswith(b"X-"))
    assert not is_quoted(b"", text)
    assert not is_quoted(SECRET + b"d", text)
