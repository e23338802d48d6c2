"""Parses JSON from sandboxes, archives and images within bounds. No other module parses such JSON.

Python's parser recurses once per level, and so do most functions that take its result. So nesting
is bounded before parsing. Standard library and Python 3.9 only, as this file is mounted into each
sandbox.
"""

from __future__ import annotations

import json
import re
from array import array
from itertools import accumulate
from typing import Any

MAX_DEPTH = 100
"""Levels of nested arrays and objects. Usual documents and messages have less than 20."""

_STRING = re.compile('"[^"]*"?')
"""A string without escapes. One that never ends takes the rest, so that no search begins again."""
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[{]}"))
CHUNK = 64 * 1024


class JsonError(ValueError):
    """Data is not JSON, or exceeds a bound. The text contains nothing of the data."""


class TooManyValues(JsonError):
    """Data may be JSON, but of more values than are allowed."""


def parse_json(
    data: bytes | bytearray | memoryview | str,
    max_size: int,
    max_values: int | None = None,
    max_depth: int = MAX_DEPTH,
) -> Any:
    """Parse JSON in UTF-8 with at most ``max_size`` bytes (or characters).

    ``max_depth``: the most levels. ``max_values``: about the most values, since an empty list of
    two bytes takes 56 in memory.

    :raises JsonError: when ``data`` is something else; no other exception is raised
    """
    if len(data) > max_size:
        raise JsonError(f"it has {len(data)} bytes, over the limit of {max_size}")
    try:
        text = data if isinstance(data, str) else str(data, "utf-8", "surrogatepass")
        if max_values is not None:
            _check_count(text, max_values)
        _check_depth(text, max_depth)
        return json.loads(text)
    except JsonError:
        raise
    except (ValueError, RecursionError):
        raise JsonError("it is not JSON") from None


def _check_count(text: str, most: int) -> None:
    """Check the number of values without parsing. Marks in strings do not count."""
    if _count_marks(text) <= most:
        return
    plain = _drop_escapes(text)
    if plain.count('"') > 2 * most or _count_marks(_STRING.sub("", plain)) > most:
        raise TooManyValues(f"it has more than {most} values")


def _count_marks(text: str) -> int:
    return text.count(",") + text.count("[") + text.count("{")


def _check_depth(text: str, most: int) -> None:
    if text.count("[") + text.count("{") <= most:
        return
    plain = _STRING.sub("", _drop_escapes(text)).encode("utf-8", "surrogatepass")
    steps = plain.translate(_STEPS, _NO_BRACKETS)
    depth = 0
    for at in range(0, len(steps), CHUNK):  # not in one call, which would stop other threads
        part = array("b", steps[at : at + CHUNK])
        if max(accumulate(part, initial=depth)) > most:
            raise JsonError(f"it is nested deeper than {most} levels")
        depth += sum(part)


def _drop_escapes(text: str) -> str:
    """Drop escaped quotes and backslashes, so that each quote begins or ends a string.

    The parser ends at the first backslash that is in no string, so what follows it does not matter.
    """
    return text.replace("\\\\", "").replace('\\"', "")
