"""Takes over what a sandbox has installed: a folder in which anything may be.

The sandbox has ended. What it left is copied into a new tree, within bounds, or refused as a whole.
"""

from __future__ import annotations

import os
import re
from contextlib import closing
from pathlib import Path

from gvisor_kernel.archive.layers import Budget, apply_folder
from gvisor_kernel.archive.tar import quote_name
from gvisor_kernel.archive.tree import Tree
from gvisor_kernel.config.validators import GIB
from gvisor_kernel.environments.environment import ABI_FILE, MAX_FILES
from gvisor_kernel.errors import ArchiveError
from gvisor_kernel.host.descriptors import closing_fd

# by path: below a private store of this user

MAX_BYTES = 8 * GIB
"""Bytes of one environment on the disk. One with PyTorch for GPUs has 5 GiB."""
MAX_PACKAGES = 2000
MAX_NAME = 100

_FRAME = ("pyvenv.cfg", "lib64", "bin/pip", "bin/pip3", "bin/python", "bin/python3")
"""Files that ``guest/installed.py`` has made there. Each kernel's own environment has them anew."""
_FRAME_PTH = "_gvisor_kernel_image.pth"
_INFO = re.compile(r"([A-Za-z0-9._]+)-([A-Za-z0-9._+!]+)\.dist-info")


def collect(
    source: Path, target: Path, python: str, *, entries: int = MAX_FILES, most: int = MAX_BYTES
) -> int:
    """Copy the environment in ``source`` into the empty folder ``target``.

    Return the number of files, folders and links that were there.

    ``python``: the version, such as 3.12, for which there have to be packages.

    :raises ArchiveError: when it is not a folder, has links or devices, is too large, or has no
        packages
    :raises OSError: when it cannot be read, or the copy cannot be written
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(source, flags)
    except OSError as error:
        raise ArchiveError(f"its folder cannot be opened ({error.strerror})") from error
    with closing_fd(fd):
        budget = Budget.of_disk(target, "the environment", entries=entries, most=most)
        with closing(Tree(target, None)) as tree:
            # By its descriptor: nothing that the sandbox has named decides what is read.
            apply_folder(Path(f"/proc/self/fd/{fd}"), tree, budget)
            if budget.left_out:
                raise ArchiveError("it has named pipes or devices")
            for name in (ABI_FILE, *_FRAME, f"bin/python{python}", _site(python, _FRAME_PTH)):
                tree.remove(tuple(name.split("/")))
            _check_kinds(target)
            if not (target / _site(python)).is_dir():
                raise ArchiveError(f"it has no packages for Python {python}")
            tree.finish()
    return budget.most_entries - budget.entries


def find_packages(tree: Path, python: str) -> tuple[tuple[str, str], ...]:
    """Return names and versions of the packages in ``tree``, by the names of their folders."""
    names = sorted(os.listdir(tree / _site(python)))  # noqa: PTH208
    matches = (_INFO.fullmatch(name) for name in names if len(name) <= MAX_NAME)
    found = [(match[1].replace("_", "-"), match[2]) for match in matches if match is not None]
    return tuple(found[:MAX_PACKAGES])


def _check_kinds(tree: Path) -> None:
    """Check that the tree has files and folders only.

    :raises ArchiveError: when it has a symbolic link: pip makes none, so nobody has to judge where
        one leads
    """
    for folder, directories, names in os.walk(tree):
        for name in (*directories, *names):
            path = Path(folder, name)
            if path.is_symlink():
                shown = quote_name(str(path.relative_to(tree)))
                raise ArchiveError(f"it has a symbolic link, {shown}")


def _site(python: str, name: str = "") -> str:
    return f"lib/python{python}/site-packages/{name}".rstrip("/")
