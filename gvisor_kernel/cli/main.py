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
from collections.abc import Callable, Sequence
from typing import TypeAlias

from gvisor_kernel import __version__
from gvisor_kernel.errors import GvisorKernelError

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Add: TypeAlias = Callable[..., argparse.ArgumentParser]

DESCRIPTION = """\
Jupyter kernels that run inside gVisor sandboxes.

Once installed, "Python 3 (gVisor)" is among the kernels of JupyterLab, jupyter console,
nbclient and papermill. These commands set that up and look after what runs.
"""

EPILOG = """\
exit status:
  0    done
  1    it failed, and standard error says why; doctor: a check failed; logs, kill and
       transcript: no such sandbox; skills and image: refused
  2    the arguments are wrong
  130  interrupted
  launch exits with the status of the kernel.
"""

GROUPS = {
    "use": ("install", "uninstall", "start", "launch", "skills"),
    "look": ("doctor", "list", "logs", "transcript", "version"),
    "images": ("image", "snapshot"),
    "maintenance": ("kill", "sync", "prune"),
}
"""Of commands, as ``--help`` lists them: all that there are."""

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

    install = add("install", "kernelspecs:run_install", "add the kernel to Jupyter", PLACES)
    add_place(install)
    install.add_argument(
        "--language",
        choices=("python", "bash", "typescript", "java"),
        default="python",
        help="of the kernel, which has to be installed where it is to run: %(choices)s",
    )
    install.add_argument(
        "--name", help="the kernelspec's name, for programs (default: gvisor-LANGUAGE)"
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
        help="a setting of this kernelspec, such as memory_limit=16G; may be repeated. A list or"
        " null is written as in JSON",
    )
    install.add_argument(
        "--image", metavar="NAME", help="an image to run in, as gvisor-kernel image list shows it"
    )
    install.add_argument("--memory", metavar="SIZE", help="the memory limit, such as 8G")

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
        "check that sandboxes can start here, and say what to do",
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

    sync = add(
        "sync",
        "sandboxes:run_sync",
        "copy what a sandbox of a Docker engine has in its outputs, now and not at its end",
        "Files that are as they were when it started, or at the last time, are left alone.",
    )
    add_id(sync)
    sync.add_argument(
        "--to",
        metavar="FOLDER",
        help="a folder that exists, where all its outputs go from now on; for when the one that it"
        " began with was moved",
    )

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

    transcript = add(
        "transcript",
        "transcripts:run_transcript",
        "show what the kernel of a sandbox was asked and answered",
        "A transcript goes with its sandbox; keep one with: transcript --raw ID > FILE",
    )
    add_id(transcript)
    transcript.add_argument(
        "--raw", action="store_true", help="as it was recorded: one JSON object a line"
    )

    skills = add("skills", "skills:run_list", "pack, check, install, list and remove skills")
    add_skills(skills)

    start = add(
        "start",
        "start:run_start",
        "start a kernel, run a cell in it, end it, and say how long that took",
        "The same steps go to the logger gvisor_kernel.tracing, at its level DEBUG.",
    )
    start.add_argument(
        "--kernel",
        default="gvisor-python",
        metavar="NAME",
        help="the kernelspec to start (default: %(default)s)",
    )
    start.add_argument("--trace", action="store_true", help="list each step, in milliseconds")
    snapshot = add(
        "snapshot",
        "snapshots:run_list",
        "snapshots that kernels start from: list, build, verify, remove",
    )
    add_snapshot(snapshot)

    image = add(
        "image",
        "images:run_list",
        "root file systems that kernels run in: import, build, list, remove",
    )
    add_image(image)

    add("version", "version:run_version", "print the versions of gvisor-kernel and of runsc")
    parser.description = f"{DESCRIPTION}\n{list_commands(commands)}"
    return parser


def list_commands(commands: Subparsers) -> str:
    """Every command with what it does, a line each, by GROUPS."""
    lines = []
    for title, names in GROUPS.items():
        lines.append(f"{title}:")
        for name in names:
            words = str(commands.choices[name].description).rstrip(".")
            lines.append(f"  {name:<12}{words[0].lower()}{words[1:]}")
        lines.append("")
    return "\n".join(lines)


def make_add(commands: Subparsers) -> Add:
    """A function that adds a command: its name, what runs it, one line of help, and more of it."""

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

    return add


def add_skills(skills: argparse.ArgumentParser) -> None:
    add = make_add(skills.add_subparsers(title="commands", metavar="COMMAND", required=True))
    pack = add("pack", "skills:run_pack", "make a package of the skill in a folder")
    pack.add_argument("directory", metavar="DIR", help="the folder with its SKILL.md")
    pack.add_argument(
        "-o", "--output", metavar="FILE", help="the package (default: NAME.skill, here)"
    )
    check = add("check", "skills:run_check", "say whether a package is one, and what is in it")
    check.add_argument("file", metavar="FILE")
    install = add(
        "install",
        "skills:run_install",
        "install a package for the kernels that start from now on",
        "In place of FILE, the name of a skill that came with gvisor-kernel puts that one back.",
    )
    install.add_argument("file", metavar="FILE")
    install.add_argument(
        "--examples", action="store_true", help="among the examples rather than the public ones"
    )
    listing = add("list", "skills:run_list", "list the skills that kernels see")
    add_json(listing)
    remove = add("remove", "skills:run_remove", "take a skill away")
    remove.add_argument("name", metavar="NAME")


def add_snapshot(snapshot: argparse.ArgumentParser) -> None:
    add = make_add(snapshot.add_subparsers(title="commands", metavar="COMMAND", required=True))
    listing = add(
        "list", "snapshots:run_list", "list the snapshots and their states, the last used first"
    )
    add_json(listing)
    build = add(
        "build",
        "snapshots:run_build",
        "make the snapshot of a kernel now",
        "Without this command it is made in the background after the first start.",
    )
    build.add_argument(
        "--kernel",
        default="gvisor-python",
        metavar="NAME",
        help="the kernelspec whose kernels start from it (default: %(default)s)",
    )
    build.add_argument(
        "--preload",
        metavar="MODULES",
        help="modules to import first, such as numpy,pandas; a kernel starts from the snapshot if"
        " its setting preload names the same modules (default: that setting)",
    )
    build.add_argument("--plan", action="store_true", help=argparse.SUPPRESS)
    verify = add(
        "verify",
        "snapshots:run_verify",
        "check whether kernels may still start from each snapshot; reads all files",
        "Exit status 1 if there is a snapshot from which no kernel may start.",
    )
    add_json(verify)
    remove = add("remove", "snapshots:run_remove", "remove snapshots")
    what = remove.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "id", metavar="ID", nargs="?", help='as "list" shows it; the beginning will do'
    )
    what.add_argument("--all", action="store_true", help="all snapshots")
    what.add_argument(
        "--stale", action="store_true", help="snapshots from which no kernel may start any more"
    )


def add_image(image: argparse.ArgumentParser) -> None:
    add = make_add(image.add_subparsers(title="commands", metavar="COMMAND", required=True))
    take = add(
        "import",
        "images:run_import",
        "import an image, so that kernels can run in it",
        "SOURCE is an OCI layout (a folder, or an archive of one), an archive of docker save, a\n"
        "root file system (a folder, or a tar archive of one), packed or not; or, where Docker or\n"
        "Podman runs, the name that the image has there.",
    )
    take.add_argument("source", metavar="SOURCE")
    take.add_argument("--name", help="what to call it (default: as its source is called)")
    take.add_argument(
        "--reference", metavar="REF", help="which image, where the source has several"
    )
    build = add(
        "build",
        "images:run_build",
        "build an image that comes with gvisor-kernel, and import it",
        "With Docker where its engine is up, else with buildah. Images that it builds upon are\n"
        "built before, unless they are there already.",
    )
    build.add_argument("image", metavar="NAME", help="base, python, polyglot or full")
    build.add_argument("--name", help="what to call it (default: NAME)")
    distribution = build.add_mutually_exclusive_group()
    distribution.add_argument(
        "--base", metavar="REF", help="the distribution to build upon, as a registry calls it"
    )
    distribution.add_argument(
        "--archive", metavar="FILE", help="the archive of a root file system to build upon"
    )
    distribution.add_argument(
        "--bootstrap",
        metavar="SUITE",
        help="build upon a release that mmdebstrap makes of its packages, such as trixie",
    )
    listing = add("list", "images:run_list", "list the images")
    add_json(listing)
    inspect = add("inspect", "images:run_inspect", "say what is known of an image")
    inspect.add_argument("image", metavar="IMAGE")
    add_json(inspect)
    verify = add(
        "verify",
        "images:run_verify",
        "say of each image whether its files are those that were imported",
        "Reads every file. Exit status 1 if there is one that has changed.",
    )
    verify.add_argument("image", metavar="IMAGE", nargs="*", help="only these (default: all)")
    add_json(verify)
    remove = add(
        "remove",
        "images:run_remove",
        "remove images that no running kernel uses",
    )
    remove.add_argument("image", metavar="IMAGE", nargs="+", help='as "list" shows it')


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
