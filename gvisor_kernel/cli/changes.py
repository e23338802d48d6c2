"""``changes``, ``apply``, ``undo``: files that kernels have changed in /workspace.

The process that has the kernel answers, by its control socket. Names and texts come from a sandbox:
they are escaped before they are printed, and folded here, not by the terminal. Every line that is
printed begins with a word of ours, or with a mark of a diff or of a folded line, so no name and no
text can pass for another line.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from gvisor_kernel.changes.apply import undo_apply
from gvisor_kernel.changes.backups import Backups
from gvisor_kernel.changes.change import (
    Change,
    Changes,
    RefusedChange,
    find_seen,
    name_path,
    note_more,
    select,
)
from gvisor_kernel.changes.control import apply_changes, list_changes
from gvisor_kernel.changes.diff import Diff
from gvisor_kernel.cli.arguments import add_id, add_json
from gvisor_kernel.cli.output import ask, fold_line, print_json, print_table
from gvisor_kernel.cli.sandboxes import find_one
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.runtimes.state.listed import Listed
from gvisor_kernel.runtimes.state.records import is_orphan
from gvisor_kernel.shown_text import describe_size, printable, printable_name

GONE = "What is not applied is gone with the sandbox. To keep it: gvisor-kernel apply {} PATH…"
RUN = "May run later without being opened, so each is applied only by its own path:"
THIS = "To apply this"
NOT_WHOLE = "Not shown whole. To apply it all the same"
OVERWRITE = (
    "see what differs: gvisor-kernel changes --diff. --force overwrites what others have changed on"
    " disk; the old files are kept for gvisor-kernel undo."
)


def add_changes(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``changes``."""
    parser.epilog = "What is not applied (gvisor-kernel apply) is gone with the sandbox."
    add_id(parser)
    parser.add_argument(
        "--diff",
        action="store_true",
        help="print the differences of texts, and after each the command that applies it",
    )
    add_json(parser)


def run_changes(arguments: argparse.Namespace) -> None:
    """``changes``: print what a kernel has changed.

    :raises GvisorKernelError: when there is no such kernel, or it does not answer
    """
    sandbox = _find_running(arguments.id)
    found, diffs = list_changes(sandbox.directory, diff=arguments.diff)
    if arguments.json:
        listed = [{**asdict(change), "token": change.token} for change in found.changes]
        content = {**asdict(found), "changes": listed}
        if arguments.diff:
            content["diffs"] = {path: diff.text for path, diff in diffs.items()}
            content["whole"] = [path for path, diff in diffs.items() if diff.is_whole]
        print_json(content)
        return
    if not found.changes:
        print(
            "Nothing that can be listed is changed in /workspace; there may be more, such as names"
            " that are not UTF-8, or very deep folders."
            if found.more
            else "Nothing is changed in /workspace."
        )
        return
    usual, running = _part(found.changes)
    if arguments.diff:
        command = f"gvisor-kernel apply {sandbox.id} --seen"
        _print_diffs(usual, diffs, command)
        tokens = [c.token for c in usual if _is_shown(c, diffs) and c.conflict is None]
        if len(tokens) > 1:
            print(f"To apply all of these: {command} {' '.join(tokens)}")
        if running:
            print(RUN)
        _print_diffs(running, diffs, command)
    else:
        if usual:
            print_table(("KIND", "TYPE"), ("SIZE",), "PATH", map(_make_row, usual))
        if running:
            print(RUN)
            print_table(("KIND", "TYPE"), ("SIZE",), "PATH", map(_make_row, running))
    _print_rest(found)
    print(GONE.format(sandbox.id), file=sys.stderr)


def _part(changes: Sequence[Change]) -> tuple[list[Change], list[Change]]:
    """Return the usual changes, and those of files that may run by themselves."""
    return [c for c in changes if c.runs is None], [c for c in changes if c.runs is not None]


def _make_row(change: Change) -> tuple[str, ...]:
    size = describe_size(change.size) if change.type == "file" else ""
    reasons = "".join(f"  ({reason})" for reason in (change.runs, change.conflict) if reason)
    return change.kind, change.type, size, f"{change.path}{reasons}"


def _is_shown(change: Change, diffs: Mapping[str, Diff]) -> bool:
    """Return whether all that the change would write was shown."""
    return change.path in diffs and diffs[change.path].is_whole


def _print_diffs(
    changes: Iterable[Change], diffs: Mapping[str, Diff], command: str | None = None
) -> None:
    """Print what was shown of each change, and ``command`` with its token."""
    for change in changes:
        name = printable_name(change.path)
        if change.path not in diffs:
            say(f"Left out here: {name}")
            continue
        for line in printable(diffs[change.path].text).removesuffix("\n").split("\n"):
            say(line)
        if change.runs is not None:
            say(f"May run later without being opened: {name} ({change.runs})")
        if change.conflict is not None:
            say(f"Conflict: {printable_name(change.conflict)}")
        if command is not None and not change.is_refused:
            words = THIS if _is_shown(change, diffs) else NOT_WHOLE
            print(f"{words}: {command} {change.token}")


def say(line: str, stream: TextIO | None = None) -> None:
    """Print a line that has text of a sandbox, by default to standard output."""
    print(fold_line(line, shutil.get_terminal_size().columns), file=stream)


def _print_rest(found: Changes) -> None:
    if found.more:
        count = max(found.total - len(found.changes), 0)
        more = f"{count} or more" if count else "Some"
        print(f"{more} changes are not listed here.", file=sys.stderr)


def add_apply(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``apply``."""
    parser.epilog = (
        "In a terminal it prints the differences and asks; --seen takes what changes --diff has\n"
        "printed. What has changed since it was shown is refused. So is a file that was changed\n"
        "on disk since the kernel was started, and one that may run later without being opened,\n"
        "such as a Makefile, unless its own path is named (for .git/ also --force). Links and\n"
        "special files are never written. The old files are kept for a while: gvisor-kernel undo.\n"
        "The exit status is 1 if a change was refused."
    )
    add_id(parser)
    parser.add_argument(
        "paths", metavar="PATH", nargs="+", help="as changes lists it; a folder: all below it"
    )
    asks_not = parser.add_mutually_exclusive_group()
    asks_not.add_argument(
        "--seen",
        action="store_true",
        help="give, in place of paths, what changes --diff has printed after what it showed:"
        " that is applied, and nothing else",
    )
    asks_not.add_argument(
        "--unseen",
        action="store_true",
        help="apply what is there now, though nobody has looked at it",
    )
    parser.add_argument(
        "--force", action="store_true", help="also replace what was changed on disk meanwhile"
    )


def run_apply(arguments: argparse.Namespace) -> int:
    """``apply``: write changes to the folder on disk. Return 0, or 1 if one was refused.

    :raises GvisorKernelError: when there is no such kernel, or no such change, or nobody can have
        seen it
    """
    sandbox = _find_running(arguments.id)
    paths = [] if arguments.seen else [name_path(path) for path in arguments.paths]
    asks = not arguments.seen and not arguments.unseen
    if asks and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise GvisorKernelError(
            "Nothing was applied: without a terminal nobody sees what it would be.",
            "use the command that is printed after each difference by: gvisor-kernel changes"
            f" {sandbox.id} --diff; or --unseen, to apply what is there now.",
        )
    found, diffs = list_changes(sandbox.directory, diff=asks, under=paths)
    chosen = find_seen(found, arguments.paths) if arguments.seen else select(found, paths)
    named = paths or [change.path for change in chosen]
    left: list[RefusedChange] = []
    if asks:
        usual, running = _part(chosen)
        shown = [*usual, *(change for change in running if change.path in named)]
        _print_diffs(shown, diffs)
        left = [RefusedChange(c.path, "it was not shown") for c in shown if c.path not in diffs]
        # Those that may run by themselves and are not named are refused, and so told.
        chosen = [
            c for c in chosen if c.path in diffs or (c.runs is not None and c.path not in named)
        ]
        hidden = [c for c in shown if c.path in diffs and not diffs[c.path].is_whole]
        for change in hidden:
            say(f"Not shown whole: {printable_name(change.path)}")
        words = f"{len(shown) - len(left)} changes"
        words += f", {len(hidden)} of them not shown whole" if hidden else ""
        if not is_yes(f"Write this to the folder on disk ({words})?"):
            print("Nothing was applied.", file=sys.stderr)
            return 1
    result = apply_changes(sandbox.directory, chosen, named=named, force=arguments.force)
    result = note_more(result, found)
    for path in result.applied:
        say(f"Applied {printable_name(path)}")
    refused = (*result.refused, *left)
    print_refused(refused, "" if arguments.force else OVERWRITE)
    if result.undo is not None:
        print(f"To undo this: gvisor-kernel undo {printable_name(result.undo)}")
    return 1 if refused else 0


def is_yes(question: str) -> bool:
    """Return whether a person says yes."""
    return ask(f"{question} [y/N] ") in ("y", "yes")


def add_undo(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``undo``."""
    parser.epilog = "What was changed on disk since then stays. The exit status is 1 then."
    parser.add_argument(
        "undo",
        metavar="ID",
        nargs="?",
        help="the id that apply printed (default: the last one, if its folder is this one, or above"
        " or below it)",
    )


def run_undo(arguments: argparse.Namespace) -> int:
    """``undo``: bring back what an apply has changed. Return 0, or 1 if a file was left.

    :raises GvisorKernelError: when there is nothing to undo; without an id also when the last apply
        was to a folder that is neither this one, nor above or below it
    """
    result = undo_apply(_find_last_here() if arguments.undo is None else arguments.undo)
    say(f"In {printable_name(result.folder)}:")
    for path in result.undone:
        say(f"Undone {printable_name(path)}")
    print_refused(result.refused)
    return 1 if result.refused else 0


def _find_last_here() -> str:
    last = Backups.open().find_last()
    folder = Path(last.head.folder)
    with suppress(OSError):  # this folder was removed
        here = Path.cwd()
        if here.is_relative_to(folder) or folder.is_relative_to(here):
            return last.id
    raise GvisorKernelError(
        f"The last apply was to another folder, {folder}; nothing was undone.",
        f"undo it by its id: gvisor-kernel undo {last.id}",
    )


def print_refused(refused: tuple[RefusedChange, ...], hint: str = "") -> None:
    """Print what was refused, and why."""
    for one in refused:
        say(f"Refused {printable_name(one.path)}: {printable_name(one.reason)}", sys.stderr)
    if refused and hint:
        print(f"What to do: {hint}", file=sys.stderr)


def _find_running(text: str) -> Listed:
    sandbox = find_one(text)
    # Of one that hibernates, whoever has it answers, and wakes it.
    if sandbox.state != "running" and (sandbox.state != "hibernated" or is_orphan(sandbox.record)):
        raise GvisorKernelError(
            f"The sandbox {sandbox.id} has no kernel that can be asked: it is {sandbox.state}.",
            "see which kernels run: gvisor-kernel list",
        )
    return sandbox
