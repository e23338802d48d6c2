"""/workspace: the uploads, copy-on-write, as the kernel's working directory."""

from __future__ import annotations

import contextlib
import os
import tempfile

from gvisor_kernel.guest import linux

UPLOADS = "/mnt/user-data/uploads"
WORKSPACE = "/workspace"
SCRATCH = "/run/gvisor-kernel/workspace"
"""A tmpfs of the disk limit's size: what is written to /workspace goes here."""


def mount_workspace() -> None:
    """Show the uploads in /workspace, copy-on-write."""
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
