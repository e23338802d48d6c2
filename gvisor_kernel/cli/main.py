"""The command ``gvisor-kernel``: the names of its commands, and the module of each.

A command NAME is two functions of its module. ``add_NAME`` declares its arguments, and what its
help says below them. ``run_NAME``, unless that sets another one, takes the parsed arguments and
may return an exit status; ``main`` prints a GvisorKernelError that it raises, and returns 1.

A module is imported when its command is used: an installed kernelspec starts ``launch`` for each
kernel, which should not wait for the imports of other commands.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from gvisor_kernel import __version__
from gvisor_kernel.cli.arguments import HelpFormatter, add_command
from gvisor_kernel.errors import GvisorKernelError

# by path: the kernel's own file systems, /proc, /sys and /dev

DESCRIPTION = """\
Jupyter kernels that run inside gVisor sandboxes.

After "gvisor-kernel install", the kernel "Python 3 (gVisor)" can be chosen in JupyterLab,
jupyter console, nbclient and papermill. Each running kernel has a sandbox of its own.
"""

EPILOG = """\
exit status:
  0    the command succeeded
  1    the command failed, and standard error says why; doctor: a check failed;
       verify: an image has changed, or a snapshot cannot be used
  2    the arguments are wrong
  130  interrupted by Ctrl-C
  launch exits with the status of the kernel.
"""


class Command(NamedTuple):
    """A module of this package, and what ``--help`` says of a command that it has."""

    module: str
    help: str


GROUPS: Mapping[str, Mapping[str, Command]] = {
    "kernels": {
        "lab": Command(
            "lab", "open a folder in JupyterLab, with sandboxes alone; for what strangers wrote"
        ),
        "install": Command("install", "add a kernel to Jupyter's list of kernels"),
        "uninstall": Command("install", "remove a kernel from Jupyter's list of kernels"),
        "start": Command(
            "kernels", "start a kernel, run one cell, end it, and print how long that took"
        ),
        "launch": Command(
            "kernels", "run one kernel in a sandbox until it ends (kernelspecs use this)"
        ),
        "mcp": Command(
            "mcp",
            "serve sandboxes to a client of the Model Context Protocol, such as an assistant",
        ),
        "skills": Command("skills", "manage the skills that kernels see at /mnt/skills"),
    },
    "information": {
        "doctor": Command(
            "doctor", "check that kernels can start on this machine, and suggest fixes"
        ),
        "list": Command("sandboxes", "list the sandboxes of this user"),
        "logs": Command("logs", "print the log of a sandbox"),
        "transcript": Command("logs", "print the cells and outputs of a sandbox's kernel"),
        "egress": Command(
            "egress",
            "show the routes by which kernels may reach the network, and what they let through",
        ),
        "version": Command("version", "print the versions of gvisor-kernel and of runsc"),
    },
    "releases, images and snapshots": {
        "runsc": Command(  # no runtime: the name of a command
            "runsc",  # no runtime: its module
            "install, choose and remove releases of gVisor",
        ),
        "image": Command("images", "manage images: root file systems that kernels run in"),
        "snapshot": Command(
            "snapshots", "manage snapshots: saved kernels that new kernels start from"
        ),
    },
    "files": {
        "changes": Command(
            "changes", "list what a kernel has changed in /workspace, against the folder on disk"
        ),
        "apply": Command("changes", "write changes of a kernel to the folder on disk"),
        "undo": Command("changes", "undo what apply did"),
        "storage": Command("storage", "manage what pages from sandboxes keep"),
    },
    "states of a kernel": {
        "hibernate": Command("sandboxes", "save a kernel on the disk, and free its memory"),
        "resume": Command("sandboxes", "let a kernel that hibernates go on"),
        "branch": Command("sandboxes", "start a kernel that goes on from the state of another one"),
        "move": Command("sandboxes", "let a kernel go on on another machine"),
        "checkpoint": Command("checkpoints", "save the state of a kernel under a name"),
        "checkpoints": Command("checkpoints", "list the checkpoints of a kernel, or remove one"),
        "rewind": Command("checkpoints", "let a kernel go back to a checkpoint"),
    },
    "maintenance": {
        "kill": Command("sandboxes", "kill a sandbox and all processes in it"),
        "sync": Command(
            "sandboxes",
            "copy the outputs of a sandbox from where it runs to this machine now",
        ),
        "prune": Command("sandboxes", "remove sandboxes whose Jupyter process is gone"),
    },
}
"""All commands, in the groups in which ``--help`` lists them."""
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status of the process."""
    argv = sys.argv[1:] if argv is None else argv
    # No option before the command takes a value, so the first other word is its name.
    words = [word for word in argv if not word.startswith("-")]
    try:
        parser = make_parser(words[:1])
        arguments, rest = parser.parse_known_args(argv)
        arguments.rest = rest
        if rest and arguments.command != "lab":  # whose other options are Jupyter's
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        status = arguments.run(arguments) or 0
        sys.stdout.flush()
    except GvisorKernelError as error:
        from gvisor_kernel.cli.output import print_error

        print_error(error)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has exited, as in "list | head -1": that is no failure.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return int(status)


def make_parser(used: Iterable[str] = tuple(COMMANDS)) -> argparse.ArgumentParser:
    """Return the parser of all commands; only those that are ``used`` are imported.

    It sets ``command`` to a command's name, and ``run`` to the function that runs it.
    """
    parser = argparse.ArgumentParser(
        prog="gvisor-kernel",
        usage="gvisor-kernel [-h] [--version] COMMAND ...",
        description=f"{DESCRIPTION}\n{list_commands()}",
        epilog=EPILOG,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"gvisor-kernel {__version__}")
    commands = parser.add_subparsers(
        prog="gvisor-kernel",
        dest="command",
        metavar="COMMAND",
        required=True,
        help=argparse.SUPPRESS,
    )
    for name, (module, text) in COMMANDS.items():
        command = add_command(commands, name, text)
        if name in used:
            found = importlib.import_module(f"gvisor_kernel.cli.{module}")
            command.set_defaults(run=getattr(found, f"run_{name}", None))
            getattr(found, f"add_{name}")(command)
    return parser


def list_commands() -> str:
    """Return a line for each command, by GROUPS."""
    lines = []
    for title, group in GROUPS.items():
        lines.append(f"{title}:")
        lines += [f"  {name:<13}{command.help}" for name, command in group.items()]
        lines.append("")
    return "\n".join(lines)
