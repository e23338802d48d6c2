"""Arguments that several commands share, and those of ``skills``, ``egress`` and so on.

Nothing here runs a command, and nothing is imported that ``launch`` would have to wait for.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from typing import TypeAlias

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Add: TypeAlias = Callable[..., argparse.ArgumentParser]


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps line breaks of descriptions, and limits the width to 100 columns."""

    def __init__(self, prog: str) -> None:
        width = min(shutil.get_terminal_size().columns, 100) - 2
        super().__init__(prog, max_help_position=28, width=width)


def make_add(commands: Subparsers) -> Add:
    """Return a function that adds a command: its name, its function, a line of help, an epilog."""

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


LAB_EPILOG = """\
The server shows this folder alone, without links and hidden files, starts no kernels but
sandboxes, has no terminals and no other extensions, and listens on this machine only. It reads
nothing of your Jupyter configuration but the sections GVisorProvisioner, GVisorEgress and
GVisorServer; settings that you change in its page end with it. More options are those of Jupyter,
as --ServerApp.base_url=/x/, but for those that could open the server again. Ctrl-C twice ends it.
"""


def add_lab(add: Add) -> None:
    """Add ``lab`` and its arguments."""
    lab = add(
        "lab",
        "lab:run_lab",
        "open a folder in JupyterLab, with sandboxes alone; for what strangers wrote",
        LAB_EPILOG,
    )
    lab.add_argument(
        "folder", nargs="?", default=".", metavar="FOLDER", help="the folder (default: this one)"
    )
    lab.add_argument(
        "--kernel",
        action="append",
        default=[],
        metavar="NAME",
        help="a kernelspec that may be started; may be repeated (default: all of gvisor-kernel)",
    )
    lab.add_argument("--port", type=int, metavar="PORT", help="the port (default: a free one)")
    lab.add_argument("--no-browser", action="store_true", help="open no browser")


def add_skills(skills: argparse.ArgumentParser) -> None:
    """Add the commands of ``skills`` and their arguments."""
    add = make_add(skills.add_subparsers(title="commands", metavar="COMMAND", required=True))
    pack = add("pack", "skills:run_pack", "pack the skill in a folder into a package file")
    pack.add_argument("directory", metavar="DIR", help="the folder that contains SKILL.md")
    pack.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="the package to write (default: NAME.skill in the current directory)",
    )
    check = add("check", "skills:run_check", "check that a package is valid, and list its files")
    check.add_argument("file", metavar="FILE", help="the package, such as NAME.skill")
    install = add(
        "install",
        "skills:run_install",
        "install a package, for all kernels that start from now on",
        "If FILE is no file but the name of a skill that comes with gvisor-kernel, that skill is\n"
        "restored.",
    )
    install.add_argument("file", metavar="FILE", help="the package, such as NAME.skill")
    install.add_argument(
        "--examples",
        action="store_true",
        help="install it at /mnt/skills/examples (default: /mnt/skills/public)",
    )
    listing = add(
        "list",
        "skills:run_list",
        "list the skills that kernels see",
        "Long descriptions are cut; --json prints them in full.",
    )
    add_json(listing)
    remove = add("remove", "skills:run_remove", "remove a skill")
    remove.add_argument("name", metavar="NAME", help='the name that "skills list" shows')


def add_snapshot(snapshot: argparse.ArgumentParser) -> None:
    """Add the commands of ``snapshot`` and their arguments."""
    add = make_add(snapshot.add_subparsers(title="commands", metavar="COMMAND", required=True))
    listing = add(
        "list", "snapshots:run_list", "list the snapshots and their states, the last used first"
    )
    add_json(listing)
    build = add(
        "build",
        "snapshots:run_build",
        "make a snapshot of a kernel now",
        "Without this command, a snapshot is made in the background after a cold start.",
    )
    build.add_argument(
        "--kernel",
        default="gvisor-python",
        metavar="NAME",
        help="the kernelspec to make the snapshot for (default: %(default)s)",
    )
    build.add_argument(
        "--preload",
        metavar="MODULES",
        help="Python modules to import before the snapshot is made, such as numpy,pandas. Only"
        " kernels whose setting preload is the same start from it (default: that setting)",
    )
    build.add_argument("--plan", action="store_true", help=argparse.SUPPRESS)
    verify = add(
        "verify",
        "snapshots:run_verify",
        "check for each snapshot whether kernels can still start from it",
        "The exit status is 1 if kernels cannot start from one of them.",
    )
    add_json(verify)
    remove = add("remove", "snapshots:run_remove", "remove snapshots")
    what = remove.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "id", metavar="ID", nargs="?", help='the id that "snapshot list" shows, or its beginning'
    )
    what.add_argument("--all", action="store_true", help="all snapshots")
    what.add_argument(
        "--stale", action="store_true", help="the snapshots that kernels can no longer start from"
    )


def add_image(image: argparse.ArgumentParser) -> None:
    """Add the commands of ``image`` and their arguments."""
    add = make_add(image.add_subparsers(title="commands", metavar="COMMAND", required=True))
    importing = add(
        "import",
        "images:run_import",
        "import an image, so that kernels can run in it",
        "SOURCE is one of:\n"
        "  an OCI layout: a folder, or an archive of one\n"
        "  an archive that docker save wrote\n"
        "  a root file system: a folder, or a tar archive of one\n"
        "  the name of an image in Docker or Podman, if one of them is installed\n"
        "Archives may be compressed.",
    )
    importing.add_argument("source", metavar="SOURCE", help="see below")
    importing.add_argument("--name", help="the name of the image here (default: from SOURCE)")
    importing.add_argument(
        "--reference", metavar="REF", help="which image to import, if SOURCE contains several"
    )
    build = add(
        "build",
        "images:run_build",
        "build an image that comes with gvisor-kernel, and import it",
        "Docker builds it if its engine runs, otherwise buildah. Images that it is based on are\n"
        "built first, unless they exist.",
    )
    build.add_argument("image", metavar="IMAGE", help="base, python, polyglot or full")
    build.add_argument("--name", help="the name of the image here (default: IMAGE)")
    distribution = build.add_mutually_exclusive_group()
    distribution.add_argument(
        "--base", metavar="REF", help="the image of the distribution to start from, in a registry"
    )
    distribution.add_argument(
        "--archive", metavar="FILE", help="an archive of the root file system to start from"
    )
    distribution.add_argument(
        "--bootstrap",
        metavar="SUITE",
        help="start from a Debian or Ubuntu release, such as trixie, that mmdebstrap makes from its"
        " packages",
    )
    listing = add("list", "images:run_list", "list the images")
    add_json(listing)
    inspect = add("inspect", "images:run_inspect", "print what is known about an image")
    inspect.add_argument("image", metavar="IMAGE", help='a name or digest that "image list" shows')
    add_json(inspect)
    verify = add(
        "verify",
        "images:run_verify",
        "check that the files of images are still those that were imported",
        "This reads every file. The exit status is 1 if an image has changed.",
    )
    verify.add_argument(
        "image", metavar="IMAGE", nargs="*", help="the images to check (default: all)"
    )
    add_json(verify)
    remove = add("remove", "images:run_remove", "remove images that no running kernel uses")
    remove.add_argument(
        "image", metavar="IMAGE", nargs="+", help='a name or digest that "image list" shows'
    )


def add_egress(egress: argparse.ArgumentParser) -> None:
    """Add the commands of ``egress`` and their arguments."""
    add = make_add(egress.add_subparsers(title="commands", metavar="COMMAND", required=True))
    listing = add(
        "list",
        "egress:run_list",
        "list the routes that exist, and the kernelspecs that use them",
        "Routes are set in Jupyter's configuration: c.GVisorEgress.routes. See docs/egress.md.",
    )
    add_json(listing)
    log = add(
        "log",
        "egress:run_log",
        "print the requests that a sandbox or a page has made by its routes",
    )
    add_id(log)
    add_json(log)
    pages = add("pages", "egress:run_pages", "list the pages that have made requests by a route")
    add_json(pages)


def add_mcp(mcp: argparse.ArgumentParser) -> None:
    """Add the options of ``mcp``."""
    mcp.add_argument(
        "--http",
        metavar="ADDRESS:PORT",
        help="serve over Streamable HTTP at this address, such as 127.0.0.1:8765; the token that"
        " clients need is printed, or taken from the variable GVISOR_KERNEL_MCP_TOKEN",
    )
    mcp.add_argument(
        "--host",
        metavar="NAME[:PORT]",
        dest="hosts",
        action="append",
        default=[],
        help="with --http: another name by which clients reach this server; needed for an address"
        " that is not of the loopback interface; may be repeated",
    )
    mcp.add_argument(
        "--outputs",
        metavar="FOLDER",
        help="a folder in which each sandbox gets a folder for its outputs (default: outputs end"
        " with their sandbox)",
    )
    mcp.add_argument(
        "--upload-from",
        metavar="FOLDER",
        dest="upload_roots",
        action="append",
        default=[],
        help="a folder from which the client may copy files into a sandbox; may be repeated"
        " (default: none)",
    )
    mcp.add_argument(
        "--set",
        metavar="SETTING=VALUE",
        dest="settings",
        action="append",
        default=[],
        help='a setting of each sandbox, such as image=full, egress=["packages"] or'
        " uploads=/home/me/data; may be repeated. See docs/settings.md",
    )
    mcp.add_argument(
        "--memory",
        metavar="SIZE",
        help="the memory limit of each sandbox, such as 2G (default: 4G)",
    )
    for name, default, text in (
        ("sessions", 8, "sessions of one client"),
        ("all-sessions", 50, "sessions of all clients"),
        ("timeout", 120, "seconds of a run that names no timeout"),
        ("max-timeout", 3600, "seconds of a run at most"),
        ("idle", 1800, "seconds after which a session that is not used ends"),
    ):
        mcp.add_argument(
            f"--{name}",
            metavar="N",
            type=int,
            default=default,
            help=f"{text} (default: %(default)s)",
        )


def add_place(command: argparse.ArgumentParser) -> None:
    """Add the options that name a place of Jupyter's kernelspecs; at most one may be given."""
    place = command.add_mutually_exclusive_group()
    place.add_argument(
        "--user", action="store_true", help="in this user's data directory of Jupyter"
    )
    place.add_argument(
        "--sys-prefix", action="store_true", help=f"in this Python environment, {sys.prefix}"
    )
    place.add_argument("--prefix", metavar="P", help="in P/share/jupyter/kernels")


def add_changes(add: Add) -> None:
    """Add the commands ``changes``, ``apply`` and ``undo``, and their arguments."""
    changes = add(
        "changes",
        "changes:run_changes",
        "list what a kernel has changed in /workspace, against the folder on disk",
        "What is not applied (gvisor-kernel apply) is gone with the sandbox.",
    )
    add_id(changes)
    changes.add_argument(
        "--diff",
        action="store_true",
        help="print the differences of texts, and after each the command that applies it",
    )
    add_json(changes)
    apply = add(
        "apply",
        "changes:run_apply",
        "write changes of a kernel to the folder on disk",
        "In a terminal it prints the differences and asks; --seen takes what changes --diff has\n"
        "printed. What has changed since it was shown is refused. So is a file that was changed\n"
        "on disk since the kernel was started, and one that may run later without being opened,\n"
        "such as a Makefile, unless its own path is named (for .git/ also --force). Links and\n"
        "special files are never written. The old files are kept for a while: gvisor-kernel undo.\n"
        "The exit status is 1 if a change was refused.",
    )
    add_id(apply)
    apply.add_argument(
        "paths", metavar="PATH", nargs="+", help="as changes lists it; a folder: all below it"
    )
    asks_not = apply.add_mutually_exclusive_group()
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
    apply.add_argument(
        "--force", action="store_true", help="also replace what was changed on disk meanwhile"
    )
    undo = add(
        "undo",
        "changes:run_undo",
        "undo what apply did",
        "What was changed on disk since then stays. The exit status is 1 then.",
    )
    undo.add_argument(
        "undo",
        metavar="ID",
        nargs="?",
        help="the id that apply printed (default: the last one, if its folder is this one, or above"
        " or below it)",
    )


def add_storage(storage: argparse.ArgumentParser) -> None:
    """Add the subcommands of ``storage``."""
    add = make_add(storage.add_subparsers(title="commands", metavar="COMMAND", required=True))
    listing = add("list", "storage:run_list", "list the pages that keep data")
    add_json(listing)
    show = add("show", "storage:run_show", "print the keys of a page, and their values' beginnings")
    export = add("export", "storage:run_export", "write all that a page keeps as JSON")
    export.add_argument(
        "--file", metavar="FILE", help="a new file, private to you (default: standard output)"
    )
    remove = add("remove", "storage:run_remove", "remove all that a page keeps")
    for command in (show, export, remove):
        command.add_argument(
            "page", metavar="PAGE", help="a page's path, or its id or the beginning of it"
        )
    for command in (listing, show, export, remove):
        command.add_argument(
            "--shared",
            metavar="FOLDER",
            help="the folder of c.GVisorServer.shared_storage, if an administrator has set it",
        )


def add_json(command: argparse.ArgumentParser) -> None:
    """Add the option ``--json``."""
    command.add_argument("--json", action="store_true", help="print JSON for programs")


def add_id(command: argparse.ArgumentParser) -> None:
    """Add the argument ID of a sandbox; ``find_one`` reads it."""
    command.add_argument(
        "id",
        metavar="ID",
        help='the id that "gvisor-kernel list" shows, or a unique beginning of it',
    )
