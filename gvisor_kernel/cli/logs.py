"""``logs`` and ``transcript``: the record of one sandbox, and that of its kernel.

``logs`` prints what runtime, guest and bridge logged, in the order of time; ``transcript`` the
cells and outputs, whose entries ``bridge/transcripts.py`` formats. The files are written on the
host but quote text of clients and from inside the sandbox: all is escaped.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from gvisor_kernel.bridge.transcripts import FOLDER, MAX_LINE, NAME, EntryFormatter, read_entries
from gvisor_kernel.cli.arguments import add_id
from gvisor_kernel.cli.sandboxes import find_one
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.host.log_files import NAMES, Follower, get_time, open_log, read_log
from gvisor_kernel.runtimes.state.listed import Listed, find_state
from gvisor_kernel.runtimes.state.records import read_record
from gvisor_kernel.shown_text import printable

FOLLOW_SECONDS = 0.2
"""The interval, in seconds, at which a followed log is read."""


def has_ended(sandbox: Listed) -> bool:
    """Return whether nothing more is logged: the record is gone, or says that the sandbox ended."""
    record = read_record(sandbox.directory)
    return record is None or find_state(record) in {"ended", "copying", "orphaned", "elsewhere"}


def follow(directory: Path, sandbox: Listed) -> Iterator[str]:
    """Yield lines as they are appended, until the sandbox has ended. Blocks."""
    followers = [Follower(directory / name) for name in NAMES]
    try:
        while True:  # no timeout: --follow: until Ctrl-C
            ended = has_ended(sandbox)  # before the files are read for the last time
            lines = [line for follower in followers for line in follower.read()]
            yield from sorted(lines, key=get_time)
            if ended and not lines:
                return
            if not lines:
                time.sleep(FOLLOW_SECONDS)
    finally:
        for follower in followers:
            follower.close()


def add_logs(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``logs``."""
    add_id(parser)
    parser.add_argument(
        "-f",
        "--follow",
        action="store_true",
        help="print new lines as they are written, until the sandbox has ended",
    )


def run_logs(arguments: argparse.Namespace) -> None:
    """``logs``: print the log of a sandbox; with ``--follow``, until that has ended.

    :raises GvisorKernelError: when there is no such sandbox, or it has no log yet
    """
    sandbox = find_one(arguments.id)
    if arguments.follow:
        for text in follow(sandbox.directory, sandbox):
            sys.stdout.write(printable(text))
            sys.stdout.flush()
        return
    found = False
    for line in read_log(sandbox.directory):
        found = True
        sys.stdout.write(printable(line))
    if not found:
        raise GvisorKernelError(
            f"The sandbox {sandbox.id} has no log yet.",
            f"wait for it: gvisor-kernel logs -f {sandbox.id}",
        )


# -- transcript ------------------------------------------------------------------------------------

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
    add_id(parser)
    parser.add_argument(
        "--raw", action="store_true", help="print it as recorded: one JSON object per line"
    )


def run_transcript(arguments: argparse.Namespace) -> None:
    """``transcript``: print a sandbox's transcript, formatted or ``--raw``.

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
