"""``transcript``: the cells and outputs of a sandbox's kernel, as the bridge recorded them.

``bridge/transcripts.py`` formats the entries, which quote text from clients and from the sandbox.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from gvisor_kernel.bridge.transcripts import FOLDER, MAX_LINE, NAME, EntryFormatter, read_entries
from gvisor_kernel.cli.arguments import add_id
from gvisor_kernel.cli.sandboxes import find_one
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.host.log_files import open_log
from gvisor_kernel.shown_text import printable

OLDER_FILES = 9
"""Rotated files that are looked for: more than the bridge keeps."""


def open_parts(directory: Path) -> Iterator[IO[str]]:
    """Yield the open files of a transcript, oldest first; each is closed before the next."""
    path = directory / FOLDER / NAME
    names = [f"{NAME}.{number}" for number in range(OLDER_FILES, 0, -1)]
    # A file that is rotated before it is opened here is missed; the gap in ``n`` shows it.
    for part in (*(path.with_name(name) for name in names), path):
        file = open_log(part)
        if file is not None:
            with file:
                yield file


def add_transcript(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``transcript``."""
    parser.epilog = (
        "A transcript is removed with its sandbox. To keep one:\n"
        "gvisor-kernel transcript --raw ID > FILE"
    )
    parser.set_defaults(run=run_transcript)
    add_id(parser)
    parser.add_argument(
        "--raw", action="store_true", help="print it as recorded: one JSON object per line"
    )


def run_transcript(arguments: argparse.Namespace) -> int:
    """``transcript``: print a sandbox's transcript, formatted or ``--raw``. Return 0.

    :raises GvisorKernelError: when there is no such sandbox, or it has no transcript
    """
    sandbox = find_one(arguments.id)
    found = False
    formatter = EntryFormatter()
    for file in open_parts(sandbox.directory):
        found = True
        if arguments.raw:
            while text := file.read(MAX_LINE):
                sys.stdout.write(printable(text))
            continue
        for entry in read_entries(file):
            for line in formatter.format(entry):
                print(line)
    if not arguments.raw:
        for line in formatter.end():
            print(line)
    if not found:
        raise GvisorKernelError(
            f"The sandbox {sandbox.id} has no transcript.",
            "run a cell in its kernel first; if that does not help, set the setting transcripts to"
            " True.",
        )
    return 0
