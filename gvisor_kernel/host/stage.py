"""Assembles the mounts of a sandbox in a mount namespace of its own.

The sources of mounts are in folders that a kernel, or another user, can change at any time. So each
source is opened again here, without following links, compared with the file that was planned,
cloned as a detached mount, and attached on a tmpfs that only this namespace has. The runtime gets
paths on that tmpfs and no path of the host.

For root this runs in a thread with its own mount namespace (``runtimes/runsc/staging.py``), for an
ordinary user in the first program of the sandbox (``host/enter.py``).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gvisor_kernel.errors import LaunchError
from gvisor_kernel.host import mounts
from gvisor_kernel.host.descriptors import closing_fd
from gvisor_kernel.host.folders import (
    Identity,
    Opened,
    find_identity,
    open_below,
    open_real,
    reopen,
)
from gvisor_kernel.host.open_files import explain_scarce_files

# by path: on a tmpfs in a private mount namespace

MOVED = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE, errno.EXDEV)
"""Errors of a path that led to a file before."""


class Hidden(NamedTuple):
    """A file or folder that is seen as an empty one: its path below a source, which file it is, and
    the time of its last change (ctime, in nanoseconds)."""

    path: str
    identity: Identity
    changed: int


@dataclass(frozen=True)
class Source:
    """A file or folder of the host to mount. ``path`` must not contain links.

    ``foreign``: it contains files of a person; see ``spec.layout.Bind``. ``hidden``: what is
    below it and is seen as an empty folder or file. ``replaced``: paths below it, and the numbers
    of the sources that are seen there.
    """

    path: str
    identity: Identity
    read_only: bool = True
    foreign: bool = False
    hidden: tuple[Hidden, ...] = ()
    replaced: tuple[tuple[str, int], ...] = ()


def place(directory: str, index: int) -> str:
    """Return the path of the ``index``-th source on the tmpfs."""
    return f"{directory}/{index}"


def make_mounts_slave() -> None:
    """Make all mounts slaves of the host's: mounts made here do not appear on the host.

    Call it in a new mount namespace.

    :raises OSError: when the mount call fails
    """
    mounts.mount("none", "/", None, mounts.MS_REC | mounts.MS_SLAVE, None)


def mount_meminfo(meminfo: str) -> None:
    """Mount ``meminfo`` on /proc/meminfo, which the runtime reads. Never raises OSError.

    If it fails, /proc/meminfo in the sandbox shows the memory of the machine, not the limit.
    """
    with suppress(OSError):
        mounts.mount(meminfo, "/proc/meminfo", None, mounts.MS_BIND, None)


def clone_source(source: Source, map_owner: Callable[[int, Source], None] | None = None) -> int:
    """Clone ``source`` as a detached mount and return its descriptor.

    ``map_owner``: called for a foreign source, to map the owner of its files.

    :raises LaunchError: when it cannot be mounted, or was replaced by another file
    """
    try:
        with reopen(source.path, source.identity) as opened:
            return clone_opened(opened, source, map_owner)
    except OSError as error:
        raise _make_error(source, error) from error


def clone_opened(
    opened: Opened, source: Source, map_owner: Callable[[int, Source], None] | None
) -> int:
    """Do the same for a source that was opened in this mount namespace.

    :raises LaunchError: when ``map_owner`` fails
    :raises OSError: when it cannot be mounted
    """
    tree = mounts.clone_tree(opened.fd, source.path)
    try:
        attributes = mounts.ATTR_NOSUID | mounts.ATTR_NODEV
        if source.read_only:
            attributes |= mounts.ATTR_RDONLY
        mounts.set_attributes(tree, add=attributes, recursive=True)
        if source.foreign and map_owner is not None:
            map_owner(tree, source)
    except BaseException:
        os.close(tree)
        raise
    return tree


def attach(directory: str, sources: Sequence[Source], trees: Sequence[int]) -> None:
    """Mount a tmpfs on ``directory`` and attach each of ``trees`` there, at its ``place``.

    :raises LaunchError: when a mount fails, or shows or hides another file than the planned one
    """
    try:
        flags = mounts.MS_NOSUID | mounts.MS_NODEV
        mounts.mount("tmpfs", directory, "tmpfs", flags, "mode=0755,size=1m")
        for index, tree in enumerate(trees):
            target = Path(place(directory, index))
            if os.path.isdir(tree):  # noqa: PTH112 - a descriptor
                target.mkdir(mode=0o755)
            else:
                target.touch()
            mounts.move_tree(tree, str(target))
        for index, source in enumerate(sources):
            if source.hidden:
                _hide(place(directory, index), source)
            for path, other in source.replaced:
                _replace(place(directory, index), path, place(directory, other))
    except OSError as error:
        raise LaunchError(
            f"The mounts of the sandbox cannot be attached on {directory}: {error.strerror}.",
            "use Linux 5.12 or newer; or start the kernel again, if its folder was changed now.",
        ) from error
    for index, source in enumerate(sources):
        if find_identity(place(directory, index)) != source.identity:
            raise LaunchError(
                f"{source.path} was replaced by another file while the kernel started.",
                "find out which program replaces it, and start the kernel again.",
            )


def _hide(root: str, source: Source) -> None:
    """Mount an empty folder or file over each hidden one of ``source``, attached at ``root``.

    No link is followed, as others may change the folders.

    :raises LaunchError: when one was moved or replaced since it was found: what is hidden would be
        seen under another name
    :raises OSError: when one cannot be hidden
    """
    folder, file = Path(f"{root}-folder"), Path(f"{root}-file")
    folder.mkdir(mode=0o755)
    file.touch(mode=0o644)
    attributes = mounts.ATTR_RDONLY | mounts.ATTR_NOSUID | mounts.ATTR_NODEV
    with open_real(root) as top, open_real(str(folder)) as nothing, open_real(str(file)) as empty:
        owner = top.status()
        for path in (folder, file):
            with suppress(OSError):  # an owner who has no number here
                os.chown(path, owner.st_uid, owner.st_gid)
        for entry in source.hidden:
            try:
                found = open_below(top, entry.path)
            except OSError as error:
                if error.errno in MOVED:
                    raise make_moved_error(f"{source.path}/{entry.path}") from error
                raise
            with found:
                if found.identity != entry.identity:
                    raise make_moved_error(f"{source.path}/{entry.path}")
                cover = nothing if found.is_folder else empty
                with closing_fd(mounts.clone_tree(cover.fd, cover.path)) as tree:
                    mounts.set_attributes(tree, add=attributes, recursive=True)
                    mounts.move_tree(tree, found.fd)


def _replace(root: str, path: str, other: str) -> None:
    """Mount ``other``, attached with its attributes, over what is at ``path`` below ``root``.

    :raises OSError: when nothing is there
    """
    with (
        open_real(root) as top,
        open_below(top, path) as there,
        open_real(other) as shown,
        closing_fd(mounts.clone_tree(shown.fd, other)) as tree,
    ):
        mounts.move_tree(tree, there.fd)


def make_moved_error(path: str) -> LaunchError:
    """Return the error of a start during which something changed that must not be seen."""
    return LaunchError(
        f"{path} was moved or replaced while the kernel started. It is hidden from kernels.",
        "start the kernel again; if that does not help, find out which program replaces it.",
    )


def clone_all(
    stack: ExitStack,
    sources: Sequence[Source],
    map_owner: Callable[[int, Source], None] | None = None,
) -> list[int]:
    """Call ``clone_source`` for each source; ``stack`` closes the descriptors.

    :raises LaunchError: when one of them cannot be mounted, or was replaced by another file
    """
    trees = []
    for source in sources:
        trees.append(clone_source(source, map_owner))
        stack.callback(os.close, trees[-1])
    return trees


def mount_overlay(directory: str, count: int) -> None:
    """Mount the last two of ``count`` places as a read-only overlay at ``place(directory, count)``.

    The upper layer is the one before the last, the lower layer the last.

    :raises LaunchError: when overlays cannot be mounted
    """
    target = place(directory, count)
    flags = mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_RDONLY
    layers = f"lowerdir={place(directory, count - 2)}:{place(directory, count - 1)}"
    try:
        Path(target).mkdir(mode=0o755)
        mounts.mount("overlay", target, "overlay", flags, layers)
    except OSError as error:
        raise LaunchError(
            f"The image's files cannot be mounted: {error.strerror}.",
            "load the overlay file system: `sudo modprobe overlay`; an ordinary user needs Linux"
            " 5.11 or newer.",
        ) from error


def _make_error(source: Source, error: OSError) -> LaunchError:
    hint = "check that it exists; on a network file system, that root may read it."
    if error.errno in (errno.EMFILE, errno.ENFILE):
        hint = explain_scarce_files()
    elif error.errno in (errno.ESTALE, errno.ELOOP, errno.ENOENT, errno.ENOTDIR):
        hint = (
            "it was moved or replaced, perhaps by a symbolic link, while the kernel started: find"
            " out by which program, and start the kernel again."
        )
    return LaunchError(f"{source.path} cannot be mounted: {error.strerror}.", hint)
