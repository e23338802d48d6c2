"""Chooses the modules that a snapshot of ``preload = "auto"`` imports ahead. Pure: no I/O.

Counts say how many kernels had cells that imported a module. Their names come from sandboxes, so
everything here is bounded. Where counts are kept is up to ``kernel/learned_modules.py``, which
modules may be imported ahead to ``guest/preload.py``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from keyword import iskeyword
from typing import Any

PRIOR = ("numpy", "pandas", "matplotlib.pyplot")
"""Modules that are imported ahead, if they are installed, as long as nothing was learned."""
MAX_NAMES = 64
"""Names that are counted, and that one kernel may report."""
MAX_NAME = 100
MAX_PARTS = 3
MAX_CHOSEN = 32
MIN_KERNELS = 2
"""Kernels that must have imported a module before it is imported ahead, or set a variable before
nothing is."""
MIN_SHARE = 0.2
"""The share of all counted kernels that these must be."""
DROP_SHARE = 0.1
"""A snapshot that imports a module which fewer kernels import is made anew without it."""
DROP_KERNELS = 5
"""Kernels that must have been counted before that."""
# Not an age of each count, which would need clocks.
MAX_KERNELS = 100
"""Kernels after which all counts are halved: what is not used any more fades."""
MAX_REASON = 200

_PART = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Counts:
    """Numbers of kernels whose cells imported any module (``kernels``), and each one (``names``).

    ``late``: those that had cells that named a variable which modules read at their import.
    """

    kernels: int = 0
    names: Mapping[str, int] = field(default_factory=dict)
    late: int = 0

    def share(self, name: str) -> float:
        """Return the share of the kernels that imported ``name``."""
        return self.names.get(name, 0) / max(1, self.kernels)

    @property
    def is_late(self) -> bool:
        """Return whether so many set a variable that nothing may be imported before their cells."""
        return self.late >= MIN_KERNELS and self.late >= MIN_SHARE * self.kernels


@dataclass(frozen=True)
class Preloaded:
    """The modules that a snapshot was to import ahead (``wanted``), those that it has imported, and
    the reasons why others were left out."""

    wanted: tuple[str, ...] = ()
    imported: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)


def is_module_name(name: object) -> bool:
    """Return whether ``name`` can be that of a module: a short dotted name of ASCII letters."""
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
        return False
    parts = name.split(".")
    return len(parts) <= MAX_PARTS and all(_PART.fullmatch(p) and not iskeyword(p) for p in parts)


def add_report(counts: Counts, names: Collection[str], *, is_first: bool) -> Counts:
    """Return ``counts`` with what a kernel has imported. ``is_first``: it has reported nothing yet.

    Of too many names those of the fewest kernels are dropped.
    """
    added = {**counts.names}
    for name in names:
        added[name] = added.get(name, 0) + 1
    kernels, late = counts.kernels + is_first, counts.late
    if kernels >= MAX_KERNELS:
        kernels, late = kernels // 2, late // 2
        added = {name: count // 2 for name, count in added.items() if count > 1}
    kept = sorted(added, key=lambda name: (name not in names, name))
    kept = sorted(kept, key=lambda name: -added[name])[:MAX_NAMES]
    return Counts(kernels, {name: min(added[name], kernels) for name in kept}, late)


def add_late(counts: Counts) -> Counts:
    """Return ``counts`` with a kernel whose cells set a variable that comes too late."""
    return replace(counts, late=min(counts.late + 1, MAX_KERNELS))


def choose(counts: Counts) -> tuple[str, ...]:
    """Return the modules to import ahead, those of the most kernels first.

    None if enough kernels set variables that these would have read before. Whether they fit into
    memory is known only when they are imported.
    """
    if counts.is_late:
        return ()
    used = [
        name
        for name, count in counts.names.items()
        if count >= MIN_KERNELS and counts.share(name) >= MIN_SHARE
    ]
    if not used and counts.kernels < DROP_KERNELS:
        return PRIOR
    return tuple(sorted(used, key=lambda name: (-counts.names[name], name))[:MAX_CHOSEN])


def is_outdated(made: Preloaded, counts: Counts) -> bool:
    """Return whether a snapshot that imports ``made`` should be made anew: not for each change.

    A module that was tried and left out is not tried again until the snapshot is made for another
    reason.
    """
    if counts.is_late:
        return bool(made.imported)
    if not set(choose(counts)) <= set(made.wanted):
        return True
    return counts.kernels >= DROP_KERNELS and any(
        counts.share(name) < DROP_SHARE for name in made.imported
    )


def find_difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a restored kernel; None if it is as it should be.

    Both are what ``guest.preload.describe_process`` has returned, before the snapshot was taken and
    after it was restored.
    """
    for name in ("threads", "children"):
        if before.get(name) != after.get(name):
            return f"{after.get(name)} {name} after a restore, {before.get(name)} before"
    for name in ("random", "numpy.random"):
        if before.get(name) is not None and before.get(name) == after.get(name):
            return f"the state of {name} is the same in each restored kernel"
    return None


# -- as JSON ---------------------------------------------------------------------------------------


def read_counts(content: Any) -> Counts:
    """Return the counts in ``content``, which ``asdict`` has made of some.

    :raises ValueError, KeyError, TypeError: when they are malformed
    """
    kernels, names, late = content["kernels"], content["names"], content["late"]
    numbers = [kernels, late, *names.values()]
    if len(names) > MAX_NAMES or not all(map(is_module_name, names)):
        raise ValueError("the names are not those of modules")
    if not all(type(number) is int and 0 <= number <= MAX_KERNELS for number in numbers):
        raise ValueError("the counts are no numbers")
    return Counts(kernels, dict(names), late)


def read_preloaded(content: Any) -> Preloaded | None:
    """Return what is in ``content``, which ``asdict`` has made; None if it is malformed."""
    try:
        wanted, imported, left_out = (content[n] for n in ("wanted", "imported", "left_out"))
        if not all(map(is_module_name, (*wanted, *imported, *left_out))):
            return None
        reasons = {name: str(reason)[:MAX_REASON] for name, reason in left_out.items()}
        return Preloaded(tuple(wanted), tuple(imported), reasons)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
