"""The root file system of image ``host``: directories, symbolic links and a small ``/etc``, on
disk.

It is made for each sandbox, in its state directory, and everything large is mounted over it. A
sandbox of a root image has it as the layer above the image's files: it holds the mount points, and
the files that identify the sandbox. The sandbox sees it read-only, and never writes to it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from gvisor_kernel.config.validators import is_within
from gvisor_kernel.spec import etc
from gvisor_kernel.spec.layout import SYSTEM_DIRECTORIES, WORKSPACE, Bind, Mount

# by path: below the state directory, whose parents only this user can change

COPY_LIMIT = 4 * 1024 * 1024
"""Bytes. A larger file of /etc is not copied; none of those that are meant comes near."""


def find_etc_binds(host_etc: Path = Path("/etc")) -> list[Bind]:
    """Return bind mounts for the directories of the host's ``/etc`` that are shown as they are."""
    names = [*etc.DIRECTORIES]
    for pattern in etc.DIRECTORY_PATTERNS:
        names.extend(path.name for path in host_etc.glob(pattern))
    binds = []
    for name in names:
        path = host_etc / name
        if path.is_dir():
            binds.append(Bind(os.path.realpath(path), f"/etc/{name}"))
    return binds


def write_rootfs(
    rootfs: Path,
    *,
    container_id: str,
    links: Iterable[tuple[str, str]],
    mounts: Sequence[Mount],
    owner: int | None,
    host_etc: Path | None = Path("/etc"),
    profile: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Make the directory ``rootfs`` with a mount point for every mount.

    ``owner``: the uid and gid that everything in it gets. ``host_etc``: where files of /etc are
    copied from; None where the image has them. ``profile``: more files of /etc.

    A mount point inside another mount is not made here, unless that other is a tmpfs: the mounted
    folder has to contain it.

    :raises OSError: when something could not be made
    """
    rootfs.mkdir(mode=0o755)
    for directory in (*SYSTEM_DIRECTORIES, WORKSPACE):
        _inside(rootfs, directory).mkdir(mode=0o755, parents=True, exist_ok=True)
    _write_etc(_inside(rootfs, "/etc"), container_id, host_etc)
    for name, content in profile.items():
        path = _inside(rootfs, f"/etc/{name}")
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.write_bytes(content)
    binds = [mount for mount in mounts if isinstance(mount, Bind)]
    for mount in mounts:
        if any(other is not mount and is_within(mount.target, other.target) for other in binds):
            continue
        place = _inside(rootfs, mount.target)
        if isinstance(mount, Bind) and not Path(mount.source).is_dir():
            place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            place.touch()
        else:
            place.mkdir(mode=0o755, parents=True, exist_ok=True)
    for link, target in links:
        place = _inside(rootfs, link)
        if not os.path.lexists(place):
            place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            place.symlink_to(target)
    make_readable(rootfs)
    if owner is not None:
        for folder, _, files in os.walk(rootfs):
            os.chown(folder, owner, owner)
            for name in files:
                os.lchown(os.path.join(folder, name), owner, owner)  # noqa: PTH118


def make_readable(tree: Path) -> None:
    """Let every uid read ``tree``, which this process has just made, whatever its umask is.

    The processes of a sandbox run as other uids than its owner.
    """
    for folder, _, files in os.walk(tree):
        Path(folder).chmod(0o755)
        for path in (Path(folder, name) for name in files):
            if not path.is_symlink():
                path.chmod(0o644)


def _inside(rootfs: Path, path: str) -> Path:
    return rootfs / path.lstrip("/")


def _write_etc(directory: Path, container_id: str, host_etc: Path | None) -> None:
    if host_etc is None:
        (directory / "resolv.conf").touch()  # covers the image's own file: there is no network
    else:
        for name in (*etc.COPIED, *etc.SINGLE_FILES):
            _copy(host_etc / name, directory / name)
    for name, content in etc.FILES.items():
        (directory / name).write_text(content)
    (directory / "machine-id").write_text(etc.machine_id(container_id) + "\n")
    (directory / "mtab").symlink_to("/proc/self/mounts")


def _copy(source: Path, target: Path) -> None:
    """Copy a file or a symbolic link of ``/etc``, if it exists and can be read."""
    try:
        if source.is_symlink() and not os.path.realpath(source).startswith("/etc/"):
            target.symlink_to(source.readlink())
        elif source.is_file() and source.stat().st_size <= COPY_LIMIT:
            target.parent.mkdir(mode=0o755, exist_ok=True)
            shutil.copyfile(source, target)
            target.chmod(0o644)
    except OSError:
        pass  # a program that needs it reports that it is missing
