"""Arguments that several commands share, how their help looks, and the options of ``mcp``.

Nothing here runs a command, and nothing is imported that ``launch`` would have to wait for.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps line breaks of descriptions, and limits the width to 100 columns."""

    def __init__(self, prog: str) -> None:
        width = min(shutil.get_terminal_size().columns, 100) - 2
        super().__init__(prog, max_help_position=28, width=width)


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, help: str
) -> argparse.ArgumentParser:
    """Add a command with a line of help, and return its parser."""
    return commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )


def add_commands(parser: argparse.ArgumentParser) -> Callable[..., argparse.ArgumentParser]:
    """Return a function that adds a command below ``parser``."""
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(
        name: str, run: Callable[[argparse.Namespace], int], help: str, epilog: str = ""
    ) -> argparse.ArgumentParser:
        command = add_command(commands, name, help)
        command.epilog = epilog
        command.set_defaults(run=run)
        return command

    return add


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


def add_mcp(mcp: argparse.ArgumentParser) -> None:
    """Declare the options of ``mcp``."""
    from gvisor_kernel.cli.mcp import run_mcp

    mcp.set_defaults(run=run_mcp)
    mcp.epilog = (
        "Without --http it serves one client over standard input and output, which starts it.\n"
        "The sandboxes end with their client. See docs/mcp.md."
    )
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
