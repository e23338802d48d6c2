"""The pipes of a sandbox: its link, and its stderr."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from dataclasses import dataclass

PIPE_SIZE = 1024 * 1024
"""Bytes that each pipe of the link can hold."""


@dataclass(frozen=True)
class Ends:
    """The host's ends of a sandbox's pipes, and in ``guest`` the sandbox's, until it has them."""

    link_in: int
    link_out: int
    stderr: int
    guest: tuple[int, int, int]

    def close_guest(self) -> None:
        """Close the sandbox's ends, once the sandbox has them."""
        for fd in self.guest:
            os.close(fd)

    def close_link(self) -> None:
        """Close the host's ends of the link."""
        for fd in (self.link_in, self.link_out):
            os.close(fd)

    def close_host(self) -> None:
        """Close all of the host's ends, after a start that failed."""
        self.close_link()
        os.close(self.stderr)


def make_pipes() -> Ends:
    """Make the pipes of a link and of stderr.

    :raises OSError: when they cannot be made; none is left open then
    """
    made: list[int] = []
    try:
        for _ in range(3):
            made.extend(os.pipe2(os.O_CLOEXEC))
    except OSError:
        for fd in made:
            os.close(fd)
        raise
    guest_in, link_in, link_out, guest_out, stderr, guest_stderr = made
    for fd in (link_in, link_out):
        with suppress(OSError):  # over the user's limit of pipe memory: a smaller pipe works, too
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        os.set_blocking(fd, False)
    return Ends(link_in, link_out, stderr, (guest_in, guest_out, guest_stderr))
