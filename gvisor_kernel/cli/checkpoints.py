"""``checkpoint``, ``checkpoints`` and ``rewind``: states of a kernel that it can go back to."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict

from gvisor_kernel.changes.apply import find_applies, undo_applies
from gvisor_kernel.changes.control import Done, Question, ask
from gvisor_kernel.cli.arguments import add_id, add_json
from gvisor_kernel.cli.changes import is_yes, print_refused, say
from gvisor_kernel.cli.output import describe_age, print_json, print_table
from gvisor_kernel.cli.sandboxes import add_verb, find_kernel, find_one
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.kernel.checkpoints import BEFORE_REWIND, find_checkpoints
from gvisor_kernel.kernel.noted_outputs import OutputChanges
from gvisor_kernel.shown_text import describe_size, printable_name


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``checkpoint``."""
    said = "The state of the kernel in {id} is the checkpoint {name}"
    add_verb(parser, said, "Go back to it with: gvisor-kernel rewind ID NAME")
    parser.add_argument("name", nargs="?", help="a name for it (default: one that is free)")


def add_checkpoints(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``checkpoints``."""
    add_id(parser)
    parser.add_argument("--remove", metavar="NAME", help="remove this one")
    add_json(parser)


def run_checkpoints(arguments: argparse.Namespace) -> None:
    """``checkpoints``: list the checkpoints of a kernel, or remove one.

    :raises GvisorKernelError: when there is no such sandbox or checkpoint
    """
    sandbox = find_one(arguments.id)
    if arguments.remove is not None:
        sandbox = find_kernel(arguments.id)
        ask(sandbox.directory, Question("remove", name=arguments.remove), Done)
        print(f"Removed the checkpoint {printable_name(arguments.remove)}")
        return
    found = find_checkpoints(sandbox.directory)
    if arguments.json:
        print_json([asdict(one) for one in found])
        return
    rows = (
        (
            *(one.name, str(one.cell or ""), describe_age(time.time() - one.time)),
            *(describe_size(one.size), one.what),
        )
        for one in found
    )
    print_table(("NAME", "CELL"), ("AGE", "SIZE"), "WHAT", rows)


def add_rewind(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``rewind``."""
    parser.epilog = (
        f"The state that the kernel leaves becomes its checkpoint {BEFORE_REWIND}. Outputs stay.\n"
        "The exit status is 1 if something that was applied could not be undone."
    )
    add_id(parser)
    parser.add_argument("name", help="the checkpoint")
    parser.add_argument(
        "--undo-applied",
        action="store_true",
        help="also undo what was applied to the folder since then; prints it, and asks",
    )


def run_rewind(arguments: argparse.Namespace) -> int:
    """``rewind``: let a kernel go back to a checkpoint, and list outputs that differ. Return 0, or
    1 if the person says no, or a file that was applied was left.

    :raises GvisorKernelError: when there is none of that name, or the kernel cannot go back; or
        when nobody could see what is to be undone
    """
    sandbox = find_kernel(arguments.id)
    checkpoints = find_checkpoints(sandbox.directory)
    times = [one.time for one in checkpoints if one.name == arguments.name]
    applies = find_applies(sandbox.directory, *times) if times else []
    undoes = arguments.undo_applied and bool(applies)
    if undoes and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise GvisorKernelError(
            "Nothing was done: without a terminal nobody sees what would be undone.",
            f"leave --undo-applied out, and then: gvisor-kernel undo {applies[0].undo}",
        )
    if undoes:
        paths = dict.fromkeys(path for one in applies for path in one.paths)
        for path in paths:
            say(f"Applied since then: {printable_name(path)}")
        what = f"{len(paths)} file{'s' * (len(paths) != 1)}"
        where = printable_name(sandbox.record.folder)
        if not is_yes(f"Go back to {arguments.name}, and undo this in {where} ({what})?"):
            print("Nothing was done.", file=sys.stderr)
            return 1
    question = Question("rewind", name=arguments.name, made=next(iter(times), None))
    outputs = ask(sandbox.directory, question, OutputChanges)
    print(f"The kernel in {sandbox.id} went back to {arguments.name}")
    for word in ("added", "changed", "removed"):
        for path in getattr(outputs, word):
            print(f"  output {word} since: {printable_name(path)}")
    if outputs.more:
        print("  There may be more outputs that differ.")
    if not undoes:
        for one in applies:
            print(f"What was applied since stays. To undo it: gvisor-kernel undo {one.undo}")
        return 0
    result = undo_applies(applies)
    for path in result.undone:
        say(f"Undone {printable_name(path)}")
    print_refused(result.refused)
    return 1 if result.refused else 0
