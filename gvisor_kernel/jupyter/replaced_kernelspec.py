"""Replaces the kernelspec ``python3`` by ours, and undoes it.

The original is kept in a folder beside that of the kernelspecs, where Jupyter does not look. At
every moment there is a whole ``python3``: without one, jupyter_client would start its own, which
has no sandbox. So the two change places in one step, and what a killed command leaves is put right
by the next one.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from gvisor_kernel.errors import KernelspecError
from gvisor_kernel.jupyter.kernelspecs import (
    Kernelspec,
    find_destination,
    install_kernelspec,
    is_ours,
    read_kernelspec,
)

# by path: Jupyter's folder of kernelspecs, and one beside it

NATIVE = "python3"
"""The kernelspec that ipykernel installs, and that programs start when they are told nothing."""
KEPT = "gvisor-kernel-replaced"
"""The folder, beside that of the kernelspecs, with what was replaced."""
SCRATCH = ".new-"
"""Folders in it, which a killed command may leave."""
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)
_libc = ctypes.CDLL(None, use_errno=True)


def replace_native(user: bool, prefix: str | None) -> Kernelspec:
    """Install our kernelspec as ``python3``, and keep the one that was there.

    :raises KernelspecError: when it cannot be written, or another original is kept already
    """
    folder = find_destination(user, prefix)
    native, kept = folder / NATIVE, folder.parent / KEPT / NATIVE
    if is_original(native) and is_original(kept) and not is_same(native, kept):
        raise KernelspecError(
            f"{kept} has a kernelspec that was replaced before.",
            f"remove it, if {native} is the one to keep.",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        kept.parent.mkdir(exist_ok=True)
        remove_scratch(kept.parent)
        scratch = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=kept.parent))
        try:
            made = install_kernelspec(
                prefix=str(scratch), name=NATIVE, display_name="Python 3 (gVisor)"
            ).directory
            _put(made, native, kept, scratch)
        finally:
            remove_scratch(kept.parent)
    except OSError as error:
        raise KernelspecError(
            f"{native} cannot be replaced: {error.strerror}.",
            "run this command as the user who owns it, or use --user.",
        ) from error
    return read_kernelspec(native)


def _put(made: Path, native: Path, kept: Path, scratch: Path) -> None:
    """Put what was made in the place of ``native``, and keep an original."""
    if not os.path.lexists(native):
        made.rename(native)
        return
    if not is_original(native):
        exchange(native, made, scratch)
        return
    if os.path.lexists(kept):  # ours, or the same as what is replaced
        kept.rename(scratch / "kept")
    made.rename(kept)
    exchange(native, kept, scratch)


def restore_native(user: bool, prefix: str | None) -> Path | None:
    """Undo ``replace_native``; return the folder of the kernelspec, or None.

    :raises KernelspecError: when it cannot be written
    """
    return restore_in(find_destination(user, prefix))


def restore_in(folder: Path) -> Path | None:
    """Undo ``replace_native`` in a folder of kernelspecs; return that of the kernelspec, or None.

    :raises KernelspecError: when it cannot be written
    """
    native, kept = folder / NATIVE, folder.parent / KEPT / NATIVE
    is_replaced = is_ours(native)
    if not is_replaced and not kept.parent.is_dir():
        return None
    try:
        kept.parent.mkdir(exist_ok=True)
        remove_scratch(kept.parent)
        scratch = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=kept.parent))
        try:
            is_changed = _take_back(native, kept, scratch)
        finally:
            remove_scratch(kept.parent)
            with suppress(OSError):  # something else is kept there
                kept.parent.rmdir()
    except OSError as error:
        raise KernelspecError(
            f"{kept} cannot be moved to {native}: {error.strerror}.",
            "move it yourself, as the user who owns it.",
        ) from error
    return native if is_changed else None


def _take_back(native: Path, kept: Path, scratch: Path) -> bool:
    """Put the original back, if there is one, and remove ours; return whether this did anything."""
    has_original = is_original(kept)
    if is_ours(native):
        if has_original:
            exchange(kept, native, scratch)
            kept.rename(scratch / "ours")
        else:
            native.rename(scratch / "ours")
        return True
    if not os.path.lexists(native) and has_original:
        kept.rename(native)
        return True
    if os.path.lexists(kept) and (not has_original or is_same(native, kept)):
        kept.rename(scratch / "kept")  # of a killed command, or installed again since
    return False


def is_original(directory: Path) -> bool:
    """Return whether there is a kernelspec that is not ours."""
    return os.path.lexists(directory) and not is_ours(directory)


def is_same(one: Path, other: Path) -> bool:
    """Return whether two kernelspecs have the same kernel.json."""
    with suppress(OSError):
        return (one / "kernel.json").read_bytes() == (other / "kernel.json").read_bytes()
    return False


def exchange(one: Path, other: Path, scratch: Path) -> None:
    """Let two folders change places in one step.

    Where the file system cannot, in three. ``other`` is ours, and is put aside first: so a kill
    between them leaves an original in one of the two places, and the next command restores it.

    :raises OSError: they cannot change places
    """
    renameat2 = getattr(_libc, "renameat2", None)
    code = errno.ENOSYS
    if renameat2 is not None:
        paths = os.fsencode(one), os.fsencode(other)
        arguments = _AT_FDCWD, paths[0], _AT_FDCWD, paths[1], ctypes.c_uint(_RENAME_EXCHANGE)
        if renameat2(*arguments) == 0:
            return
        code = ctypes.get_errno()
    if code not in _NO_EXCHANGE:
        raise OSError(code, os.strerror(code), str(one))
    aside = scratch / "aside"
    other.rename(aside)
    one.rename(other)
    aside.rename(one)


def remove_scratch(folder: Path) -> None:
    """Remove what this command, or a killed one, has made or put aside."""
    for path in folder.glob(f"{SCRATCH}*"):
        shutil.rmtree(path, ignore_errors=True)
