"""Finds homes and key folders by device and inode: a bind mount shows a folder at a second path.

When a user's folder is opened, its path is compared with the paths of homes and of Jupyter's
folders (``homes``, ``covers``). Here device and inode are compared, of the folder and of those
above it. Only reads. The homes of other users are not touched, as they may lie on a file system
that does not answer.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from gvisor_kernel.config.validators import is_within
from gvisor_kernel.host.folders import Identity, Opened, find_ancestry
from gvisor_kernel.host.homes import TOP, own_homes
from gvisor_kernel.runtimes.mounts.covers import Cover


def find_home_by_inode(folder: Opened) -> str | None:
    """Return the home that ``folder`` is or contains, at whatever path it was found, or None.

    :raises OSError: when the folders above it cannot be read
    """
    for home in (*own_homes(), "/root", TOP):
        if folder.identity in _identify_with_parents(home):
            return home
    ancestry = find_ancestry(folder)
    if len(ancestry) > 1 and ancestry[1] == _identify(TOP):
        return folder.path
    return None


def find_key_folder(folder: Opened, covers: Iterable[Cover]) -> str | None:
    """Return the one of ``covers`` that ``folder`` is, contains or lies in at another path.

    None if there is none. What can be seen from the paths alone is left to the caller.

    :raises OSError: when the folders above it cannot be read
    """
    ancestry = set(find_ancestry(folder))
    for cover in covers:
        if is_within(cover.path, folder.path) or is_within(folder.path, cover.path):
            continue
        if (
            folder.identity in _identify_with_parents(cover.path)
            or _identify(cover.path) in ancestry
        ):
            return cover.path
    return None


def _identify_with_parents(path: str) -> Iterator[Identity]:
    """Yield the identities of ``path`` and of the folders above it, without ``/``, if it exists."""
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
