"""Selects the changes that a person has chosen, by paths or by what was shown. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from gvisor_kernel.changes.change import (
    Applied,
    Change,
    Changes,
    ChangesError,
    RefusedChange,
    is_path,
)
from gvisor_kernel.spec.layout import WORKSPACE

if TYPE_CHECKING:
    from gvisor_kernel.changes.kernel_changes import KernelChanges


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
        chosen |= _find_new_parents(found, path) | below
    return list(chosen.values())


def find_seen(changes: Changes, tokens: Iterable[str]) -> list[Change]:
    """Return the changes that were shown with these tokens, and new folders above them.

    :raises ChangesError: when one is not there any more as it was shown
    """
    found = {change.path: change for change in changes.changes}
    shown = {change.token: change for change in changes.changes}
    chosen: dict[str, Change] = {}
    for token in tokens:
        change = shown.get(token)
        if change is None:
            raise ChangesError(
                f"What was shown with {token} is not there any more: it has changed since then, in"
                " the sandbox or on disk, or was applied. Nothing was applied now.",
                "look again: gvisor-kernel changes --diff.",
            )
        chosen |= _find_new_parents(found, change.path) | {change.path: change}
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
    left = RefusedChange("…", "there may be more changes than are listed: apply the rest once more")
    return replace(result, refused=(*result.refused, left))


def check_path(path: str) -> None:
    """Check that a path can be that of a change.

    :raises ChangesError: when it cannot
    """
    if not is_path(path):
        raise ChangesError(f"{path!r} is no path in /workspace.")


def _find_new_parents(found: Mapping[str, Change], path: str) -> dict[str, Change]:
    parts = path.split("/")
    parents = ("/".join(parts[:count]) for count in range(1, len(parts)))
    return {p: found[p] for p in parents if p in found and found[p].kind == "added"}


async def apply_asked(
    kernel: KernelChanges,
    asked: Sequence[Change | str],
    named: Iterable[str],
    *,
    unseen: bool,
    force: bool,
) -> Applied:
    """Apply changes as they were listed, and with ``unseen`` what is below paths now.

    Files that may run by themselves need their own path in ``asked`` or ``named``.

    :raises ChangesError: a path is not changed, or was not seen, or nothing can be applied
    """
    chosen = [change for change in asked if isinstance(change, Change)]
    paths = [path for path in asked if isinstance(path, str)]
    if paths and not unseen:
        raise ChangesError(
            f"The path {paths[0]!r} does not say which content was seen.",
            "apply a Change that changes() gave, or what is there now: unseen=True.",
        )
    listed = await kernel.list(paths) if paths else Changes((), False, 0)
    chosen += select(listed, paths)
    own = {name_path(path) for path in (*paths, *named)}
    result = await kernel.apply([(c.path, c.state) for c in chosen], named=own, force=force)
    return note_more(result, listed)
