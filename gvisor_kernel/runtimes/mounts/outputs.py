"""The user's folder of outputs: it is opened once, or made, and held until it is mounted.

This module decides whether a sandbox may write it. What a sandbox reads is opened by ``folders``.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from gvisor_kernel.config.settings import DEFAULTS, SandboxSpec
from gvisor_kernel.config.validators import may_be_writable, real_path
from gvisor_kernel.errors import LaunchError, SettingError
from gvisor_kernel.host.folders import (
    Identity,
    LinkRefused,
    Opened,
    find_ancestry,
    find_mount,
    move_private,
    open_below,
    open_path,
    open_real,
    reopen,
)
from gvisor_kernel.host.owners import change_owner, make_folder
from gvisor_kernel.host.private_directories import own_cache
from gvisor_kernel.runtimes.base import LaunchRequest
from gvisor_kernel.runtimes.mounts.aliases import find_home_by_inode, find_key_folder
from gvisor_kernel.runtimes.mounts.covers import find_jupyter_covers, holds_keys
from gvisor_kernel.runtimes.mounts.folders import (
    Inputs,
    check_scarce,
    explain_link,
    explain_planted_link,
    open_setting,
)
from gvisor_kernel.runtimes.mounts.plan import Outputs
from gvisor_kernel.runtimes.mounts.written_folders import note_written

log = logging.getLogger(__name__)


def open_outputs(
    spec: SandboxSpec,
    inputs: Inputs,
    stack: ExitStack,
    *,
    make: bool = True,
    aside: Path | None = None,
) -> Outputs:
    """Open the folder of outputs, and make it if it is missing; ``stack`` closes it.

    Where the default folder cannot be made, or must not be, outputs are not kept, and a warning is
    logged. ``make=False``: only open a folder that exists. ``aside``: make a missing one there, for
    a sandbox that no kernel has yet: ``place_outputs`` puts it in its place.

    :raises SettingError: when the setting names a folder that cannot be used
    :raises LaunchError: when too many files are open
    """
    if spec.outputs is None:
        return Outputs(None)
    parent, name = _open_parent(spec, inputs, stack)
    path = f"{parent.path.rstrip('/')}/{name}"
    if not _may_hold_outputs(path):
        if spec.outputs == DEFAULTS.outputs:
            log.warning("%s is a folder of the system or of Jupyter: outputs are not kept", path)
            return Outputs(None)
        raise SettingError(
            "outputs",
            spec.outputs,
            f"a folder of files; {path} belongs to the system, or contains a home or the keys of"
            " kernels",
        )
    made = False
    try:
        try:
            found = open_below(parent, name)
        except FileNotFoundError:
            if not make:
                return Outputs(None)
            if aside is not None and os.access(".", os.W_OK | os.X_OK, dir_fd=parent.fd):
                return _make_aside(parent, name, aside, stack)
            found, made = _make_or_open(parent, name)
        stack.enter_context(found)
        inputs.written.ensure_access(found)
    except OSError as error:
        check_scarce(path, error)
        if error.errno == errno.ELOOP:
            raise explain_link("outputs", spec.outputs, path) from error
        if spec.outputs == DEFAULTS.outputs:
            log.warning("Could not use %s (%s): outputs are not kept", path, error.strerror)
            return Outputs(None)
        raise SettingError(
            "outputs", spec.outputs, f"a folder that can be used ({path}: {error.strerror})"
        ) from error
    if not found.is_folder:
        raise SettingError("outputs", spec.outputs, f"a folder; {path} is not a directory")
    _check_outputs(spec.outputs, parent, found)
    _check_beside_uploads(spec.outputs, found, inputs.uploads)
    return Outputs(found, parent.identity, made)


def keeps_outputs(spec: SandboxSpec, request: LaunchRequest) -> bool:
    """Return whether ``open_outputs`` would find or make a folder of the host. Opens nothing.

    Only for the choice of a snapshot. One that is restored without what it has mounted fails and
    is discarded, so a wrong answer costs all kernels a cold start.
    """
    if spec.outputs is None:
        return False
    path = Path(real_path(str(request.folder / spec.outputs)))
    return _may_hold_outputs(str(path)) and (
        path.is_dir() or os.access(path.parent, os.W_OK | os.X_OK)
    )


def _may_hold_outputs(path: str) -> bool:
    """Return whether a sandbox may write the folder ``path`` (real), which need not exist."""
    return may_be_writable(path) and not holds_keys(path)


def _open_parent(spec: SandboxSpec, inputs: Inputs, stack: ExitStack) -> tuple[Opened, str]:
    """Open the folder that outputs are in; return it and the name of outputs in it."""
    assert spec.outputs is not None
    if spec.outputs.startswith("/"):
        head, name = os.path.split(_follow_last(spec.outputs, inputs.written.has))
        return stack.enter_context(open_setting("outputs", head, None, inputs.written)), name
    head, name = os.path.split(spec.outputs)
    if not head:
        assert inputs.folder is not None
        return inputs.folder, name
    found = stack.enter_context(open_setting("outputs", head, inputs.folder, inputs.written))
    return found, name


def _follow_last(path: str, writable: Callable[[str, int], bool]) -> str:
    """Return a folder's real path, or ``path`` if it is missing: the user may name a link here."""
    try:
        with open_path(path, writable) as found:
            return found.path
    except FileNotFoundError:
        return path
    except LinkRefused as error:
        raise explain_planted_link("outputs", path, error) from error
    except OSError as error:
        check_scarce(path, error)
        raise SettingError(
            "outputs", path, f"a path that can be opened ({error.strerror})"
        ) from error


def _make_aside(parent: Opened, name: str, aside: Path, stack: ExitStack) -> Outputs:
    """Make the folder of outputs in ``aside``, a private folder, which may not be another mount.

    :raises LaunchError: when it is one
    """
    above = stack.enter_context(open_real(os.path.realpath(aside)))
    if find_mount(above) != find_mount(parent):
        raise LaunchError(
            f"{parent.path} has no folder {name}, and one cannot be made ahead: it is in another"
            " mount than the state directory."
        )
    folder = stack.enter_context(make_folder(above, name))
    owner = parent.status()
    if os.geteuid() == 0:
        change_owner(folder.fd, owner.st_uid, owner.st_gid)
    place = f"{parent.path.rstrip('/')}/{name}", parent.identity
    return Outputs(folder, above.identity, made=True, place=place)


def place_outputs(aside: str, place: str, parent: Identity) -> None:
    """Move a folder of outputs that was made aside to its place, a path below ``parent``. Who has
    it mounted keeps it. The caller holds ``records.locked``.

    :raises OSError: when something is there now, or the folder that it is in was moved
    """
    above, name = os.path.split(place)
    with reopen(above, parent) as folder:
        move_private(aside, folder, name)
        with open_below(folder, name) as placed:
            note_written([placed])


def _make_or_open(parent: Opened, name: str) -> tuple[Opened, bool]:
    try:
        return make_folder(parent, name), True
    except FileExistsError:  # another process has just made it
        return open_below(parent, name), False


def _check_outputs(value: str, parent: Opened, found: Opened) -> None:
    """Refuse outputs that are a home or hold keys at another path, or that another user has
    planted.

    :raises SettingError: when they are
    """
    cache = os.path.realpath(own_cache())
    covers = [cover for cover in find_jupyter_covers(()) if cover.path != cache]
    other = find_home_by_inode(found) or find_key_folder(found, covers)
    if other is not None:
        raise SettingError(
            "outputs", value, f"a folder of files; {found.path} is, contains or lies in {other}"
        )
    above, own = parent.status(), found.status()
    if above.st_mode & stat.S_ISVTX and own.st_uid not in (0, os.geteuid(), above.st_uid):
        raise SettingError(
            "outputs",
            value,
            f"a folder of your own: {found.path} is in a folder that everybody can write, and"
            f" belongs to uid {own.st_uid}",
        )


def _check_beside_uploads(value: str, found: Opened, uploads: Opened | None) -> None:
    """Refuse outputs through which a kernel would change the files that it is only to read.

    :raises SettingError: when outputs are or contain ``uploads``
    """
    if uploads is not None and found.identity in find_ancestry(uploads):
        verb = "is" if found.identity == uploads.identity else "contains"
        raise SettingError(
            "outputs",
            value,
            f"a folder of its own, such as {uploads.path}/outputs: {found.path} {verb} the folder"
            f" of uploads, {uploads.path}, whose files the kernel could then overwrite. Code that"
            " is to change them changes its copy in /workspace, and you apply the changes",
        )
