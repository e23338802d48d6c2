"""``logs``: what runtime, guest and bridge wrote of one sandbox.

The log is written on the host, yet it quotes what came from inside: it is shown escaped, and no
link in its place is followed.
"""

from __future__ import annotations

import argparse
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
from gvisor_kernel.runtimes.state import read_record

LOG_NAME = "kernel.log"

FOLLOW_SECONDS = 0.2
"""How often a followed log is looked at."""


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
    return record is None or find_state(record) in {"ended", "orphaned", "elsewhere"}


def follow(path: Path, sandbox: Listed) -> Iterator[str]:
    """Text as it is appended, across rotations, until the sandbox is over."""
    file: IO[str] | None = None
    try:
        while True:
            over = is_over(sandbox)  # asked before the last look at the file
            if file is None:
                file = open_log(path)
            if file is not None:
                if text := file.read():
                    yield text
                    continue
                if is_rotated(path, file):
                    file.close()
                    file = None
                    continue
            if over:
                return
            time.sleep(FOLLOW_SECONDS)
    finally:
        if file is not None:
            file.close()


def is_rotated(path: Path, file: IO[str]) -> bool:
    """Whether another file has taken the place of the one that is read."""
    try:
        return not os.path.samestat(path.lstat(), os.fstat(file.fileno()))
    except OSError:
        return False


def run_logs(arguments: argparse.Namespace) -> int:
    sandbox = find_one(arguments.id)
    path = sandbox.directory / LOG_NAME
    if arguments.follow:
        for text in follow(path, sandbox):
            sys.stdout.write(printable(text))
            sys.stdout.flush()
        return 0
    found = False
    for part in (path.with_name(f"{path.name}.1"), path):
        file = open_log(part)
        if file is not None:
            with file:
                found = True
                for line in file:
                    sys.stdout.write(printable(line))
    if not found:
        raise GvisorKernelError(
            f"The sandbox {sandbox.id} has no log yet.", "follow it as it comes: logs -f"
        )
    return 0
