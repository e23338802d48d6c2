"""The command ``gvisor-kernel``: its subcommands, and the module that runs each.

A function ``run_…`` takes the parsed arguments of its command and returns the exit status. ``main``
prints a GvisorKernelError that it raises, and returns 1.

The module of a command is imported when the command runs: an installed kernelspec starts ``launch``
for each kernel, which should not wait for the imports of other commands.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from gvisor_kernel import __version__
from gvisor_kernel.cli.arguments import (
    HelpFormatter,
    Subparsers,
    add_changes,
    add_egress,
    add_id,
    add_image,
    add_json,
    add_lab,
    add_mcp,
    add_place,
    add_skills,
    add_snapshot,
    add_storage,
    make_add,
)
from gvisor_kernel.errors import GvisorKernelError

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

GROUPS = {
    "kernels": ("lab", "install", "uninstall", "start", "launch", "mcp", "skills"),
    "information": ("doctor", "list", "logs", "transcript", "egress", "version"),
    "images and snapshots": ("image", "snapshot"),
    "files": ("changes", "apply", "undo", "storage"),
    "maintenance": ("kill", "sync", "prune"),
}
"""All commands, in the groups in which ``--help`` lists them."""

PLACES = """\
default place, without --user, --sys-prefix and --prefix:
  if this command is in a virtual or conda environment, that environment;
  otherwise, for root: the whole system; for other users: that user.
"""

LIST_EPILOG = """\
states:
  starting      the kernel is not ready yet
  running       in use
  idle, paused  stopped until the next message, so that it uses no CPU (setting idle_stop)
  spare         prepared in advance for the next start (setting spare)
  ended         its Jupyter process is about to remove it
  copying       ended; its outputs are still being copied out of the Docker engine
  orphaned      its Jupyter process is gone: gvisor-kernel prune removes it
  elsewhere     it runs on another machine that shares this state directory
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status of the process."""
    parser = make_parser()
    arguments, rest = parser.parse_known_args(argv)
    arguments.rest = rest
    if rest and arguments.run != "gvisor_kernel.cli.lab:run_lab":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
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
        # The reader of our output has exited, as in "list | head -1": that is no failure.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return int(status)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands. It sets ``run`` to a command's ``module:function``."""
    parser = argparse.ArgumentParser(
        prog="gvisor-kernel",
        usage="gvisor-kernel [-h] [--version] COMMAND ...",
        epilog=EPILOG,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"gvisor-kernel {__version__}")
    commands = parser.add_subparsers(
        prog="gvisor-kernel", metavar="COMMAND", required=True, help=argparse.SUPPRESS
    )
    add = make_add(commands)

    add_lab(add)

    install = add(
        "install", "kernelspecs:run_install", "add a kernel to Jupyter's list of kernels", PLACES
    )
    add_place(install)
    install.add_argument(
        "--language",
        choices=("python", "bash", "typescript", "java"),
        default="python",
        help="the language of the kernel (default: %(default)s). Kernels of other languages have to"
        " be installed in this environment, or in the image: see docs/languages.md",
    )
    install.add_argument(
        "--name", help="the name of the kernelspec, for programs (default: gvisor-LANGUAGE)"
    )
    install.add_argument(
        "--display-name",
        metavar="TEXT",
        help="the name that people see in Jupyter's list of kernels",
    )
    install.add_argument(
        "--set",
        metavar="SETTING=VALUE",
        dest="settings",
        action="append",
        default=[],
        help="a setting of this kernelspec, such as memory_limit=16G; may be repeated. Write a list"
        " or null as in JSON. See docs/settings.md",
    )
    install.add_argument(
        "--image",
        metavar="NAME",
        help='the image that kernels run in: a name that "gvisor-kernel image list" shows (default:'
        " the Python environment of this machine)",
    )
    install.add_argument(
        "--memory", metavar="SIZE", help="the memory limit, such as 8G (default: 4G)"
    )
    install.add_argument(
        "--egress",
        metavar="ROUTE",
        action="append",
        default=[],
        help='a route to the network that "gvisor-kernel egress list" shows, such as packages; may'
        " be repeated, and may be a list with commas (default: no network)",
    )
    install.add_argument(
        "--with",
        metavar="PACKAGES",
        dest="packages",
        action="append",
        default=[],
        help='Python packages that the kernels have from their start, such as "polars duckdb>=1.1";'
        " they are installed once, in a sandbox, from the package indexes of this machine",
    )
    install.add_argument(
        "--default",
        action="store_true",
        dest="is_default",
        help="also let servers start kernels in sandboxes whose kernelspec says nothing about it",
    )
    install.add_argument(
        "--replace-python3",
        action="store_true",
        help="also replace the kernelspec python3, which most programs start; the original is kept",
    )
    install.add_argument(
        "--no-snapshot",
        action="store_true",
        help="do not make the snapshot from which kernels start now, which takes seconds:"
        " it is then made in the background, after the first start or by a Jupyter server",
    )

    uninstall = add(
        "uninstall",
        "kernelspecs:run_uninstall",
        "remove a kernel from Jupyter's list of kernels",
        "Without --user, --sys-prefix and --prefix, it removes every kernelspec of that name that\n"
        "Jupyter finds and that gvisor-kernel has installed.",
    )
    add_place(uninstall)
    uninstall.add_argument(
        "--name", default="gvisor-python", help="the name of the kernelspec (default: %(default)s)"
    )
    uninstall.add_argument(
        "--default",
        action="store_true",
        dest="is_default",
        help="undo install --default and --replace-python3 instead",
    )

    doctor = add(
        "doctor",
        "doctor:run_doctor",
        "check that kernels can start on this machine, and suggest fixes",
        "Each check prints OK, WARN or FAIL, and a line with an arrow that says what to do.\n"
        "The exit status is 1 if a check failed; warnings do not count. No check takes longer\n"
        "than 40 s.",
    )
    add_json(doctor)
    doctor.add_argument(
        "--runtime",
        choices=("kubernetes", "slurm", "ssh"),
        help="check only what this runtime needs, also if no kernelspec has it",
    )

    listing = add("list", "sandboxes:run_list", "list the sandboxes of this user", LIST_EPILOG)
    add_json(listing)

    logs = add("logs", "logs:run_logs", "print the log of a sandbox")
    add_id(logs)
    logs.add_argument(
        "-f",
        "--follow",
        action="store_true",
        help="print new lines as they are written, until the sandbox has ended",
    )

    kill = add(
        "kill",
        "sandboxes:run_kill",
        "kill a sandbox and all processes in it",
        "Jupyter sees that the kernel has died, and may start a new one.",
    )
    add_id(kill)

    add_changes(add)

    sync = add(
        "sync",
        "sandboxes:run_sync",
        "copy the outputs of a sandbox from where it runs to this machine now",
        "For kernels in a Docker engine or in Kubernetes, and on nodes that get files by copy.\n"
        "Without this command, outputs are copied when the sandbox ends. Only files that have\n"
        "changed since its start, or since the last copy, are copied.",
    )
    add_id(sync)
    sync.add_argument(
        "--to",
        metavar="FOLDER",
        help="an existing folder that gets all outputs of this sandbox from now on; needed if the"
        " original folder was moved or removed",
    )

    add(
        "prune",
        "sandboxes:run_prune",
        "remove sandboxes whose Jupyter process is gone",
        "Sandboxes in use are not changed.",
    )

    launch = add(
        "launch",
        "launch:run_launch",
        "run one kernel in a sandbox until it ends (kernelspecs use this)",
        "SIGINT interrupts the kernel. SIGTERM, or the end of this process, ends the sandbox.",
    )
    launch.add_argument(
        "-f",
        "--connection-file",
        required=True,
        metavar="FILE",
        help="the connection file that a Jupyter front end wrote",
    )
    launch.add_argument(
        "--kernel",
        default="gvisor-python",
        metavar="NAME",
        help="the kernelspec whose settings apply (default: %(default)s)",
    )

    mcp = add(
        "mcp",
        "mcp:run_mcp",
        "serve sandboxes to a client of the Model Context Protocol, such as an assistant",
        "Without --http it serves one client over standard input and output, which starts it.\n"
        "The sandboxes end with their client. See docs/mcp.md.",
    )
    add_mcp(mcp)

    transcript = add(
        "transcript",
        "transcripts:run_transcript",
        "print the cells and outputs of a sandbox's kernel",
        "A transcript is removed with its sandbox. To keep one:\n"
        "gvisor-kernel transcript --raw ID > FILE",
    )
    add_id(transcript)
    transcript.add_argument(
        "--raw", action="store_true", help="print it as recorded: one JSON object per line"
    )

    egress = add(
        "egress",
        "egress:run_list",
        "show the routes by which kernels may reach the network, and what they let through",
    )
    add_egress(egress)

    storage = add("storage", "storage:run_list", "manage what pages from sandboxes keep")
    add_storage(storage)

    skills = add("skills", "skills:run_list", "manage the skills that kernels see at /mnt/skills")
    add_skills(skills)

    start = add(
        "start",
        "start:run_start",
        "start a kernel, run one cell, end it, and print how long that took",
        "Jupyter servers log the same steps with the logger gvisor_kernel.tracing at level DEBUG.",
    )
    start.add_argument(
        "--kernel",
        default="gvisor-python",
        metavar="NAME",
        help="the kernelspec to start (default: %(default)s)",
    )
    start.add_argument("--trace", action="store_true", help="print each step, in milliseconds")
    snapshot = add(
        "snapshot",
        "snapshots:run_list",
        "manage snapshots: saved kernels that new kernels start from",
    )
    add_snapshot(snapshot)

    image = add(
        "image",
        "images:run_list",
        "manage images: root file systems that kernels run in",
    )
    add_image(image)

    add("version", "version:run_version", "print the versions of gvisor-kernel and of runsc")
    parser.description = f"{DESCRIPTION}\n{list_commands(commands)}"
    return parser


def list_commands(commands: Subparsers) -> str:
    """Return a line for each command with its description, by GROUPS."""
    lines = []
    for title, names in GROUPS.items():
        lines.append(f"{title}:")
        for name in names:
            text = str(commands.choices[name].description).rstrip(".")
            lines.append(f"  {name:<12}{text[0].lower()}{text[1:]}")
        lines.append("")
    return "\n".join(lines)
