"""Reads JSON into a declared type: a frozen dataclass, a struct of msgspec, or a plain type.

Each value has to be of its field's type, and nothing may be there that has no field. The text is
parsed by ``strict_json``, whoever has written it: msgspec's own parser refuses paths that are not
UTF-8. Not for what runs inside a sandbox, or is the first program of one (``host/enter.py``):
there msgspec is not installed, or its import would delay each start.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from gvisor_kernel.strict_json import JsonError, parse_json

T = TypeVar("T")


def read_json(data: bytes | bytearray | memoryview | str, kind: type[T], max_size: int) -> T:
    """Parse JSON within the bounds of ``parse_json``, and return it as a ``kind``.

    :raises JsonError: when ``data`` is something else; no other exception is raised
    """
    return read_value(parse_json(data, max_size), kind)


def read_value(value: object, kind: type[T]) -> T:
    """Return parsed JSON as a ``kind``.

    :raises JsonError: when it is something else; the text contains nothing of ``value``
    """
    try:
        made = msgspec.convert(value, kind, dec_hook=_read_path)
    except (UnicodeEncodeError, OverflowError):  # half a character in a name, a number too large
        raise JsonError("it has an unknown value or field") from None
    except msgspec.ValidationError as error:
        # Other messages quote a value, or the name of an unknown field.
        known = str(error).startswith(("Expected", "Object missing"))
        raise JsonError(str(error) if known else "it has an unknown value or field") from None
    if is_dataclass(kind):  # not for each item of a long list
        _check_fields(value, made)
    return made


def write_json(value: object) -> str:
    """Return a dataclass or a struct as one line of JSON that ``read_json`` reads."""
    return json.dumps(msgspec.to_builtins(value, enc_hook=_write_path))


def _write_path(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value)} is not written as JSON")


def _read_path(kind: type, value: object) -> Path:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(f"{kind} is not read from JSON")


def _check_fields(value: Any, made: object) -> None:
    """Refuse fields that a dataclass has not: msgspec does so only for its own structs."""
    if value is made:
        return  # it was read before
    if is_dataclass(made):
        if not value.keys() <= vars(made).keys():
            raise JsonError("it has an unknown value or field")
        for name, part in value.items():
            _check_fields(part, getattr(made, name))
    elif isinstance(made, Mapping):
        for name, part in value.items():
            _check_fields(part, made[name])
    elif isinstance(made, (list, tuple)):
        for part, item in zip(value, made, strict=True):
            _check_fields(part, item)
