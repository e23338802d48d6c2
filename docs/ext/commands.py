"""The commands of ``gvisor-kernel`` as Markdown, made from the parser of their arguments."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from gvisor_kernel.cli.main import EPILOG, GROUPS, make_parser

from .tables import code, escape, table


def commands() -> str:
    """Return all commands, in the groups in which ``gvisor-kernel --help`` lists them."""
    parser = make_parser()
    choices = dict(subcommands(parser))
    parts = ["## Exit status\n", verbatim(EPILOG.partition("\n")[2])]
    for group, names in GROUPS.items():
        parts.append(f"## {group[0].upper()}{group[1:]}\n")
        for name in names:
            parts += described(choices[name], 3)
    return "\n".join(parts)


def subcommands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield the names and parsers of the commands below one."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def described(parser: argparse.ArgumentParser, level: int) -> Iterator[str]:
    """Yield a command and those below it: what it does, its arguments, and what else it says."""
    yield f"{'#' * level} `{parser.prog}`\n"
    yield f"{escape(parser.description or '')}\n"
    yield table(("argument", "default", ""), map(row, arguments(parser)))
    if parser.epilog:
        yield verbatim(parser.epilog)
    for _, below in subcommands(parser):
        yield from described(below, level + 1)


def arguments(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Return the arguments that the help shows, without ``--help`` and the commands below."""
    hidden = (argparse._HelpAction, argparse._SubParsersAction)
    return [
        action
        for action in parser._actions
        if not isinstance(action, hidden) and action.help is not argparse.SUPPRESS
    ]


def row(action: argparse.Action) -> tuple[str, str, str]:
    """Return an argument's names with its value, its default, and its help."""
    value = "" if action.nargs == 0 else metavar(action)
    names = [f"{name} {value}".strip() for name in action.option_strings] or [value]
    told = (action.help or "") % {**vars(action), "prog": ""}
    told = told.replace(f", {sys.prefix}", "")  # the environment in which the site is built
    empty = action.default in (None, False, [], argparse.SUPPRESS)
    default = "" if empty or not action.option_strings else str(action.default)
    return ", ".join(map(code, names)), code(default), escape(told)


def metavar(action: argparse.Action) -> str:
    """Return how the help writes the value of an argument."""
    if action.choices is not None and action.metavar is None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    name = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    more = {"*": f"[{name}…]", "+": f"{name}…", "?": f"[{name}]"}
    return more.get(str(action.nargs), name)


def verbatim(text: str) -> str:
    """Return a text of the help with its line breaks."""
    return f"```text\n{text.strip(chr(10))}\n```\n"
