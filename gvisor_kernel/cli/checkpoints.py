"""``checkpoint``, ``checkpoints`` and ``rewind``: states of a kernel that it can go back to."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict

from gvisor_kernel.changes.control import Done, Made, Question, ask
from gvisor_kernel.cli.arguments import add_id, add_json
from gvisor_kernel.cli.output import describe_age, print_json, print_table
from gvisor_kernel.cli.sandboxes import find_one
from gvisor_kernel.kernel.checkpoints import BEFORE_REWIND, find_checkpoints
from gvisor_kernel.kernel.noted_outputs import OutputChanges
from gvisor_kernel.shown_text import describe_size, printable_name


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``checkpoint``."""
    parser.epilog = "Go back to it with: gvisor-kernel rewind ID NAME"
    parser.set_defaults(run=run_checkpoint)
    add_id(parser)
    parser.add_argument("name", nargs="?", help="a name for it (default: one that is free)")


def run_checkpoint(arguments: argparse.Namespace) -> int:
    """``checkpoint``: save a kernel's state under a name, and let it go on. Return 0.

    :raises GvisorKernelError: when there is no such sandbox, or its kernel cannot be saved
    """
    sandbox = find_one(arguments.id)
    made = ask(sandbox.directory, Question("checkpoint", name=arguments.name), Made)
    print(f"The state of the kernel in {sandbox.id} is the checkpoint {made.name}")
    return 0


def add_checkpoints(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``checkpoints``."""
    parser.set_defaults(run=run_checkpoints)
    add_id(parser)
    parser.add_argument("--remove", metavar="NAME", help="remove this one")
    add_json(parser)


def run_checkpoints(arguments: argparse.Namespace) -> int:
    """``checkpoints``: list the checkpoints of a kernel, or remove one. Return 0.

    :raises GvisorKernelError: when there is no such sandbox or checkpoint
    """
    sandbox = find_one(arguments.id)
    if arguments.remove is not None:
        ask(sandbox.directory, Question("remove", name=arguments.remove), Done)
        print(f"Removed the checkpoint {printable_name(arguments.remove)}")
        return 0
    found = find_checkpoints(sandbox.directory)
    if arguments.json:
        print_json([asdict(one) for one in found])
        return 0
    rows = (
        (
            *(one.name, str(one.cell or ""), describe_age(time.time() - one.time)),
            *(describe_size(one.size), one.what),
        )
        for one in found
    )
    print_table(("NAME", "CELL"), ("AGE", "SIZE"), "WHAT", rows)
    return 0


def add_rewind(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``rewind``."""
    parser.epilog = f"The state that the kernel leaves becomes its checkpoint {BEFORE_REWIND}."
    parser.set_defaults(run=run_rewind)
    add_id(parser)
    parser.add_argument("name", help="the checkpoint")


def run_rewind(arguments: argparse.Namespace) -> int:
    """``rewind``: let a kernel go back to a checkpoint, and list outputs that differ. Return 0.

    :raises GvisorKernelError: when there is none of that name, or the kernel cannot go back
    """
    sandbox = find_one(arguments.id)
    outputs = ask(sandbox.directory, Question("rewind", name=arguments.name), OutputChanges)
    print(f"The kernel in {sandbox.id} went back to {arguments.name}")
    for word in ("added", "changed", "removed"):
        for path in getattr(outputs, word):
            print(f"  output {word} since: {printable_name(path)}")
    if outputs.more:
        print("  There may be more outputs that differ.")
    return 0
