"""What a kernel is told about /workspace: whether /workspace/outputs is its outputs, and what to say
of files that end with the sandbox.

The words of the variable are read by PID 1 (``guest/supervisor.py``) and by the kernel
(``guest/unkept_files.py``).
"""

from __future__ import annotations

import os

from gvisor_kernel.config.settings import DEFAULTS, SandboxSpec
from gvisor_kernel.host.folders import open_real, reopen
from gvisor_kernel.runtimes.base import MountView, Sandbox
from gvisor_kernel.spec.layout import OUTPUTS, UPLOADS

VARIABLE = "GVISOR_KERNEL_WORKSPACE"
SHOWN, KEPT, EMPTY = "outputs", "kept", "empty"
"""``SHOWN``: the outputs are at /workspace/outputs. ``KEPT``: they are a folder of the host.
``EMPTY``: no folder is shown, as the notebook lies in a home or beside keys."""
NAME = "outputs"


def describe_workspace(spec: SandboxSpec, sandbox: Sandbox) -> dict[str, str]:
    """Return the variable for a kernel in a sandbox. Looks at the disk: blocks."""
    uploads = find_view(sandbox, UPLOADS)
    outputs = find_view(sandbox, OUTPUTS)
    words = []
    if shows_outputs(uploads, outputs):
        words.append(SHOWN)
    if outputs is not None:
        words.append(KEPT)
    if uploads is None and spec.uploads == DEFAULTS.uploads:
        words.append(EMPTY)
    return {VARIABLE: " ".join(words)}


def shows_outputs(uploads: MountView | None, outputs: MountView | None) -> bool:
    """Return whether /workspace/outputs can be the outputs.

    It can if the uploads have nothing of that name, or this very folder. Another folder of that
    name stays what it is: a person's files are not hidden.
    """
    if uploads is None:
        return True
    try:
        folder = (
            open_real(uploads.source)
            if uploads.identity is None
            else reopen(uploads.source, uploads.identity)
        )
        with folder:
            status = os.stat(NAME, dir_fd=folder.fd, follow_symlinks=False)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    if outputs is None:
        return False
    if outputs.identity is None:  # a copy in a Docker engine
        return outputs.source == f"{uploads.source.rstrip('/')}/{NAME}"
    return (status.st_dev, status.st_ino) == tuple(outputs.identity)


def find_view(sandbox: Sandbox, target: str) -> MountView | None:
    """Return the folder that is mounted at ``target``; None if that is in the sandbox's memory, or
    is an empty folder of its state directory."""
    found = next((view for view in sandbox.mounts if view.target == target), None)
    if found is None or os.path.dirname(found.source) == os.path.realpath(sandbox.directory):
        return None
    return found
