"""/workspace, the kernel's working directory: the uploads with copy-on-write."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import stat
import tempfile
from collections.abc import Mapping

from gvisor_kernel.guest import identity, linux

UPLOADS = "/mnt/user-data/uploads"
WORKSPACE = "/workspace"
SCRATCH = "/run/gvisor-kernel/workspace"
"""A tmpfs of the size of the disk limit. Everything written to /workspace goes here."""
CONTAINER_INFO = "/container_info.json"
UPPER = f"{SCRATCH}/upper"
OUTPUTS = "/mnt/user-data/outputs"
OWN_OUTPUTS = "outputs"
"""The folder at which the outputs are mounted, in the notebook's folder: in that of /workspace."""
VARIABLE = "GVISOR_KERNEL_WORKSPACE"
"""The host's words about /workspace; see ``kernel/workspace.py``."""
FOLDER, PATHS = "GVISOR_KERNEL_FOLDER", "GVISOR_KERNEL_PATHS"
"""The kernel's first working directory, and digests of paths; see ``kernel/host_paths.py``."""
SHOWN, KEPT, EMPTY, TOLD, HOLDS, NEVER = "outputs", "kept", "empty", "told", "holds", "off"
SCRATCH_ROOTS = ("/home/user", "/run", "/run/gvisor-kernel", SCRATCH, OUTPUTS)
"""tmpfs mounts that only their owner may write to. ``outputs`` is one if it is not kept."""


def give_scratch_to_kernel() -> None:
    """Give the tmpfs roots that a kernel may fill to the kernel's uid, if they are uid 0's."""
    with identity.as_init():
        for path in SCRATCH_ROOTS if identity.kernel_id != identity.INIT_ID else ():
            if os.stat(path).st_uid == identity.INIT_ID:
                os.chown(path, identity.kernel_id, identity.kernel_id)


def mount_workspace() -> None:
    """Mount the uploads at /workspace with copy-on-write.

    The effective uid must be the kernel's: gVisor accesses the lower layer as the mounting user.
    """
    linux.raise_capabilities()
    work = f"{SCRATCH}/work"
    os.makedirs(UPPER, exist_ok=True)
    os.makedirs(work, exist_ok=True)
    if not os.path.lexists(f"{UPLOADS}/{OWN_OUTPUTS}") or _is_folder(f"{UPLOADS}/{OWN_OUTPUTS}"):
        # Before the mount: a folder that is made in an overlay hides one of the uploads, and those
        # of a restored sandbox may have one.
        os.makedirs(f"{UPPER}/{OWN_OUTPUTS}", exist_ok=True)
    options = f"lowerdir={UPLOADS},upperdir={UPPER},workdir={work}"
    linux.mount("overlay", WORKSPACE, "overlay", options)


_place = OWN_OUTPUTS
"""Where the outputs of this run are in /workspace."""


def show_outputs(environment: Mapping[str, str], folder: str) -> str:
    """Mount the outputs beside the notebook if the host wants that; return why that fails.

    ``folder``: the notebook's, in which the kernel starts. The effective uid must be the kernel's.
    Called when no code of the sandbox runs, or only that of a snapshot, which has not been given
    anything to do. The uploads belong to the host, and what is in them may change at any time: so
    no link is followed.
    """
    global _place
    whether = SHOWN in environment.get(VARIABLE, "").split()
    place = os.path.relpath(f"{folder}/{OWN_OUTPUTS}", WORKSPACE)
    try:
        shown = find_shown_outputs()
        if shown == (place if whether else ""):
            return ""
        linux.raise_capabilities()
        if shown:  # in a restored sandbox also where another notebook's folder is
            linux.unmount(f"{WORKSPACE}/{shown}")
        _place = place
        if not whether:
            return ""
        if _place != OWN_OUTPUTS and not os.path.lexists(f"{UPLOADS}/{OWN_OUTPUTS}"):
            with contextlib.suppress(OSError):  # of mount_workspace, which does not know the folder
                os.rmdir(f"{WORKSPACE}/{OWN_OUTPUTS}")
        _bind_outputs(_place.split("/"))
    except OSError as error:
        return f"/workspace/{_place} does not show the outputs: {error}"
    return ""


def _bind_outputs(parts: list[str]) -> None:
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
    target = os.open(WORKSPACE, flags)
    try:
        for part in parts:
            if part is parts[-1]:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, dir_fd=target)
            above, target = target, os.open(part, flags, dir_fd=target)
            os.close(above)
        os.fchdir(target)
        linux.bind(OUTPUTS, ".")
    finally:
        os.chdir("/")
        os.close(target)


def without_outputs(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a kernel that is told to write to the outputs' own path: they are
    not at /workspace/outputs, although the host wants that."""
    words = [word for word in environment.get(VARIABLE, "").split() if word != SHOWN]
    return {**environment, VARIABLE: " ".join(words)}


def find_shown_outputs() -> str:
    """Return the path in /workspace at which the outputs are mounted; empty if they are not."""
    with contextlib.suppress(OSError):
        own = os.lstat(f"{WORKSPACE}/{_place}")
        outputs = os.stat(OUTPUTS)
        if (own.st_dev, own.st_ino) == (outputs.st_dev, outputs.st_ino):
            return _place
    return ""


def name_update(option: str) -> str:
    """Return the command that gives this kernel's kernelspec a setting, on the host."""
    name = "NAME"
    known = contextlib.suppress(OSError, ValueError, TypeError, LookupError)
    with known, open(CONTAINER_INFO, encoding="utf-8") as file:
        name = shlex.quote(str(json.load(file)["kernel"]))
    return f"gvisor-kernel install --update --name {name} {option}"


CACHES = (
    " __pycache__ .ipynb_checkpoints .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis"
    " .matplotlib .numba_cache .jupyter_cache .virtual_documents .npm .tox .nox "
)
"""Names, each between blanks."""
CACHE_TAG = "CACHEDIR.TAG"
"""The file by which programs mark a folder as a cache (bford.info/cachedir)."""


def is_cache(name: str, path: str) -> bool:
    """Return whether a folder is a cache, which is no loss. ``path``: where it can be looked at."""
    return f" {name} " in CACHES or os.path.lexists(f"{path}/{CACHE_TAG}")


def _is_folder(path: str) -> bool:
    return stat.S_ISDIR(os.lstat(path).st_mode)


def refresh_workspace() -> None:
    """Make /workspace list the present uploads, not those of the time of the snapshot.

    gVisor's overlay caches the list of a directory until something is created in it.
    """
    with contextlib.suppress(OSError):
        descriptor, path = tempfile.mkstemp(dir=WORKSPACE)
        os.close(descriptor)
        os.unlink(path)
