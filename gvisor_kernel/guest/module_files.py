"""Reads the files of modules with four system calls each, where CPython needs nine.

importlib reads a file by a buffered stream, which asks whether it is a terminal, twice where it
stands and twice how long it is. These calls are what costs time inside gVisor: an import of numpy,
pandas and pyplot makes 8,051, and 5,588 this way. Nothing else changes: what is imported, from
where, and how importlib notices that a file has changed.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

REST_SIZE = 64 * 1024
"""Bytes of a further read where a file is not as long as its status says."""


def read_file(path: str) -> bytes:
    """Return the content of the file ``path``.

    :raises OSError: when it cannot be read
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        data = os.read(fd, size + 1)
        if len(data) == size > 0:  # one byte more was asked for: this is the end
            return data
        parts = [data]
        while parts[-1]:
            parts.append(os.read(fd, REST_SIZE))
        return b"".join(parts)
    finally:
        os.close(fd)


def read_quickly() -> None:
    """Let importlib's loaders use ``read_file`` from now on, if they are as expected. Idempotent.

    A loader that overrides ``get_data`` keeps its own.
    """
    external: Any = importlib._bootstrap_external
    loader = getattr(external, "FileLoader", None)
    if loader is not None and "get_data" in vars(loader):
        loader.get_data = _get_data


def _get_data(self: Any, path: Any) -> bytes:
    """Return the data from ``path`` as raw bytes."""
    return read_file(str(path))
