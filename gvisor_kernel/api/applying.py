"""What a program asks to apply: changes that it was given, or paths. Only ``apply_asked``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gvisor_kernel.changes.change import Applied, Change, Changes, ChangesError
from gvisor_kernel.changes.kernel_changes import KernelChanges
from gvisor_kernel.changes.selection import name_path, note_more, select


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
