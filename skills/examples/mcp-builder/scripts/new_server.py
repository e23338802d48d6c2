"""Begin an MCP server: python new_server.py NAME [FOLDER], by default in /mnt/user-data/outputs.

Needs nothing but Python's standard library; the server that it begins needs the package mcp.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

TOOLS = '''\
"""What the server can do, as plain functions: they can be tried and tested without it."""

from __future__ import annotations

NOTES = {"welcome": "Put your own things here."}
MAX_ANSWER = 4000
"""Characters of one answer: what is longer costs a model its memory."""


def list_notes(words: str = "") -> list[str]:
    """The names of all notes, or of those that have these words in them."""
    notes = {name: f"{name} {text}".lower() for name, text in NOTES.items()}
    return sorted(name for name, text in notes.items() if words.lower() in text)


def read_note(name: str) -> str:
    """The text of one note. Names are those that list_notes gives."""
    if name not in NOTES:
        raise ValueError(f"There is no note {name!r}. There are: {', '.join(sorted(NOTES))}.")
    return NOTES[name][:MAX_ANSWER]
'''

SERVER = '''\
"""The MCP server {name}: python server.py, spoken to over stdin and stdout."""

from __future__ import annotations

import functools
from typing import Any, Callable

try:
    from mcp.server.mcpserver import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError
except ModuleNotFoundError:
    raise SystemExit("The package mcp (2 or newer) is missing: pip install 'mcp>=2'") from None

import tools

server = MCPServer("{name}", instructions="What these tools are for, in a sentence or two.")


def tell_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """The model reads what a ToolError says; of other exceptions it learns nothing."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except ValueError as error:
            raise ToolError(str(error)) from error

    return call


for tool in (tools.list_notes, tools.read_note):
    server.tool()(tell_errors(tool))  # name, description, arguments: those of the function

if __name__ == "__main__":
    server.run()  # stdout is the protocol's: print to stderr only
'''

PROJECT = """\
[project]
name = "{name}"
version = "0.1"
requires-python = ">=3.10"
dependencies = ["mcp>=2"]
"""

QUESTIONS = """\
# Questions that the tools must be able to answer

Each needs several calls, has one short answer, and that answer does not change.

1. Which note speaks of your own things? (welcome)
"""


def make_server(name: str, parent: str | Path) -> Path:
    """Write the files of a new server and return its folder. Raises ValueError, FileExistsError."""
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError("a name has lower-case letters, digits, and single hyphens between them")
    folder = Path(parent, name)
    folder.mkdir(parents=True)
    for path, text in (
        ("tools.py", TOOLS),
        ("server.py", SERVER.format(name=name)),
        ("pyproject.toml", PROJECT.format(name=name)),
        ("questions.md", QUESTIONS),
    ):
        (folder / path).write_text(text, encoding="utf-8")
    return folder


def main(arguments: list[str]) -> int:
    if len(arguments) not in (1, 2):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        print(make_server(*[*arguments, "/mnt/user-data/outputs"][:2]))
    except (ValueError, OSError) as error:
        print(f"No server was made: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
