"""JSON as declared types: what is written is read again, and anything else is refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from msgspec import Struct

from gvisor_kernel.strict_json import MAX_DEPTH, JsonError
from gvisor_kernel.typed_json import read_json, write_json


@dataclass(frozen=True)
class Part:
    number: int


@dataclass(frozen=True)
class Whole:
    name: str
    path: Path
    part: Part | None = None
    pair: tuple[int, int] | None = None
    parts: dict[str, Part] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    time: float = 0.0
    more: Any = None


class Typed(Struct, frozen=True):
    part: Part
    is_set: bool = False


class Kind(Struct, frozen=True, forbid_unknown_fields=True):
    kind: Literal["a", "b"] = "a"
    number: int = 0


WHOLE = Whole("\udcff", Path("/a/\udcff"), Part(1), (2, 3), {"x": Part(4)}, ("\n",), 1.5, [None])


@pytest.mark.parametrize("value", [WHOLE, Whole("", Path("a")), Typed(Part(-1), True)])
def test_value_is_read_as_it_was_written(value: Whole | Typed) -> None:
    """Also a path that is not UTF-8."""
    text = write_json(value)
    assert "\n" not in text
    assert read_json(text.encode(), type(value), 1000) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{",
        '{"name": "x"}',
        '{"name": 1, "path": "/"}',
        '{"name": "x", "path": 1}',
        '{"name": "x", "path": "/", "hunter2": 1}',
        '{"name": "x", "path": "/", "part": {"number": 1, "hunter2": 1}}',
        '{"name": "x", "path": "/", "parts": {"hunter2": {"number": 1, "hunter2": 1}}}',
        '{"name": "x", "path": "/", "part": {"number": true}}',
        '{"name": "x", "path": "/", "part": {"number": 1.0}}',
        '{"name": "x", "path": "/", "part": {"number": "hunter2"}}',
        '{"name": "x", "path": "/", "pair": [1]}',
        '{"name": "x", "path": "/", "pair": [1, 2, 3]}',
        '{"name": "x", "path": "/", "words": "hunter2"}',
        '{"name": "x", "path": "/", "time": "1"}',
        '{"name": "x", "path": "/", "more": ' + "[" * MAX_DEPTH + "]" * MAX_DEPTH + "}",
        '{"name": "' + "x" * 1000 + '", "path": "/"}',
    ],
)
def test_other_data_is_refused_and_not_quoted(text: str) -> None:
    with pytest.raises(JsonError) as caught:
        read_json(text, Whole, 1000)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ['{"\\ud800": 1}', '{"kind": "\\ud800"}', '{"kind": "a", "number": 1e999}']
)
def test_half_a_character_anywhere_is_refused(text: str) -> None:
    with pytest.raises(JsonError):
        read_json(text, Kind, 1000)
