"""Tells a kernel where the shown folders of the host are, but not what their paths are there.

Front ends and notebooks name a folder by its path on the host (VS Code: ``%cd "…"``). The kernel
translates a path that it is given (``guest/missed_paths.py``), and has only digests of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets

from gvisor_kernel.kernel.plan import KernelPlan
from gvisor_kernel.kernel.workspace import find_view
from gvisor_kernel.runtimes.base import Sandbox
from gvisor_kernel.spec.layout import UPLOADS, WORKSPACE

FOLDER, PATHS = "GVISOR_KERNEL_FOLDER", "GVISOR_KERNEL_PATHS"
"""Variables of a kernel: its first working directory, and JSON: a salt, and paths in the sandbox by
the digests of those on the host."""
ROUNDS = 1000
"""Of a digest: whoever tries out paths is as many times slower."""


def describe_paths(plan: KernelPlan, sandbox: Sandbox) -> dict[str, str]:
    """Return both variables for a kernel in ``sandbox``. Looks at the disk: blocks."""
    uploads, folder, workdir = (
        find_view(sandbox, UPLOADS),
        plan.request.folder,
        sandbox.view.workdir,
    )
    shown = {}
    if uploads is not None:
        shown[uploads.source] = WORKSPACE
        if os.path.realpath(folder) == uploads.source + workdir.removeprefix(WORKSPACE):
            shown[str(folder)] = workdir  # as clients name it, with its links
    salt = secrets.token_bytes(16)
    digests = {make_digest(path, salt): inside for path, inside in shown.items()}
    return {FOLDER: workdir, PATHS: json.dumps([salt.hex(), digests])}


def make_digest(path: str, salt: bytes) -> str:
    """Return what stands for a path of the host; the kernel makes the same."""
    return hashlib.pbkdf2_hmac("sha256", os.fsencode(path), salt, ROUNDS).hex()
