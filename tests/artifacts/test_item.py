"""Keys and values at each edge, and which pages share a storage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gvisor_kernel.artifacts.item import MAX_VALUE, Artifact, check_key, check_prefix, encode_value
from gvisor_kernel.errors import StorageError


@pytest.mark.parametrize(
    "key",
    [
        *("a", "k" * 199, "ключ", "a.b:c-d_e", "__proto__", "<b>", "%00", "😀" * 199, "e\u0301"),
        "\u0646\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",  # a Persian word
        *("👩\u200d👩\u200d👧", "❤\ufe0f", "👁\ufe0f\u200d🗨\ufe0f", "🏳\ufe0f\u200d🌈"),
        "\U0001fadf",  # of a Unicode that this Python may not know
    ],
)
def test_key_is_accepted(key: str) -> None:
    assert check_key(key) == key


@pytest.mark.parametrize(
    "key",
    [
        *("", "k" * 200, "a b", "a\tb", "a\nb", "a/b", "a\\b", "a'b", 'a"b', "a\0b", "a\x7fb"),
        *("a\u00a0b", "a\u2028b", "\ud800", "a\udfffb", 1, None, b"a", ["a"]),
        *("a\x80", "a\u00adb", "\u202eb", "a\u200b", "a\u2060b", "\ufeffa", "\U000e0041"),  # Cc, Cf
        *(
            "\ue000",
            "\U000f0000",
            "\U0010ffff",
            "\ufffe",
            "\ufdd0",
            "\U0001fffe",
        ),  # Co, none at all
        *("a\u034f", "\u115f", "\u3164", "\uffa0", "\u2800", "a\u180b", "\u2065", "\U000e0100"),
        *(
            "a\u200db",
            "a\u200d",
            "\u200da",
            "ü\u200d",
            "ü\u200d\u200dü",
            "a\ufe0f",
            "\ufe0f",
            "ü\ufe00",
        ),
        *("ü\ufe0f\ufe0f", "ü\ufe0f\u200d"),
    ],
)
def test_key_is_refused(key: object) -> None:
    with pytest.raises(StorageError):
        check_key(key)


def test_prefix_may_be_empty() -> None:
    assert check_prefix("") == ""
    with pytest.raises(StorageError):
        check_prefix("a b")


@pytest.mark.parametrize("text", ["x" * MAX_VALUE, "ö" * (MAX_VALUE // 2)])
def test_text_just_below_the_limit_is_kept(text: str) -> None:
    assert json.loads(encode_value(text)) == text
    with pytest.raises(StorageError, match="5,242,8"):
        encode_value(text + "xx")


def test_json_is_measured_as_json() -> None:
    encode_value(["x" * (MAX_VALUE - 4)])
    with pytest.raises(StorageError, match="5,242,880 bytes"):
        encode_value(["x" * (MAX_VALUE - 3)])


def _nest(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), b"bytes", {1, 2}, object(), "\ud800", _nest(101), _nest(5000)],
)
def test_value_that_is_no_json_is_refused(value: Any) -> None:
    with pytest.raises(StorageError):
        encode_value(value)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=20))
def test_json_comes_back(value: Any) -> None:
    assert json.loads(encode_value(value)) == value


def test_pages_are_told_apart_by_where_they_lie(tmp_path: Path) -> None:
    folder, other = tmp_path / "outputs", tmp_path / "other"
    page = Artifact.of_page(folder, "a.html")
    assert page.path == str(folder / "a.html")
    assert (
        len({page.id, Artifact.of_page(folder, "b.html").id, Artifact.of_page(other, "a.html").id})
        == 3
    )
