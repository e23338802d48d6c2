"""Makes sandboxes the default of Jupyter, and undoes it.

Two steps, each for one place (the user, an environment, the system). The first is a line of
Jupyter's configuration, ``jupyter_config.json``: kernelspecs that name no provisioner are started
by ours. The second, for programs that do not read that configuration, replaces the kernelspec
``python3`` by ours. The original is kept in a folder beside that of the kernelspecs, where Jupyter
does not look. At every moment there is a whole ``python3``: without one, jupyter_client would start
its own, which has no sandbox. So the two change places in one step, and what a killed command
leaves is put right by the next one.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shlex
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from jupyter_core.paths import SYSTEM_CONFIG_PATH, jupyter_config_dir

from gvisor_kernel.errors import KernelspecError
from gvisor_kernel.host.private_directories import replace_file
from gvisor_kernel.jupyter.kernelspecs import (
    PROVISIONER,
    Kernelspec,
    find_destination,
    install_kernelspec,
    is_ours,
    read_kernelspec,
)
from gvisor_kernel.strict_json import JsonError, parse_json

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


# by path: Jupyter's folders of configuration and kernelspecs

MAX_FILE = 16 * 1024 * 1024
FILE = "jupyter_config.json"
"""Read by each Jupyter application, before its own configuration."""
SECTION, KEY = "KernelProvisionerFactory", "default_provisioner_name"
VARIABLE = "JUPYTER_DEFAULT_PROVISIONER_NAME"
"""Does the same as the configuration, for all that a process starts."""


def find_config_file(user: bool, prefix: str | None) -> Path:
    """Return Jupyter's configuration file for the user, for ``prefix``, or for the system."""
    if user:
        return Path(jupyter_config_dir(), FILE)
    if prefix is not None:
        return Path(prefix).absolute() / "etc/jupyter" / FILE
    return Path(SYSTEM_CONFIG_PATH[0], FILE)


def set_default(user: bool, prefix: str | None) -> Path:
    """Let our provisioner start kernelspecs that name none; return the file that says so.

    :raises KernelspecError: when the file names another one, or cannot be read or written
    """
    path = find_config_file(user, prefix)
    content = _read(path)
    section = content.setdefault(SECTION, {})
    found = section.get(KEY) if isinstance(section, dict) else section
    if not isinstance(section, dict) or found not in (None, PROVISIONER):
        raise KernelspecError(
            f"{path} sets {SECTION}.{KEY} to {found!r}.",
            "remove that line, if gVisor shall be the default.",
        )
    section[KEY] = PROVISIONER
    _write(path, content)
    return path


def unset_default(user: bool, prefix: str | None) -> Path | None:
    """Undo ``set_default``; return the file that was changed, or None.

    :raises KernelspecError: when the file cannot be read or written
    """
    path = find_config_file(user, prefix)
    content = _read(path)
    section = content.get(SECTION)
    if not isinstance(section, dict) or section.get(KEY) != PROVISIONER:
        return None
    del section[KEY]
    if not section:
        del content[SECTION]
    if content:
        _write(path, content)
        return path
    try:
        path.unlink()
    except OSError as error:
        raise KernelspecError(
            f"{path} cannot be removed: {error.strerror}.",
            "run this command as the user who owns it.",
        ) from error
    return path


def find_defaults() -> list[str]:
    """Return the options of ``uninstall --default`` for the places where it undoes something."""
    system = str(Path(SYSTEM_CONFIG_PATH[0]).parent.parent)
    places = {
        "--user": (True, None),
        "--sys-prefix": (False, sys.prefix),
        f"--prefix {shlex.quote(system)}": (False, system),
    }
    return [option for option, place in places.items() if is_default(*place)]


def is_default(user: bool, prefix: str | None) -> bool:
    """Return whether sandboxes are the default of a place, by one of the two steps."""
    with suppress(KernelspecError):
        section = _read(find_config_file(user, prefix)).get(SECTION)
        if isinstance(section, dict) and section.get(KEY) == PROVISIONER:
            return True
    return is_ours(find_destination(user, prefix) / NATIVE)


def _read(path: Path) -> dict[str, Any]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # it may be a pipe
        with open(descriptor, "rb") as file:
            content = parse_json(file.read(MAX_FILE + 1), MAX_FILE)
    except FileNotFoundError:
        return {}
    except (OSError, JsonError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise KernelspecError(
            f"{path} cannot be read: {reason}.", "repair the file, or move it away."
        ) from error
    if not isinstance(content, dict):
        raise KernelspecError(f"{path} is not a JSON object.", "repair the file.")
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    """Replace the file in one step."""
    target = path.resolve()  # a link to a file that a person keeps elsewhere stays one
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o644
        replace_file(target, json.dumps(content, indent=2) + "\n", mode)
    except OSError as error:
        raise KernelspecError(
            f"{path} cannot be written: {error.strerror}.",
            f"use --user, or --sys-prefix in an environment of your own (now: {sys.prefix}).",
        ) from error
