"""The mounts of one sandbox, put together in a mount namespace that nobody else sees.

A sandbox's files come from places that a kernel, or another user, can change at any time. So each
source is opened here once more, without following links, compared with the file that the plan has
looked at, copied as a detached mount, and attached below one directory that is covered by a tmpfs
of this namespace alone. The runtime knows the places there, and no path of the host.

Runs in root's thread with a namespace of its own (``runtimes/runsc/staging.py``), and in the
program that an ordinary user's sandbox begins with (``host/enter.py``).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from gvisor_kernel.errors import LaunchError
from gvisor_kernel.host import mounts
from gvisor_kernel.host.folders import Identity, Opened, find_identity, reopen

TOO_MANY_FILES = (
    "raise the limit of files that this server may have open: `ulimit -n`, or LimitNOFILE="
    " where systemd starts it."
)


@dataclass(frozen=True)
class Source:
    """A file or folder of the host that is to be mounted. ``path`` is without links.

    ``foreign``: it belongs to a person; see ``spec.layout.Bind``.
    """

    path: str
    identity: Identity
    read_only: bool = True
    foreign: bool = False


def place(directory: str, index: int) -> str:
    """Where the ``index``-th source is found in the namespace."""
    return f"{directory}/{index}"


def enter_namespace() -> None:
    """See what the host unmounts from here on; what is mounted here is not seen there.

    For a thread that has its own mount namespace. Raises OSError.
    """
    mounts.mount("none", "/", None, mounts.MS_REC | mounts.MS_SLAVE, None)


def cover_meminfo(meminfo: str) -> None:
    """Let the runtime read ``meminfo`` as /proc/meminfo. Quiet where that cannot be done.

    Then the machine's memory shows inside, where it is only a number.
    """
    with suppress(OSError):
        mounts.mount(meminfo, "/proc/meminfo", None, mounts.MS_BIND, None)


def clone_source(source: Source, map_owner: Callable[[int, Source], None] | None = None) -> int:
    """A detached mount of ``source``. ``map_owner`` changes that of a foreign one.

    Raises LaunchError, also where the path has become another file.
    """
    try:
        with reopen(source.path, source.identity) as opened:
            return clone_opened(opened, source, map_owner)
    except OSError as error:
        raise _unmounted(source, error) from error


def clone_opened(
    opened: Opened, source: Source, map_owner: Callable[[int, Source], None] | None
) -> int:
    """Likewise, of what was opened in this mount namespace. Raises LaunchError, OSError."""
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
    """Cover ``directory`` and attach each of ``trees`` there, as ``place`` says.

    Raises LaunchError, also where what can be seen there is not what was looked at.
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
    except OSError as error:
        raise LaunchError(
            f"A private mount cannot be made on {directory}: {error.strerror}.",
            "this kernel must be Linux 5.12 or newer.",
        ) from error
    for index, source in enumerate(sources):
        if find_identity(place(directory, index)) != source.identity:
            raise LaunchError(
                f"What was mounted of {source.path} is not what was looked at.",
                "something changes that folder while kernels start: see what, and try again.",
            )


def clone_all(
    stack: ExitStack,
    sources: Sequence[Source],
    map_owner: Callable[[int, Source], None] | None = None,
) -> list[int]:
    """``clone_source`` of each; ``stack`` closes them. Raises LaunchError."""
    trees = []
    for source in sources:
        trees.append(clone_source(source, map_owner))
        stack.callback(os.close, trees[-1])
    return trees


def merge(directory: str, count: int) -> None:
    """The last two of ``count`` places in one, read-only, the one before the last above the last.

    It is found at ``place(directory, count)``. Raises LaunchError.
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
            "this kernel must have overlay mounts: `sudo modprobe overlay`; an ordinary user"
            " needs Linux 5.11 or newer.",
        ) from error


def _unmounted(source: Source, error: OSError) -> LaunchError:
    hint = "see whether it exists; on a network file system, whether root may read it."
    if error.errno in (errno.EMFILE, errno.ENFILE):
        hint = TOO_MANY_FILES
    elif error.errno in (errno.ESTALE, errno.ELOOP, errno.ENOENT, errno.ENOTDIR):
        hint = (
            "it was moved or replaced, perhaps by a link, while the kernel started: see by what,"
            " and start the kernel again."
        )
    return LaunchError(f"{source.path} cannot be mounted: {error.strerror}.", hint)
