"""``logs``: what runtime, guest and bridge wrote of one sandbox, in the order of time.

The log is written on the host, yet it quotes what came from inside: it is shown escaped, and no
link in its place is followed.
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

from gvisor_kernel.cli.output import printable
from gvisor_kernel.cli.sandboxes import Listed, find_one, find_state
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.host.log_files import NAMES, log_parts
from gvisor_kernel.runtimes.state.records import read_record

FOLLOW_SECONDS = 0.2
"""How often a followed log is looked at."""
TIME_LENGTH = len("2026-01-01T00:00:00.000000Z")
MAX_LINE = 64 * 1024


def open_log(path: Path) -> IO[str] | None:
    """The log, if it is an ordinary file; None where there is none (yet)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    return open(descriptor, errors="backslashreplace", newline="\n")


def is_over(sandbox: Listed) -> bool:
    """Whether nothing more will be written: it has ended, and its record is gone or says so."""
    record = read_record(sandbox.directory)
    return record is None or find_state(record) in {"ended", "landing", "orphaned", "elsewhere"}


class Follower:
    """One file of a log, as it grows, across rotations."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None
        self._half = ""

    def read(self) -> list[str]:
        """The lines that are new."""
        text = ""
        while True:
            if self._file is None:
                self._file = open_log(self._path)
            if self._file is None:
                break
            text += self._file.read()
            if not is_rotated(self._path, self._file):
                break
            text += self._file.read()  # what came between
            self.close()
        *lines, self._half = (self._half + text).split("\n")
        return [f"{line}\n" for line in lines]

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def follow(directory: Path, sandbox: Listed) -> Iterator[str]:
    """Lines as they are appended, until the sandbox is over."""
    followers = [Follower(directory / name) for name in NAMES]
    try:
        while True:
            over = is_over(sandbox)  # asked before the last look at the files
            lines = [line for follower in followers for line in follower.read()]
            yield from sorted(lines, key=time_of)
            if over and not lines:
                return
            if not lines:
                time.sleep(FOLLOW_SECONDS)
    finally:
        for follower in followers:
            follower.close()


def is_rotated(path: Path, file: IO[str]) -> bool:
    """Whether another file has taken the place of the one that is read."""
    try:
        return not os.path.samestat(path.lstat(), os.fstat(file.fileno()))
    except OSError:
        return False


def time_of(line: str) -> str:
    """What lines of several files are put in order by; those of one file keep theirs."""
    return line[:TIME_LENGTH]


def read_lines(path: Path) -> Iterator[str]:
    """All that is left of one file of a log, oldest first."""
    for part in log_parts(path):
        file = open_log(part)
        if file is not None:
            with file:
                while line := file.readline(MAX_LINE):
                    yield line


def run_logs(arguments: argparse.Namespace) -> int:
    sandbox = find_one(arguments.id)
    if arguments.follow:
        for text in follow(sandbox.directory, sandbox):
            sys.stdout.write(printable(text))
            sys.stdout.flush()
        return 0
    found = False
    files = [read_lines(sandbox.directory / name) for name in NAMES]
    for line in heapq.merge(*files, key=time_of):
        found = True
        sys.stdout.write(printable(line))
    if not found:
        raise GvisorKernelError(
            f"The sandbox {sandbox.id} has no log yet.", "follow it as it comes: logs -f"
        )
    return 0
