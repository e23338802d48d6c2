"""Applies new files at the end of a kernel whose setting ``apply`` is "new files".

Nobody looks then: so only files of data that the folder does not have, within limits. What was
written, and what was not, is in the log; ``undo`` undoes it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from gvisor_kernel.changes.autorun import is_data
from gvisor_kernel.changes.change import (
    MAX_FILE,
    Applied,
    Change,
    Changes,
    RefusedChange,
    find_new_parents,
)
from gvisor_kernel.changes.kernel_changes import RUNS, KernelChanges
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.kernel.session import SandboxedKernel
from gvisor_kernel.shown_text import printable_name

MAX_FILES, MAX_BYTES = 1000, 1024 * 1024 * 1024
"""Files that are written, and their bytes together."""
SECONDS = 20.0
"""Seconds in which they are written."""
MAX_TOLD, MAX_NAME = 10, 100
"""Files that are named in the log, and characters of a name."""
EXISTS = "the folder has one of that name, which is never replaced"
NO_DATA = "by its name it is no file of data: write it to outputs/"
TOO_LARGE = f"it has more than {MAX_FILE // 1024**2} MiB"
LIMIT = f"at most {MAX_FILES} files and {MAX_BYTES // 1024**3} GiB are written"

log = logging.getLogger(__name__)


async def apply_new_files(kernel: SandboxedKernel) -> None:
    """Write the new files of a kernel that has ended to its folder, and log it. Raises nothing."""
    facts = kernel.describe()
    name = f"{facts.kernel_name} in {facts.folder}" if facts is not None else "a kernel"
    try:
        changes = KernelChanges(kernel)
        listed, claims = await changes.look()
        chosen, refused = choose(listed)
        result = Applied((), refused, None)
        if chosen:
            end = asyncio.get_running_loop().time() + SECONDS
            result = await changes.apply_looked(
                chosen, claims, refused, force=True, is_automatic=True, end=end
            )
        if words := describe(result, listed):
            log.warning("%s: %s", name, words)
    except Exception as error:  # such as the end of the sandbox
        is_known = isinstance(error, GvisorKernelError)
        log.warning(
            *("%s: new files were not written to the folder: %s", name, error),
            exc_info=not is_known,
        )


def choose(listed: Changes) -> tuple[list[Change], tuple[RefusedChange, ...]]:
    """Return the files that are written, with new folders above them; and those that are not.

    Folders, removals and hidden files are neither.
    """
    known = {change.path: change for change in listed.changes}
    chosen: dict[str, Change] = {}
    refused: list[RefusedChange] = []
    count = size = 0
    for change in listed.changes:
        is_hidden = any(part.startswith((".", "__pycache__")) for part in change.path.split("/"))
        if change.kind == "removed" or change.type == "folder" or is_hidden:
            continue
        is_over = count == MAX_FILES or size + change.size > MAX_BYTES
        if reason := _find_reason(change) or (LIMIT if is_over else None):
            refused.append(RefusedChange(change.path, reason))
            continue
        count, size = count + 1, size + change.size
        chosen |= find_new_parents(known, change.path) | {change.path: change}
    return list(chosen.values()), tuple(refused)


def _find_reason(change: Change) -> str | None:
    if change.is_refused or change.type != "file":
        return change.conflict
    if change.kind != "added":
        return EXISTS
    if change.runs is not None:
        return f"{RUNS} ({change.runs})"
    if not is_data(change.path):
        return NO_DATA
    return TOO_LARGE if change.size > MAX_FILE else change.conflict


def describe(result: Applied, listed: Changes) -> str:
    """Return what was written and what was not, in one line for a log; "" if there is neither."""
    folders = {change.path for change in listed.changes if change.type == "folder"}
    words = ""
    if written := [_show(path) for path in result.applied if path not in folders]:
        words += f"new files were written to the folder: {_join(written)}"
        words += f" (to undo: gvisor-kernel undo {result.undo}). "
    if left := [f"{_show(one.path)} ({printable_name(one.reason)})" for one in result.refused]:
        words += f"Files that were not: {_join(left)}. "
    return (words + ("There may be others." if words and listed.more else "")).rstrip()


def _join(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - MAX_TOLD} more" if len(texts) > MAX_TOLD else ""
    return ", ".join(texts[:MAX_TOLD]) + more


def _show(path: str) -> str:
    text = printable_name(path)
    return text if len(text) <= MAX_NAME else f"{text[:MAX_NAME]}…"
