"""Arguments that several commands share, and how their help looks.

Nothing here runs a command, and nothing is imported that ``launch`` would have to wait for.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Iterable

from gvisor_kernel.errors import GvisorKernelError


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


def add_settings(command: argparse.ArgumentParser, text: str, of: str) -> None:
    """Add the options ``--set`` and ``--memory``; ``parse_settings`` reads the former."""
    command.add_argument(
        "--set",
        metavar="SETTING=VALUE",
        dest="settings",
        action="append",
        default=[],
        help=f"{text}; may be repeated. Write a list or null as in JSON. See docs/settings.md",
    )
    command.add_argument("--memory", metavar="SIZE", help=f"the memory limit{of} (default: 4G)")


def parse_settings(texts: Iterable[str]) -> dict[str, object]:
    """Return the settings in ``name=value``.

    :raises GvisorKernelError: one has no value
    """
    from gvisor_kernel.config.validators import parse_value

    settings = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise GvisorKernelError(
                f"--set {text} has no value.",
                "write --set NAME=VALUE, such as --set memory_limit=16G.",
            )
        settings[name.strip()] = parse_value(value)
    return settings


def add_id(command: argparse.ArgumentParser) -> None:
    """Add the argument ID of a sandbox; ``find_one`` reads it."""
    command.add_argument(
        "id",
        metavar="ID",
        help='the id that "gvisor-kernel list" shows, or a unique beginning of it',
    )
