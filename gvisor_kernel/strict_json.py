"""JSON that a sandbox, an archive or an image wrote: parsed within bounds, here and nowhere else.

Python's parser calls itself once a level, and so do most functions that later take its result. So
nesting is bounded before anything is parsed. Standard library only and Python 3.9, since this file
is mounted into every sandbox.
"""

from __future__ import annotations

import json
import re
from typing import Any

MAX_DEPTH = 100
"""Arrays and objects in each other. Honest documents and messages have less than 20."""

_MARK = re.compile(r'\\.|["\[\]{}]', re.DOTALL)


class JsonError(ValueError):
    """Data that is no JSON, or exceeds a bound. Its text has nothing of the data in it."""


def parse_json(data: bytes | bytearray | memoryview | str, max_size: int) -> Any:
    """What ``data`` says: UTF-8, at most ``max_size`` bytes (or characters), MAX_DEPTH levels.

    Raises JsonError, and nothing else.
    """
    if len(data) > max_size:
        raise JsonError(f"it has {len(data)} bytes, over the limit of {max_size}")
    try:
        text = data if isinstance(data, str) else str(data, "utf-8", "surrogatepass")
        _check_depth(text)
        return json.loads(text)
    except JsonError:
        raise
    except (ValueError, RecursionError):
        raise JsonError("it is not JSON") from None


def _check_depth(text: str) -> None:
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    in_string = False
    for match in _MARK.finditer(text):
        mark = match[0]
        if mark == '"':
            in_string = not in_string
        elif in_string or len(mark) > 1:
            continue
        elif mark in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise JsonError(f"it is nested deeper than {MAX_DEPTH} levels")
        else:
            depth -= 1
