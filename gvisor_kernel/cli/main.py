"""The command ``gvisor-kernel``: its arguments, and which module runs which command.

Commands are imported when they run: an installed kernelspec starts ``launch`` for each kernel,
and must not pay for the others.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import sys
from collections.abc import Sequence

from gvisor_kernel import __version__
from gvisor_kernel.errors import GvisorKernelError

DESCRIPTION = """\
Jupyter kernels that run inside gVisor sandboxes.

Once installed, "Python 3 (gVisor)" is among the kernels of JupyterLab, jupyter console,
nbclient and papermill. These commands set that up and look after what runs.
"""

EPILOG = """\
exit status:
  0    done
  1    it failed, and standard error says why; doctor: a check failed; logs, kill: no such sandbox
  2    the arguments are wrong
  130  interrupted
  launch exits with the status of the kernel.
"""

PLACES = """\
where, unless you say:
  in a virtual or conda environment, that environment;
  else, for root, the whole system; for anyone else, the user.
"""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps descriptions as written, and uses the terminal up to a readable width."""

    def __init__(self, prog: str) -> None:
        width = min(shutil.get_terminal_size().columns, 100) - 2
        super().__init__(prog, max_help_position=28, width=width)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the process's exit status."""
    arguments = make_parser().parse_args(argv)
    module, _, function = arguments.run.partition(":")
    try:
        status = getattr(importlib.import_module(module), function)(arguments)
        sys.stdout.flush()
    except GvisorKernelError as error:
        from gvisor_kernel.cli.output import print_error

        print_error(error)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has left, as in "list | head -1": that is no failure.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return int(status)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gvisor-kernel",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"gvisor-kernel {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, run: str, help: str, more: str = "") -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=help,
            description=help[0].upper() + help[1:] + ".",
            epilog=more,
            formatter_class=HelpFormatter,
            allow_abbrev=False,
        )
        command.set_defaults(run=f"gvisor_kernel.cli.{run}")
        return command

    install = add("install", "kernelspecs:run_install", "add the kernel to Jupyter", PLACES)
    add_place(install)
    install.add_argument(
        "--name",
        default="gvisor-python",
        help="the kernelspec's name, for programs (default: %(default)s)",
    )
    install.add_argument(
        "--display-name", metavar="TEXT", help="the name that people see in the picker"
    )
    install.add_argument(
        "--set",
        metavar="SETTING=VALUE",
        dest="settings",
        action="append",
        default=[],
        help="a setting of this kernelspec, such as memory_limit=16G; may be repeated",
    )

    uninstall = add(
        "uninstall",
        "kernelspecs:run_uninstall",
        "take the kernel out of Jupyter",
        "Without a place, every kernelspec of that name that Jupyter finds and that is ours goes.",
    )
    add_place(uninstall)
    uninstall.add_argument(
        "--name", default="gvisor-python", help="the kernelspec's name (default: %(default)s)"
    )

    doctor = add(
        "doctor",
        "doctor:run_doctor",
        "check that sandboxes can start here, and say what to do where not",
        "Exit status 1 if a check failed; warnings leave it 0. No check takes longer than 40 s.",
    )
    add_json(doctor)

    listing = add("list", "sandboxes:run_list", "list the running sandboxes of this user")
    add_json(listing)

    logs = add("logs", "logs:run_logs", "show the log of a sandbox")
    add_id(logs)
    logs.add_argument(
        "-f", "--follow", action="store_true", help="go on until the sandbox has ended"
    )

    kill = add(
        "kill",
        "sandboxes:run_kill",
        "end a sandbox and all that runs in it, at once",
        "To Jupyter the kernel has died; it may start a fresh one.",
    )
    add_id(kill)

    add(
        "prune",
        "sandboxes:run_prune",
        "remove what is left of sandboxes whose Jupyter is gone",
        "Sandboxes in use are not touched.",
    )

    launch = add(
        "launch",
        "launch:run_launch",
        "run one kernel in a sandbox until it ends (what a kernelspec starts)",
        "SIGINT interrupts the kernel; SIGTERM, or the death of this process, ends the sandbox.",
    )
    launch.add_argument(
        "-f", "--connection-file", required=True, metavar="FILE", help="Jupyter's connection file"
    )
    launch.add_argument(
        "--kernel",
        default="gvisor-python",
        metavar="NAME",
        help="the kernelspec whose settings apply (default: %(default)s)",
    )

    add("version", "version:run_version", "print the versions of gvisor-kernel and of runsc")
    return parser


def add_place(command: argparse.ArgumentParser) -> None:
    place = command.add_mutually_exclusive_group()
    place.add_argument("--user", action="store_true", help="for this user")
    place.add_argument(
        "--sys-prefix", action="store_true", help=f"in this Python environment ({sys.prefix})"
    )
    place.add_argument("--prefix", metavar="P", help="in P/share/jupyter/kernels")


def add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON, for programs")


def add_id(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "id", metavar="ID", help='as "list" shows it; the beginning will do if it is the only one'
    )
