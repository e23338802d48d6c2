"""/workspace, the kernel's working directory: the uploads with copy-on-write."""

from __future__ import annotations

import contextlib
import os
import tempfile

from gvisor_kernel.guest import identity, linux

UPLOADS = "/mnt/user-data/uploads"
WORKSPACE = "/workspace"
SCRATCH = "/run/gvisor-kernel/workspace"
"""A tmpfs of the size of the disk limit. Everything written to /workspace goes here."""
OUTPUTS = "/mnt/user-data/outputs"
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
    upper, work = f"{SCRATCH}/upper", f"{SCRATCH}/work"
    os.makedirs(upper, exist_ok=True)
    os.makedirs(work, exist_ok=True)
    options = f"lowerdir={UPLOADS},upperdir={upper},workdir={work}"
    linux.mount("overlay", WORKSPACE, "overlay", options)


def refresh_workspace() -> None:
    """Make /workspace list the present uploads, not those of the time of the snapshot.

    gVisor's overlay caches the list of a directory until something is created in it.
    """
    with contextlib.suppress(OSError):
        descriptor, path = tempfile.mkstemp(dir=WORKSPACE)
        os.close(descriptor)
        os.unlink(path)
