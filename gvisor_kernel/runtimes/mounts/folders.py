"""The user's folders that a sandbox reads: each is opened once, and held until it is mounted.

This module decides what may be shown, and which symbolic links are followed; ``outputs`` decides
it for the folder of outputs. ``host/folders.py`` opens them; the runtime that mounts or copies them
uses the descriptors.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from gvisor_kernel.config.settings import DEFAULTS, SandboxSpec
from gvisor_kernel.config.validators import (
    FORBIDDEN_SOURCES,
    HOST_IMAGE,
    INSTALLED_SKILLS,
    PROJECT,
    describe_no_home,
    is_within,
    may_be_writable,
    real_path,
)
from gvisor_kernel.errors import LaunchError, SettingError
from gvisor_kernel.host.folders import LinkRefused, Opened, birth_time, open_below, open_path
from gvisor_kernel.host.homes import find_home
from gvisor_kernel.host.open_files import explain_scarce_files
from gvisor_kernel.host.owners import check_access
from gvisor_kernel.host.stage import Hidden, make_moved_error
from gvisor_kernel.runtimes.base import LaunchRequest
from gvisor_kernel.runtimes.mounts.aliases import find_home_by_inode, find_key_folder
from gvisor_kernel.runtimes.mounts.covers import (
    Cover,
    find_cover,
    find_jupyter_covers,
    hides,
    holds_keys,
    is_private,
)
from gvisor_kernel.runtimes.mounts.host_python import ask_interpreter
from gvisor_kernel.runtimes.mounts.project import (
    Project,
    check_reach,
    find_hidden,
    find_project,
)
from gvisor_kernel.runtimes.mounts.written_folders import WrittenFolders, read_written
from gvisor_kernel.skills import prepare_skills
from gvisor_kernel.spec import layout

log = logging.getLogger(__name__)

SCARCE = (errno.EMFILE, errno.ENFILE)
"""Errors that are not the path's fault: too many files are open."""


@dataclass(frozen=True)
class Inputs:
    """Folders that a sandbox reads. ``folder``: the notebook's, if a setting names a path in it.

    ``skills``: by mount target. ``mounts``: the sources of the setting ``mounts``, in its order.
    ``within``: where the notebook's folder is in ``uploads``, if these are a project; ``hidden``:
    what of a project no kernel is shown; None without a project. ``began``: when they were opened,
    in nanoseconds.
    """

    folder: Opened | None
    uploads: Opened | None
    skills: Mapping[str, Opened]
    mounts: tuple[Opened, ...]
    written: WrittenFolders
    within: str = ""
    hidden: tuple[Hidden, ...] | None = None
    began: int = 0

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
    began = time.time_ns()
    written = read_written(spec)
    folder = _open_notebooks_folder(spec, request, written, stack)
    mounts = tuple(
        stack.enter_context(_open_mount(mount.source, mount.read_only, written))
        for mount in spec.mounts
    )
    jupyters = _find_jupyters(spec, request, written)
    project, hidden = _choose_project(spec, folder, written, jupyters, stack)
    uploads = _open_uploads(spec, folder, written, jupyters, stack) if project is None else None
    if project is not None:
        uploads = project.folder
    elif uploads is None and spec.uploads is not None:
        log.info(
            "The kernel sees no files of %s, which contains a home or Jupyter's own files: keep"
            " notebooks in a folder below it",
            request.folder,
        )
    return Inputs(
        folder=folder,
        uploads=uploads,
        within="" if project is None else project.within,
        hidden=None if project is None else hidden,
        began=began,
        skills=_open_skills(spec, written, stack),
        mounts=mounts,
        written=written,
    )


def inspect_uploads(spec: SandboxSpec, request: LaunchRequest) -> tuple[bool, str]:
    """Return whether mounts hide parts of what would be shown, which no snapshot has, and where the
    notebook's folder is in it.

    :raises LaunchError, SettingError, StateError: as ``open_inputs`` does
    """
    with ExitStack() as stack:
        written = read_written(spec)
        folder = _open_notebooks_folder(spec, request, written, stack)
        jupyters = _find_jupyters(spec, request, written)
        project, _ = _choose_project(spec, folder, written, jupyters, stack, hide=False)
        if project is not None:
            seen = (cover for cover in jupyters if not project.hides(cover.path))
            return hides(seen, project.folder.path), project.within
        uploads = _open_uploads(spec, folder, written, jupyters, stack)
        return uploads is not None and hides(jupyters, uploads.path), ""


def check_hidden(inputs: Inputs) -> None:
    """Check, after what was found in a project was hidden, that nothing else had to be.

    A folder that was swapped for another one while it was looked into is found now. What is newer
    than the start, such as Jupyter's checkpoints, is passed over. Blocks as long as
    ``open_inputs``.

    :raises LaunchError: when something was moved or replaced, or cannot be looked at any more
    """
    if inputs.uploads is None or inputs.hidden is None:
        return
    known = {(hidden.path, hidden.identity) for hidden in inputs.hidden}
    try:
        for hidden in find_hidden(Project(inputs.uploads, inputs.within), inputs.written):
            if (hidden.path, hidden.identity) in known:
                continue
            with open_below(inputs.uploads, hidden.path) as found:
                if birth_time(found.fd) <= inputs.began:
                    raise make_moved_error(f"{inputs.uploads.path}/{hidden.path}")
    except OSError as error:
        raise LaunchError(
            f"{inputs.uploads.path} was changed while the kernel started: {error}.",
            "start the kernel again.",
        ) from error


def find_project_path(folder: str) -> str | None:
    """Return the path of the project that a kernel in the notebook's ``folder`` would be shown.

    None if there is none around it, or none that may be shown. Blocks for milliseconds.
    """
    written = read_written(DEFAULTS)
    try:
        with open_path(folder, written.has) as opened, ExitStack() as stack:
            found = _open_project(opened, written, find_jupyter_covers(()), stack)
            return None if found is None else found.folder.path
    except OSError:
        return None


def _open_project(
    folder: Opened, written: WrittenFolders, jupyters: Sequence[Cover], stack: ExitStack
) -> Project | None:
    """Open the project around the notebook's ``folder``, if it may be shown; ``stack`` closes it.

    :raises OSError: when the folders above cannot be read, or a sandbox could not read the project
    """
    project = find_project(folder, written)
    if project is None:
        return None
    found = stack.enter_context(project.folder)
    refused = (
        _find_refusal(found, jupyters)
        or is_private(found.path)
        or any(is_within(found.path, place) for place in FORBIDDEN_SOURCES)
    )
    if refused:
        return None
    check_reach(project)
    return project


def _find_refusal(found: Opened, jupyters: Sequence[Cover]) -> tuple[str | None, str | None] | None:
    """Return the home that a folder is or contains, and Jupyter's folder that it is or lies in."""
    home = find_home(found.path) or find_home_by_inode(found)
    # Covers are found by path: a key folder that is mounted at a second path would stay visible.
    cover = find_cover(jupyters, found.path) or find_key_folder(found, jupyters)
    return (home, cover) if home or cover else None


def _find_jupyters(
    spec: SandboxSpec, request: LaunchRequest, written: WrittenFolders
) -> tuple[Cover, ...]:
    if spec.uploads is None:
        return ()
    host = spec.image == HOST_IMAGE
    return find_jupyter_covers(
        ask_interpreter(request.python, written.has).prefixes if host else ()
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
            explain_scarce_files()
            if error.errno in SCARCE
            else "check that it still exists, and that you may enter it.",
        ) from error


def _choose_project(
    spec: SandboxSpec,
    folder: Opened | None,
    written: WrittenFolders,
    jupyters: Sequence[Cover],
    stack: ExitStack,
    *,
    hide: bool = True,
) -> tuple[Project | None, tuple[Hidden, ...]]:
    """Return the project that is shown, and what of it is hidden; None for the notebook's folder
    alone."""
    if spec.uploads != PROJECT or folder is None:
        return None, ()
    try:
        project = _open_project(folder, written, jupyters, stack)
        if project is None:
            log.info("There is no project around %s that can be shown", folder.path)
            return None, ()
        return project, find_hidden(project, written) if hide else ()
    except OSError as error:
        log.warning("The project around %s is not shown: %s", folder.path, error)
        return None, ()


def _open_uploads(
    spec: SandboxSpec,
    folder: Opened | None,
    written: WrittenFolders,
    jupyters: Sequence[Cover],
    stack: ExitStack,
) -> Opened | None:
    """Open the folder of the setting; the notebook's where there is no project."""
    if spec.uploads is None:
        return None
    is_default = spec.uploads in (DEFAULTS.uploads, PROJECT)
    value = "." if is_default else spec.uploads
    found = stack.enter_context(open_setting("uploads", value, folder, written))
    home, cover = _find_refusal(found, jupyters) or (None, None)
    if is_default and (home or cover or is_private(found.path)):
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
    found = open_setting("mounts", source, None, written, writable=not read_only)
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
        or holds_keys(found.path)
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
    with open_setting("skills", str(folder), None, written) as opened:
        for name, target in layout.SKILLS.items():
            try:
                part = stack.enter_context(open_below(opened, name))
            except FileNotFoundError:
                continue
            except OSError as error:
                check_scarce(f"{folder}/{name}", error)
                raise SettingError(
                    "skills", str(folder), f"a folder that can be read ({name}: {error.strerror})"
                ) from error
            if part.is_folder:
                found[target] = part
    return found


def open_setting(
    name: str,
    value: str,
    folder: Opened | None,
    written: WrittenFolders,
    *,
    writable: bool = False,
) -> Opened:
    """Open a setting's path: absolute, or below the notebook's folder without symbolic links.

    ``writable``: kernels may write it, and so take the rights of this user away; they come back.
    """
    try:
        if value.startswith("/") or folder is None:
            found = open_path(value, written.has)
        else:
            found = open_below(folder, value)
        try:
            if writable:
                written.ensure_access(found)
            else:
                check_access(found)
        except BaseException:
            found.close()
            raise
        return found
    except LinkRefused as error:
        raise explain_planted_link(name, value, error) from error
    except OSError as error:
        path = value if folder is None else f"{folder.path}/{value}"
        check_scarce(path, error)
        if error.errno == errno.ELOOP and folder is not None:
            raise explain_link(name, value, path) from error
        raise SettingError(
            name, value, f"a path that exists and can be opened ({path}: {error.strerror})"
        ) from error


def check_scarce(path: str, error: OSError) -> None:
    """Check that the path is to blame for ``error``.

    :raises LaunchError: when too many files are open
    """
    if error.errno in SCARCE:
        hint = explain_scarce_files()
        raise LaunchError(f"Could not open {path}: {error.strerror}.", hint) from error


def explain_link(name: str, value: str, path: str) -> SettingError:
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


def explain_planted_link(name: str, value: str, error: LinkRefused) -> SettingError:
    return SettingError(
        name,
        value,
        f"a path without the symbolic link {error.link} (to {error.target}): {error.reason}",
    )
