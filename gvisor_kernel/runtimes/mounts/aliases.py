"""Homes and keys by what they are: a bind mount shows a folder by a second path.

Where a folder of a person is opened, its path is compared with those of homes and of Jupyter's
folders (``homes``, ``covers``). Here device and inode are, of it and of what it is in. Looks only;
of another's home nothing is touched, as it may lie on a file system that does not answer.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from gvisor_kernel.host.folders import Identity, Opened, find_ancestry
from gvisor_kernel.host.homes import TOP, own_homes
from gvisor_kernel.runtimes.mounts.covers import Cover
from gvisor_kernel.spec.layout import is_within


def find_home_of(folder: Opened) -> str | None:
    """The home that ``folder`` is, or has in it, by whatever path it was found. Raises OSError."""
    for home in (*own_homes(), "/root", TOP):
        if folder.identity in _with_those_above(home):
            return home
    above = find_ancestry(folder)
    if len(above) > 1 and above[1] == _identify(TOP):
        return folder.path
    return None


def find_keys_of(folder: Opened, covers: Iterable[Cover]) -> str | None:
    """The one of ``covers`` that ``folder`` is, has in it, or is in by another path than its own.

    Those that its path tells of are whoever compares paths' affair. Raises OSError.
    """
    above = set(find_ancestry(folder))
    for cover in covers:
        if is_within(cover.path, folder.path) or is_within(folder.path, cover.path):
            continue
        if folder.identity in _with_those_above(cover.path) or _identify(cover.path) in above:
            return cover.path
    return None


def _with_those_above(path: str) -> Iterator[Identity]:
    """Of a place and of the folders that it is in, but for the root; nothing where it is not."""
    real = Path(path)
    with suppress(OSError, RuntimeError):
        real = real.resolve(strict=True)
        for place in (real, *real.parents[:-1]):
            status = place.stat()
            yield Identity(status.st_dev, status.st_ino)


def _identify(path: str) -> Identity | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - text in, numbers out
    except OSError:
        return None
    return Identity(status.st_dev, status.st_ino)
