"""The user's folders that a sandbox is shown: each is opened once, and held until it is mounted.

This module decides what may be shown: which symbolic links are followed, which folders are never
writable, which are made if they are missing. ``host/folders.py`` opens them; the runtime that
mounts or copies them uses the descriptors.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path, user_data_path, user_state_path

from gvisor_kernel.config.settings import DEFAULTS, HOST_IMAGE, INSTALLED_SKILLS, SandboxSpec
from gvisor_kernel.config.validators import (
    FORBIDDEN_SOURCES,
    describe_no_home,
    is_within,
    may_be_writable,
    real_path,
)
from gvisor_kernel.errors import LaunchError, SettingError
from gvisor_kernel.host.folders import LinkRefused, Opened, make_folder, open_below, open_path
from gvisor_kernel.host.homes import find_home
from gvisor_kernel.host.stage import TOO_MANY_FILES
from gvisor_kernel.runtimes.base import LaunchRequest
from gvisor_kernel.runtimes.mounts.aliases import find_home_by_inode, find_key_folder
from gvisor_kernel.runtimes.mounts.covers import Cover, find_cover, find_jupyter_covers, hides
from gvisor_kernel.runtimes.mounts.host_python import ask_interpreter
from gvisor_kernel.runtimes.mounts.plan import Outputs
from gvisor_kernel.runtimes.mounts.written_folders import WrittenFolders, read_written
from gvisor_kernel.skills import prepare_skills
from gvisor_kernel.spec import layout

log = logging.getLogger(__name__)

SCARCE = (errno.EMFILE, errno.ENFILE)
"""Errors that are not the path's fault: too many files are open."""
_SKILLS = {"public": layout.SKILLS_PUBLIC, "examples": layout.SKILLS_EXAMPLES}


@dataclass(frozen=True)
class Inputs:
    """What a sandbox reads. ``folder``: the notebook's folder, if a setting names a path in it.

    ``skills``: by mount target. ``mounts``: the sources of the setting ``mounts``, in its order.
    """

    folder: Opened | None
    uploads: Opened | None
    skills: Mapping[str, Opened]
    mounts: tuple[Opened, ...]
    written: WrittenFolders

    def by_target(self, spec: SandboxSpec) -> dict[str, Opened]:
        """Return all of them except ``folder``, by mount target."""
        found = dict(self.skills)
        if self.uploads is not None:
            found[layout.UPLOADS] = self.uploads
        for mount, opened in zip(spec.mounts, self.mounts, strict=True):
            found[mount.target] = opened
        return found


def open_inputs(spec: SandboxSpec, request: LaunchRequest, stack: ExitStack) -> Inputs:
    """Open what the sandbox is to read; ``stack`` closes it.

    The default for uploads shows the notebook's folder, unless that holds keys of kernels. No home
    of any account is shown whole, nor a folder above one: with the default, uploads are empty then;
    a setting that names such a folder is refused.

    :raises LaunchError: when the notebook's folder cannot be opened, or too many files are open
    :raises SettingError: when a setting names a folder that cannot be shown
    :raises StateError: when the notes of written folders cannot be read
    """
    written = read_written(spec)
    folder = _open_notebooks_folder(spec, request, written, stack)
    mounts = tuple(
        stack.enter_context(_open_mount(mount.source, mount.read_only, written))
        for mount in spec.mounts
    )
    return Inputs(
        folder=folder,
        uploads=_open_uploads(spec, request, folder, written, stack),
        skills=_open_skills(spec, written, stack),
        mounts=mounts,
        written=written,
    )


def open_outputs(
    spec: SandboxSpec, inputs: Inputs, stack: ExitStack, *, make: bool = True
) -> Outputs:
    """Open the folder of outputs, and make it if it is missing; ``stack`` closes it.

    Where the default folder cannot be made, or must not be, outputs are not kept, and a warning is
    logged. ``make=False``: only open a folder that exists.

    :raises SettingError: when the setting names a folder that cannot be used
    :raises LaunchError: when too many files are open
    """
    if spec.outputs is None:
        return Outputs(None)
    parent, name = _open_parent(spec, inputs, stack)
    path = f"{parent.path.rstrip('/')}/{name}"
    if not may_be_writable(path) or _holds_keys(path):
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
            found, made = _make_or_open(parent, name)
    except OSError as error:
        _check_scarce(path, error)
        if error.errno == errno.ELOOP:
            raise _explain_link("outputs", spec.outputs, path) from error
        if spec.outputs == DEFAULTS.outputs:
            log.warning("Could not make %s (%s): outputs are not kept", path, error.strerror)
            return Outputs(None)
        raise SettingError(
            "outputs", spec.outputs, f"a folder that can be made ({path}: {error.strerror})"
        ) from error
    stack.enter_context(found)
    if not found.is_folder:
        raise SettingError("outputs", spec.outputs, f"a folder; {path} is not a directory")
    _check_outputs(spec.outputs, parent, found)
    return Outputs(found, parent.identity, made)


def are_uploads_covered(spec: SandboxSpec, request: LaunchRequest) -> bool:
    """Return whether parts of the uploads folder are hidden, which no snapshot has.

    :raises LaunchError, SettingError, StateError: as ``open_inputs`` does
    """
    with ExitStack() as stack:
        written = read_written(spec)
        folder = _open_notebooks_folder(spec, request, written, stack)
        uploads = _open_uploads(spec, request, folder, written, stack)
        return uploads is not None and hides(_find_jupyters(spec, request, written), uploads.path)


def _find_jupyters(
    spec: SandboxSpec, request: LaunchRequest, written: WrittenFolders
) -> tuple[Cover, ...]:
    host = spec.image == HOST_IMAGE
    return find_jupyter_covers(
        ask_interpreter(request.python, written.has).prefixes if host else ()
    )


def _check_outputs(value: str, parent: Opened, found: Opened) -> None:
    """Refuse outputs that are a home or hold keys at another path, or that another user has
    planted.

    :raises SettingError: when they are
    """
    cache = os.path.realpath(user_cache_path("gvisor-kernel"))
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


def keeps_outputs(spec: SandboxSpec, request: LaunchRequest) -> bool:
    """Return whether ``open_outputs`` would find or make a folder of the host. Opens nothing.

    Only for the choice of a snapshot: a wrong answer costs a cold start.
    """
    if spec.outputs is None:
        return False
    path = Path(real_path(str(request.folder / spec.outputs)))
    return path.is_dir() or (
        may_be_writable(str(path)) and os.access(path.parent, os.W_OK | os.X_OK)
    )


def is_private(path: str) -> bool:
    """Return whether ``path`` is, contains or lies in a folder with keys of kernels or servers."""
    own = (user_state_path("gvisor-kernel"), user_cache_path("gvisor-kernel"))
    places = (*map(os.path.realpath, own), _runtime_directory())
    return any(is_within(place, path) or is_within(path, place) for place in places)


def _runtime_directory() -> str:
    """Return where Jupyter servers write their tokens, and managers the connection files."""
    data = os.environ.get("JUPYTER_DATA_DIR") or user_data_path("jupyter")
    return os.path.realpath(os.environ.get("JUPYTER_RUNTIME_DIR") or Path(data, "runtime"))


def _holds_keys(path: str) -> bool:
    """Return whether ``path`` contains or lies in a folder of Jupyter's or of this package's own.

    A folder in this package's cache is allowed: snapshots are made there, by kernels of their own.
    """
    covers = find_jupyter_covers(())
    cache = os.path.realpath(user_cache_path("gvisor-kernel"))
    return any(is_within(cover.path, path) for cover in covers) or bool(
        find_cover((cover for cover in covers if cover.path != cache), path)
    )


# -- opening one folder ----------------------------------------------------------------------------


def _open_notebooks_folder(
    spec: SandboxSpec, request: LaunchRequest, written: WrittenFolders, stack: ExitStack
) -> Opened | None:
    """Open the notebook's folder if a setting names a path in it.

    :raises LaunchError: when it cannot be opened, or a kernel may have decided which folder it is
    """
    named = (spec.uploads, spec.outputs)
    if all(value is None or value.startswith("/") for value in named):
        return None
    try:
        return stack.enter_context(open_path(str(request.folder), written.has))
    except LinkRefused as error:
        raise LaunchError(
            f"The notebook's folder {request.folder} is reached through the symbolic link"
            f" {error.link} (to {error.target}): {error.reason}.",
            "if you trust the link, open the notebook at its real path,"
            f" {real_path(str(request.folder))}.",
        ) from error
    except OSError as error:
        raise LaunchError(
            f"Could not open the notebook's folder {request.folder}: {error.strerror}.",
            TOO_MANY_FILES
            if error.errno in SCARCE
            else "check that it still exists, and that you may enter it.",
        ) from error


def _open_uploads(
    spec: SandboxSpec,
    request: LaunchRequest,
    folder: Opened | None,
    written: WrittenFolders,
    stack: ExitStack,
) -> Opened | None:
    if spec.uploads is None:
        return None
    found = stack.enter_context(_open_setting("uploads", spec.uploads, folder, written))
    jupyters = _find_jupyters(spec, request, written)
    home = find_home(found.path) or find_home_by_inode(found)
    # Covers are found by path: a key folder that is mounted at a second path would stay visible.
    cover = find_cover(jupyters, found.path) or find_key_folder(found, jupyters)
    if spec.uploads == DEFAULTS.uploads and (home or cover or is_private(found.path)):
        log.info("The notebook's folder contains a home or Jupyter's own files: uploads is empty")
        return None
    if not found.is_folder or any(is_within(found.path, place) for place in FORBIDDEN_SOURCES):
        raise SettingError(
            "uploads", spec.uploads, f"a folder of files that exists; {found.path} is not one"
        )
    if home is not None:
        raise SettingError("uploads", spec.uploads, describe_no_home(found.path, home))
    if cover is not None:
        raise SettingError(
            "uploads",
            spec.uploads,
            f"a folder that is not in {cover}, where Jupyter keeps its keys and tokens",
        )
    return found


def _open_mount(source: str, read_only: bool, written: WrittenFolders) -> Opened:
    found = _open_setting("mounts", source, None, written)
    keys = find_key_folder(found, find_jupyter_covers(()))
    if keys is not None:
        found.close()
        raise SettingError(
            "mounts",
            source,
            f"a list without a source in {keys}, where Jupyter keeps its keys and tokens",
        )
    system = found.path == "/" or any(is_within(found.path, place) for place in FORBIDDEN_SOURCES)
    closed = not read_only and (
        not may_be_writable(found.path)
        or _holds_keys(found.path)
        or find_home_by_inode(found) is not None
    )
    if system or closed:
        found.close()
        raise SettingError(
            "mounts",
            source,
            f"a list without this source: {found.path} belongs to the system"
            if system
            else f"a list where this source is read-only: {found.path} belongs to the system, or"
            " contains a home or the keys of kernels",
        )
    return found


def _open_skills(spec: SandboxSpec, written: WrittenFolders, stack: ExitStack) -> dict[str, Opened]:
    """Open those of the two folders of skills that exist."""
    folder = prepare_skills() if spec.skills == INSTALLED_SKILLS else spec.skills
    if folder is None:
        return {}
    found = {}
    with _open_setting("skills", str(folder), None, written) as opened:
        for name, target in _SKILLS.items():
            try:
                part = stack.enter_context(open_below(opened, name))
            except FileNotFoundError:
                continue
            except OSError as error:
                _check_scarce(f"{folder}/{name}", error)
                raise SettingError(
                    "skills", str(folder), f"a folder that can be read ({name}: {error.strerror})"
                ) from error
            if part.is_folder:
                found[target] = part
    return found


def _open_setting(name: str, value: str, folder: Opened | None, written: WrittenFolders) -> Opened:
    """Open a setting's path: absolute, or below the notebook's folder without symbolic links."""
    try:
        if value.startswith("/") or folder is None:
            return open_path(value, written.has)
        return open_below(folder, value)
    except LinkRefused as error:
        raise _explain_planted_link(name, value, error) from error
    except OSError as error:
        path = value if folder is None else f"{folder.path}/{value}"
        _check_scarce(path, error)
        if error.errno == errno.ELOOP and folder is not None:
            raise _explain_link(name, value, path) from error
        raise SettingError(
            name, value, f"a path that exists and can be opened ({path}: {error.strerror})"
        ) from error


def _open_parent(spec: SandboxSpec, inputs: Inputs, stack: ExitStack) -> tuple[Opened, str]:
    """Open the folder that outputs are in; return it and the name of outputs in it."""
    assert spec.outputs is not None
    if spec.outputs.startswith("/"):
        head, name = os.path.split(_follow_last(spec.outputs, inputs.written.has))
        return stack.enter_context(_open_setting("outputs", head, None, inputs.written)), name
    head, name = os.path.split(spec.outputs)
    if not head:
        assert inputs.folder is not None
        return inputs.folder, name
    found = stack.enter_context(_open_setting("outputs", head, inputs.folder, inputs.written))
    return found, name


def _follow_last(path: str, writable: Callable[[str, int], bool]) -> str:
    """Return a folder's real path, or ``path`` if it is missing: the user may name a link here."""
    try:
        with open_path(path, writable) as found:
            return found.path
    except FileNotFoundError:
        return path
    except LinkRefused as error:
        raise _explain_planted_link("outputs", path, error) from error
    except OSError as error:
        _check_scarce(path, error)
        raise SettingError(
            "outputs", path, f"a path that can be opened ({error.strerror})"
        ) from error


def _check_scarce(path: str, error: OSError) -> None:
    """Check that the path is to blame for ``error``.

    :raises LaunchError: when too many files are open
    """
    if error.errno in SCARCE:
        raise LaunchError(f"Could not open {path}: {error.strerror}.", TOO_MANY_FILES) from error


def _make_or_open(parent: Opened, name: str) -> tuple[Opened, bool]:
    try:
        return make_folder(parent, name), True
    except FileExistsError:  # another process has just made it
        return open_below(parent, name), False


def _explain_link(name: str, value: str, path: str) -> SettingError:
    real = real_path(path)
    error = SettingError(name, value, "a folder below the notebook's, without symbolic links")
    error.fact = (
        f"The setting {name} is {value!r}, and {path} is reached through a symbolic link: it is"
        f" {real}."
    )
    error.hint = (
        "a kernel, or the author of the repository, may have made the link. If you want it, name"
        f" the folder itself, in the kernelspec or in Jupyter's configuration:"
        f" c.GVisorProvisioner.{name} = {real!r}."
    )
    return error


def _explain_planted_link(name: str, value: str, error: LinkRefused) -> SettingError:
    return SettingError(
        name,
        value,
        f"a path without the symbolic link {error.link} (to {error.target}): {error.reason}",
    )
