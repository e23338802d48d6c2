"""Sizes in bytes, for people."""

from __future__ import annotations


def describe_size(size: int) -> str:
    """Return a number of bytes with a unit: ``4 GiB``, ``1.5 GiB``, ``300 MiB``, ``17 B``."""
    for unit, factor in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if size >= factor:
            return f"{size / factor:.1f}".removesuffix(".0") + f" {unit}"
    return f"{size} B"
