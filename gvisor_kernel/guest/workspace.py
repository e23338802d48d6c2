"""/workspace: the uploads, copy-on-write, as the kernel's working directory."""

from __future__ import annotations

import contextlib
import os
import tempfile

from gvisor_kernel.guest import identity, linux

UPLOADS = "/mnt/user-data/uploads"
WORKSPACE = "/workspace"
SCRATCH = "/run/gvisor-kernel/workspace"
"""A tmpfs of the disk limit's size: what is written to /workspace goes here."""
OUTPUTS = "/mnt/user-data/outputs"
SCRATCH_ROOTS = ("/home/user", "/run", "/run/gvisor-kernel", SCRATCH, OUTPUTS)
"""The tmpfs that not everybody may write to; outputs are one where they are kept nowhere."""


def own_scratch() -> None:
    """Let the roots of what a kernel may fill belong to it, where they are uid 0's."""
    with identity.as_init():
        for path in SCRATCH_ROOTS if identity.kernel_id != identity.INIT_ID else ():
            if os.stat(path).st_uid == identity.INIT_ID:
                os.chown(path, identity.kernel_id, identity.kernel_id)


def mount_workspace() -> None:
    """Show the uploads in /workspace, copy-on-write. For a process with a kernel's effective uid:
    gVisor reaches what is below an overlay in the name of who mounted it.
    """
    linux.raise_capabilities()
    upper, work = f"{SCRATCH}/upper", f"{SCRATCH}/work"
    os.makedirs(upper, exist_ok=True)
    os.makedirs(work, exist_ok=True)
    options = f"lowerdir={UPLOADS},upperdir={upper},workdir={work}"
    linux.mount("overlay", WORKSPACE, "overlay", options)


def refresh_workspace() -> None:
    """Let /workspace list what is in the uploads now, not what was when an image was taken.

    gVisor's overlay keeps the list of a folder until something is made in it.
    """
    with contextlib.suppress(OSError):
        descriptor, path = tempfile.mkstemp(dir=WORKSPACE)
        os.close(descriptor)
        os.unlink(path)
