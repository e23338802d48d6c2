"""This process's limit of open files: raised when a sandbox would not find room, and explained.

A sandbox takes up to 45 descriptors of its program, and the usual soft limit is 1024. It is raised
when it has to be, not before: a program that has no descriptor above 1023 may use select(2).
"""

from __future__ import annotations

import logging
import os
import resource

log = logging.getLogger(__name__)

MAX_OPEN_FILES = 65536
"""The soft limit is not raised above this: programs that are started may close all that they could
have open, one by one."""
START_FILES = 100
"""Descriptors that a start may need, with the clients of its kernel: 45 stay open."""
RUNSC_FILES = 4096
"""Descriptors that runsc needs, which raises its own soft limit: it keeps open what a kernel has
used. With an idle Python kernel it has 2,340."""


def raise_limit() -> None:
    """Let this process open as many files as it may, at most MAX_OPEN_FILES."""
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if most == resource.RLIM_INFINITY else min(most, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
        log.info("Raised this process's limit of open files from %d to %d", soft, wanted)


def make_room(starts: int) -> None:
    """Raise the limit if that many starts at once might not find room. Never raises OSError."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and count_open() + starts * START_FILES > soft:
        raise_limit()


def count_open() -> int:
    """Return how many files this process has open; its limit if it cannot open one to count."""
    try:
        return len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208 - no Path for each
    except OSError:
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def lacks_files_for_runsc() -> bool:
    """Return whether the hard limit is too low for runsc."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most != resource.RLIM_INFINITY and most < RUNSC_FILES


def explain_scarce_files() -> str:
    """Return the hint for a start that found too many files open, with numbers."""
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if lacks_files_for_runsc():
        return (
            f"runsc may open {most} files and needs up to {RUNSC_FILES}: raise this server's hard"
            " limit of open files, `ulimit -Hn`, or LimitNOFILE= if systemd starts it."
        )
    return (
        f"this process has {count_open()} files open and may have {soft}, and a start takes up to"
        f" {START_FILES}: raise the limit of open files of this server, `ulimit -n`, or"
        " LimitNOFILE= if systemd starts it."
    )
