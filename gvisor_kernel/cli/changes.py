"""``changes``, ``apply``, ``undo``: files that kernels have changed in /workspace.

The process that has the kernel answers, by its control socket. Names and texts come from a sandbox:
they are escaped before they are printed.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from gvisor_kernel.changes.change import Change, Changes, Refused
from gvisor_kernel.changes.control_client import apply_changes, list_changes
from gvisor_kernel.changes.selection import name_path, note_more, select
from gvisor_kernel.changes.undo import undo_apply
from gvisor_kernel.cli.output import print_json, print_table
from gvisor_kernel.cli.sandboxes import Listed, find_one
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.host.sizes import describe_size
from gvisor_kernel.shown_text import printable

GONE = "What is not applied is gone with the sandbox. To keep it: gvisor-kernel apply {} PATH…"

OVERWRITE = (
    "see what differs: gvisor-kernel changes --diff. --force overwrites what others have changed on"
    " disk; the old files are kept for gvisor-kernel undo."
)


def run_changes(arguments: argparse.Namespace) -> int:
    """``changes``: print what a kernel has changed. Return 0.

    :raises GvisorKernelError: when there is no such kernel, or it does not answer
    """
    sandbox = _find_running(arguments.id)
    found, diffs = list_changes(sandbox.directory, diff=arguments.diff)
    if arguments.json:
        content = asdict(found)
        print_json({**content, "diffs": diffs} if arguments.diff else content)
        return 0
    if not found.changes:
        print(
            "Nothing that can be listed is changed in /workspace; there may be more, such as names"
            " that are not UTF-8, or very deep folders."
            if found.more
            else "Nothing is changed in /workspace."
        )
        return 0
    if arguments.diff:
        for change in found.changes:
            print(printable(diffs.get(change.path, f"{change.path}: left out here\n")), end="")
    else:
        print_table(("KIND", "TYPE"), ("SIZE",), "PATH", map(_make_row, found.changes))
    _print_rest(found)
    print(GONE.format(sandbox.id), file=sys.stderr)
    return 0


def _make_row(change: Change) -> tuple[str, ...]:
    size = describe_size(change.size) if change.type == "file" else ""
    conflict = f"  ({change.conflict})" if change.conflict else ""
    return change.kind, change.type, size, f"{change.path}{conflict}"


def _print_rest(found: Changes) -> None:
    if found.more:
        count = max(found.total - len(found.changes), 0)
        more = f"{count} or more" if count else "Some"
        print(f"{more} changes are not listed here.", file=sys.stderr)


def run_apply(arguments: argparse.Namespace) -> int:
    """``apply``: write changes to the folder on disk. Return 0, or 1 if one was refused.

    :raises GvisorKernelError: when there is no such kernel, or no such change
    """
    sandbox = _find_running(arguments.id)
    paths = [name_path(path) for path in arguments.paths]
    found, _ = list_changes(sandbox.directory, under=paths)
    chosen = select(found, paths)
    result = note_more(apply_changes(sandbox.directory, chosen, force=arguments.force), found)
    for path in result.applied:
        print(f"Applied {printable(path)}")
    _print_refused(result.refused, "" if arguments.force else OVERWRITE)
    if result.undo is not None:
        print(f"To undo this: gvisor-kernel undo {printable(result.undo)}")
    return 1 if result.refused else 0


def run_undo(arguments: argparse.Namespace) -> int:
    """``undo``: bring back what an apply has changed. Return 0, or 1 if a file was left.

    :raises GvisorKernelError: when there is nothing to undo
    """
    result = undo_apply(arguments.undo)
    print(f"In {printable(result.folder)}:")
    for path in result.undone:
        print(f"Undone {printable(path)}")
    _print_refused(result.refused)
    return 1 if result.refused else 0


def _print_refused(refused: tuple[Refused, ...], hint: str = "") -> None:
    for one in refused:
        print(f"Refused {printable(one.path)}: {printable(one.reason)}", file=sys.stderr)
    if refused and hint:
        print(f"What to do: {hint}", file=sys.stderr)


def _find_running(text: str) -> Listed:
    sandbox = find_one(text)
    if sandbox.state != "running":
        raise GvisorKernelError(
            f"The sandbox {sandbox.id} has no kernel that can be asked: it is {sandbox.state}.",
            "see which kernels run: gvisor-kernel list",
        )
    return sandbox
