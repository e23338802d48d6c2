"""Which of the listed changes a person has chosen, by the paths that the person names. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from gvisor_kernel.changes.change import Applied, Change, Changes, ChangesError, Refused, is_path
from gvisor_kernel.spec.layout import WORKSPACE


def select(changes: Changes, paths: Iterable[str]) -> list[Change]:
    """Return the changes of ``paths``, of what is below them, and of new folders above them.

    :raises ChangesError: when a path is no change
    """
    found = {change.path: change for change in changes.changes}
    chosen: dict[str, Change] = {}
    for text in paths:
        path = name_path(text)
        below = {p: c for p, c in found.items() if p == path or p.startswith(f"{path}/")}
        if not below:
            raise ChangesError(f"{text!r} is not changed in /workspace.")
        for part in _parents(path):
            if part in found and found[part].kind == "added":
                chosen[part] = found[part]
        chosen.update(below)
    return list(chosen.values())


def name_path(text: str) -> str:
    """Return the path of a change that a person has named.

    :raises ChangesError: when it is none in /workspace
    """
    path = text.removeprefix(f"{WORKSPACE}/").removeprefix("./").rstrip("/")
    check_path(path)
    return path


def note_more(result: Applied, listed: Changes) -> Applied:
    """Return what ``apply`` did with changes that ``select`` has chosen from ``listed``."""
    if not listed.more:
        return result
    left = Refused("…", "there may be more changes than are listed: apply the rest once more")
    return replace(result, refused=(*result.refused, left))


def check_path(path: str) -> None:
    """Check that a path can be that of a change.

    :raises ChangesError: when it cannot
    """
    if not is_path(path):
        raise ChangesError(f"{path!r} is no path in /workspace.")


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]
