"""``storage``: what pages from sandboxes keep, listed, shown, exported and removed.

Paths, keys and values come from pages: they are escaped before they are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from gvisor_kernel.artifacts.storage import Storage, Usage, find_storages
from gvisor_kernel.cli.arguments import add_commands, add_json
from gvisor_kernel.cli.output import print_error, print_json, print_table
from gvisor_kernel.errors import StorageError
from gvisor_kernel.host.private_directories import write_file
from gvisor_kernel.shown_text import describe_size, printable_name

MAX_SHOWN = 100
"""Characters of a value in a line."""


def add_storage(parser: argparse.ArgumentParser) -> None:
    """Declare the commands of ``storage`` and their arguments."""
    add = add_commands(parser)
    listing = add("list", run_list, "list the pages that keep data")
    add_json(listing)
    show = add("show", run_show, "print the keys of a page, and their values' beginnings")
    export = add("export", run_export, "write all that a page keeps as JSON")
    export.add_argument(
        "--file", metavar="FILE", help="a new file, private to you (default: standard output)"
    )
    remove = add("remove", run_remove, "remove all that a page keeps")
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


def run_list(arguments: argparse.Namespace) -> None:
    """``storage list``: print what each page keeps.

    :raises StorageError: when a file cannot be read
    """
    found = _find_usages(arguments)
    if arguments.json:
        print_json([_describe(usage) for _, usage in found])
    elif found:
        rows = (
            (
                usage.artifact.id[:8],
                _name(usage),
                str(usage.keys),
                describe_size(usage.bytes),
                _path(usage),
            )
            for _, usage in found
        )
        print_table(("ID", "OF"), ("KEYS", "SIZE"), "PAGE", rows)
    else:
        print("No page keeps anything.")


def run_show(arguments: argparse.Namespace) -> None:
    """``storage show``: print the keys of a page, with the beginnings of their values.

    :raises StorageError: when there is no such page, or a file cannot be read
    """
    for storage, usage in _choose(arguments):
        print(f"{_path(usage)} ({printable_name(_name(usage))}):")
        for item in storage.items(usage.owner, usage.artifact):
            text = item.json.decode()
            shown = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
            print(f"  {printable_name(item.key)}  {printable_name(shown)}")


def run_export(arguments: argparse.Namespace) -> int:
    """``storage export``: write all that a page keeps as JSON. Return 0, or 1 when a value is left
    out, which is named.

    :raises StorageError: when there is no such page, or the file exists or cannot be written
    """
    document = []
    left_out = 0
    for storage, usage in _choose(arguments):
        items = {}
        for item in storage.items(usage.owner, usage.artifact):
            try:
                items[item.key] = {"value": item.value, "written": item.written}
            except StorageError as error:
                print_error(error)
                left_out += 1
        document.append({**_describe(usage), "items": items})
    text = json.dumps(document, indent=2) + "\n"
    if arguments.file is None:
        sys.stdout.write(text)
        return min(left_out, 1)
    try:
        write_file(Path(arguments.file), text)
    except OSError as error:
        raise StorageError(
            f"{arguments.file} cannot be written: {error.strerror}.",
            "name a file that is not there.",
        ) from error
    return min(left_out, 1)


def run_remove(arguments: argparse.Namespace) -> None:
    """``storage remove``: remove all that a page keeps.

    :raises StorageError: when there is no such page, or the file cannot be written
    """
    for storage, usage in _choose(arguments):
        count = storage.remove(usage.owner, usage.artifact)
        print(f"Removed {count} keys of {_path(usage)} ({printable_name(_name(usage))})")


def _find_usages(arguments: argparse.Namespace) -> list[tuple[Storage, Usage]]:
    folder = None if arguments.shared is None else Path(arguments.shared)
    return [(one, usage) for one in find_storages(folder) for usage in one.usages()]


def _choose(arguments: argparse.Namespace) -> list[tuple[Storage, Usage]]:
    """Return what is kept for a page, named by its id or its path."""
    page = arguments.page
    found = [
        (storage, usage)
        for storage, usage in _find_usages(arguments)
        if usage.artifact.id.startswith(page) or usage.artifact.path == os.path.realpath(page)
    ]
    if not found or len({usage.artifact.id for _, usage in found}) > 1:
        count = "more than one page" if found else "no page"
        raise StorageError(
            f"There is {count} {page!r} that keeps anything.",
            "see which there are: gvisor-kernel storage list.",
        )
    return found


def _describe(usage: Usage) -> dict[str, Any]:
    return {
        "id": usage.artifact.id,
        "page": usage.artifact.path,
        "of": _name(usage),
        "keys": usage.keys,
        "bytes": usage.bytes,
        "written": usage.written,
    }


def _name(usage: Usage) -> str:
    return "shared" if usage.owner == Storage.SHARED else usage.owner


def _path(usage: Usage) -> str:
    return printable_name(usage.artifact.path)
