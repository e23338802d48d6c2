"""Finds the runtimes that are installed, by their entry points, and imports one when it is wanted.

A package adds a runtime by an entry point of GROUP. Its name is a value of the setting ``runtime``,
and what it leads to is a ``RuntimeEntry`` (``config/settings.py``). Those of this package are
registered in the same way. Only the entry that is asked for is imported, so one that is broken or
slow is in nobody else's way.
"""

from __future__ import annotations

import re
import sys
from functools import cache
from importlib import metadata

from gvisor_kernel import __version__
from gvisor_kernel.errors import RuntimeMissing
from gvisor_kernel.shown_text import printable_name

GROUP = "gvisor_kernel.runtimes"
OWN = "gvisor-kernel"
NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
"""Names of runtimes: a runtime's own setting has the same name, which is one of Python, too."""


@cache
def _find_own() -> dict[str, metadata.EntryPoint]:
    """Return the entry points of this package. Takes 4 ms, and a look at all packages 15."""
    try:
        found = metadata.distribution(OWN).entry_points
    except metadata.PackageNotFoundError:
        return {}
    return {entry.name: entry for entry in found.select(group=GROUP)}


@cache
def _find_all() -> dict[str, metadata.EntryPoint]:
    """Return all entry points: this package's first, as nobody replaces those by others."""
    own = _find_own()
    others = metadata.entry_points(group=GROUP)
    return own | {
        entry.name: entry
        for entry in sorted(others, key=lambda entry: entry.name)
        if entry.name not in own and NAME.fullmatch(entry.name)
    }


def find_names() -> tuple[str, ...]:
    """Return the names of the runtimes that are installed, as they were at the first call."""
    return tuple(_find_all())


def load(name: str) -> object:
    """Import what the entry point ``name`` leads to. Blocks for as long as that module does.

    :raises RuntimeMissing: when there is no such entry point, or its module cannot be imported
    """
    found = _find_own().get(name) or _find_all().get(name)
    if found is None and not _find_own():
        raise RuntimeMissing(
            f"gvisor-kernel {__version__} is not completely installed in {sys.prefix}: it has"
            " registered no runtime.",
            "install it again with that environment's pip (in a clone: `pip install -e .`).",
        )
    if found is None:
        raise RuntimeMissing(
            f"The runtime {name} is not installed in {sys.prefix}.",
            f"install the package that adds it there: one with an entry point {name} in the group"
            f" {GROUP}. Here are: {', '.join(find_names())}.",
        )
    try:
        return found.load()
    except (Exception, SystemExit) as error:  # whatever a stranger's module raises
        owner = found.dist.name if found.dist is not None else "a package"
        raise RuntimeMissing(
            f"The runtime {name} cannot be imported from {owner}:"
            f" {type(error).__name__}: {printable_name(str(error))}.",
            f"install {owner} again, or a release of it for gvisor-kernel {__version__}.",
        ) from error
