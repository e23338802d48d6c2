"""The claim of what a dead owner has left: one process at a time saves it, ends it, removes it, or
takes it over.

    sandboxes/<id>/claim   locked by whoever has the claim

A living owner needs none: ``records.is_orphan`` is asked again by each who has got the claim.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gvisor_kernel.host.private_directories import lock

FILE = "claim"
SHORT_SECONDS = 0.2
"""Longer than somebody has the claim who only looks at it."""


@contextmanager
def claimed(directory: Path, seconds: float = SHORT_SECONDS) -> Iterator[None]:
    """Hold the claim of a sandbox's directory. Blocks.

    What was known of the sandbox before may have changed meanwhile.

    :raises TimeoutError: when another process has it for ``seconds``
    :raises OSError: when the directory is gone, or cannot be written
    """
    with lock(directory / FILE, fcntl.LOCK_EX, create=True, seconds=seconds):
        yield


def is_claimed(directory: Path) -> bool:
    """Return whether another process works on what a dead owner has left in ``directory``."""
    try:
        with claimed(directory, 0):
            return False
    except TimeoutError:
        return True
    except OSError:
        return False
