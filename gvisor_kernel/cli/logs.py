"""``logs``: what runtime, guest and bridge logged about one sandbox, in the order of time.

The log files are written on the host but quote text from inside the sandbox: all text is escaped,
and a symbolic link in the place of a log file is not followed.
"""

from __future__ import annotations

import argparse
import heapq
import os
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from gvisor_kernel.cli.arguments import add_id
from gvisor_kernel.cli.sandboxes import Listed, find_one, find_state
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.host.log_files import NAMES, log_parts
from gvisor_kernel.runtimes.state.records import read_record
from gvisor_kernel.shown_text import printable

FOLLOW_SECONDS = 0.2
"""The interval, in seconds, at which a followed log is read."""
TIME_LENGTH = len("2026-01-01T00:00:00.000000Z")
MAX_LINE = 64 * 1024
"""Characters of a line that are read at once."""


def open_log(path: Path) -> IO[str] | None:
    """Open a log file; return None if there is none (yet) or it is no regular file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    return open(descriptor, errors="backslashreplace", newline="\n")


def has_ended(sandbox: Listed) -> bool:
    """Return whether nothing more is logged: the record is gone, or says that the sandbox ended."""
    record = read_record(sandbox.directory)
    return record is None or find_state(record) in {"ended", "copying", "orphaned", "elsewhere"}


class Follower:
    """Reads one log file while it grows, across rotations."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None
        self._half = ""

    def read(self) -> list[str]:
        """Return the lines that were added since the last call."""
        text = ""
        while True:
            if self._file is None:
                self._file = open_log(self._path)
            if self._file is None:
                break
            text += self._file.read()
            if not is_rotated(self._path, self._file):
                break
            text += self._file.read()  # lines written before the rotation
            self.close()
        *lines, self._half = (self._half + text).split("\n")
        return [f"{line}\n" for line in lines]

    def close(self) -> None:
        """Close the file, if it is open. ``read`` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def follow(directory: Path, sandbox: Listed) -> Iterator[str]:
    """Yield lines as they are appended, until the sandbox has ended. Blocks."""
    followers = [Follower(directory / name) for name in NAMES]
    try:
        while True:
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


def is_rotated(path: Path, file: IO[str]) -> bool:
    """Return whether ``path`` is another file by now than the open ``file``."""
    try:
        return not os.path.samestat(path.lstat(), os.fstat(file.fileno()))
    except OSError:
        return False


def get_time(line: str) -> str:
    """Return the timestamp of a line, which is the key for merging lines of several files."""
    return line[:TIME_LENGTH]


def read_lines(path: Path) -> Iterator[str]:
    """Yield all lines of one log file and its rotated parts, oldest first."""
    for part in log_parts(path):
        file = open_log(part)
        if file is not None:
            with file:
                while line := file.readline(MAX_LINE):
                    yield line


def add_logs(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``logs``."""
    parser.set_defaults(run=run_logs)
    add_id(parser)
    parser.add_argument(
        "-f",
        "--follow",
        action="store_true",
        help="print new lines as they are written, until the sandbox has ended",
    )


def run_logs(arguments: argparse.Namespace) -> int:
    """``logs``: print the log of a sandbox; with ``--follow``, until that has ended. Return 0.

    :raises GvisorKernelError: when there is no such sandbox, or it has no log yet
    """
    sandbox = find_one(arguments.id)
    if arguments.follow:
        for text in follow(sandbox.directory, sandbox):
            sys.stdout.write(printable(text))
            sys.stdout.flush()
        return 0
    found = False
    files = [read_lines(sandbox.directory / name) for name in NAMES]
    for line in heapq.merge(*files, key=get_time):
        found = True
        sys.stdout.write(printable(line))
    if not found:
        raise GvisorKernelError(
            f"The sandbox {sandbox.id} has no log yet.",
            f"wait for it: gvisor-kernel logs -f {sandbox.id}",
        )
    return 0
