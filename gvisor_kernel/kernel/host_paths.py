"""Tells a kernel where the shown folders of the host are, but not what their paths are there.

Front ends send the path that the notebook's folder has on the host (VS Code: ``%cd "…"``), and
notebooks have paths of their author's computer. The kernel translates a path that it is given
(``guest/missed_paths.py``), but must not learn those that nobody has given it. So it gets digests.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from pathlib import Path

from gvisor_kernel.config.settings import DEFAULTS
from gvisor_kernel.config.validators import PROJECT
from gvisor_kernel.kernel.plan import KernelPlan
from gvisor_kernel.kernel.workspace import find_view, find_within
from gvisor_kernel.runtimes.base import Sandbox
from gvisor_kernel.runtimes.mounts.folders import find_project_path
from gvisor_kernel.spec.layout import UPLOADS, WORKSPACE

FOLDER, PATHS = "GVISOR_KERNEL_FOLDER", "GVISOR_KERNEL_PATHS"
"""Variables of a kernel: its working directory, and JSON: ``salt``, ``shown`` (paths in the sandbox
by the digests of those that they have on the host) and ``project``."""
SALT = 16
ROUNDS = 1000
"""Of the digest: whoever has it must try out paths, a thousand times more slowly."""


def describe_paths(plan: KernelPlan, sandbox: Sandbox) -> dict[str, str]:
    """Return the variables for a kernel in ``sandbox``. Looks at the disk: blocks.

    ``project``: "shown"; "found" if there is one that could be shown; else "".
    """
    uploads, folder, within = find_view(sandbox, UPLOADS), plan.request.folder, find_within(sandbox)
    shown = {}
    if uploads is not None:
        shown[uploads.source] = WORKSPACE
        if os.path.realpath(folder) == os.path.normpath(f"{uploads.source}/{within}"):
            shown[str(folder)] = sandbox.view.workdir  # as clients name it, with its links
    project = ""
    if plan.spec.uploads == PROJECT:
        project = "shown" if within else ""
    elif plan.spec.uploads == DEFAULTS.uploads and has_project(folder):
        project = "found"
    salt = secrets.token_bytes(SALT)
    digests = {make_digest(path, salt): inside for path, inside in shown.items()}
    content = {"salt": salt.hex(), "shown": digests, "project": project}
    return {FOLDER: sandbox.view.workdir, PATHS: json.dumps(content)}


def make_digest(path: str, salt: bytes) -> str:
    """Return what stands for a path of the host; ``guest/missed_paths.py`` makes the same."""
    return hashlib.pbkdf2_hmac("sha256", os.fsencode(path), salt, ROUNDS).hex()


def has_project(folder: Path) -> bool:
    """Return whether there is a project around the notebook's folder that is not that itself."""
    found = find_project_path(str(folder))
    return found is not None and found != os.path.realpath(folder)
