"""Settings whose value is a mapping: each of its keys is declared once, as a field of a dataclass.

Jupyter's configuration and a kernelspec may both set such a setting: what the configuration names
holds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import field, fields
from typing import Any, TypeVar

from gvisor_kernel.errors import SettingError

D = TypeVar("D")
T = TypeVar("T")


def key(default: D, accept: Callable[[str, object], T]) -> D | T:
    """Return the field for a key. ``accept`` is a validator."""
    return field(default=default, metadata={"accept": accept})


def accept_mapping(
    kind: type[T], name: str, configured: object, asked: object, reserved: Collection[str] = ()
) -> T:
    """Return the settings in two mappings, of Jupyter's configuration and of a kernelspec.

    ``reserved``: keys of which a kernelspec sets none if the configuration sets any.

    :raises SettingError: when one is not accepted
    """
    values: dict[str, Any] = dict(vars(kind()))
    decided = isinstance(configured, Mapping) and not set(configured).isdisjoint(reserved)
    for mapping in (asked, configured):
        if mapping is None:
            continue
        if isinstance(mapping, kind):
            values.update(vars(mapping))
            continue
        if not isinstance(mapping, Mapping) or not set(mapping) <= set(values):
            raise SettingError(name, mapping, f"a mapping with any of: {', '.join(sorted(values))}")
        ignored = reserved if decided and mapping is not configured else ()
        values.update({key: value for key, value in mapping.items() if key not in ignored})
    keys: Any = kind
    accepted = {
        entry.name: entry.metadata["accept"](f"{name}.{entry.name}", values[entry.name])
        for entry in fields(keys)
    }
    return kind(**accepted)
