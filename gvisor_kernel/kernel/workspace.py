"""Texts about /workspace: those for a kernel, and those about files that end with the sandbox.

The words of the variable are read by PID 1 (``guest/supervisor.py``) and by the kernel
(``guest/cell_hooks.py``).
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from gvisor_kernel.config import settings
from gvisor_kernel.config.settings import DEFAULTS, NEW_FILES, SandboxSpec
from gvisor_kernel.config.validators import PROJECT
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.host.folders import open_real, reopen
from gvisor_kernel.kernel.facts import Ended, KernelEvents, KernelFacts, Left
from gvisor_kernel.kernel.lost_files import describe_lost, note_lost
from gvisor_kernel.kernel.plan import KernelPlan
from gvisor_kernel.link import RemoteProtocolError
from gvisor_kernel.link.service_messages import decode_service
from gvisor_kernel.runtimes import get_runtime
from gvisor_kernel.runtimes.base import MountView, Sandbox
from gvisor_kernel.spec.layout import OUTPUTS, UPLOADS, WORKSPACE

VARIABLE = "GVISOR_KERNEL_WORKSPACE"
SHOWN, KEPT, EMPTY, TOLD, HOLDS, NEVER = "outputs", "kept", "empty", "told", "holds", "off"
"""``SHOWN``: the outputs are at /workspace/outputs. ``KEPT``: they are a folder of the host.
``EMPTY``: no folder is shown, as the notebook lies in a home or beside keys. ``TOLD``: a person is
told of files that are not kept. ``HOLDS``: PID 1 waits with the end of a run until the host has
read files. ``NEVER``: nothing is applied."""
NAME = "outputs"
OWN_OUTPUTS = (
    "the notebook's folder has another file or folder called outputs: /workspace/outputs is a copy"
    " of that, and what is kept is written to /mnt/user-data/outputs"
)
UNSEEN = (
    "/workspace has so many entries that not all were looked at: what was written there, and is not"
    " in the folder or in outputs/, is lost with the sandbox"
)
MAX_LEFT, MAX_NAME, MAX_COUNT = 10, 100, 1_000_000
"""Limits of the files that are named at the end: their number, a name's characters, the count."""


def describe_workspace(spec: SandboxSpec, sandbox: Sandbox, *, tells: bool) -> dict[str, str]:
    """Return the variable for a kernel in a sandbox. Looks at the disk: blocks.

    ``tells``: whether a person uses the kernel, who expects files beside the notebook.
    """
    uploads = find_view(sandbox, UPLOADS)
    outputs = find_view(sandbox, OUTPUTS)
    own = get_runtime(spec.runtime).find_own_folders(spec)
    words = []
    if shows_outputs(uploads, outputs, find_within(sandbox)):
        words.append(SHOWN)
    if outputs is not None or (spec.outputs is not None and OUTPUTS in own):
        words.append(KEPT)
    if uploads is None and spec.uploads in (DEFAULTS.uploads, PROJECT) and UPLOADS not in own:
        words.append(EMPTY)
    if spec.apply == NEW_FILES and uploads is not None:
        words.append(HOLDS)
    elif tells and spec.uploads is not None:
        words.append(TOLD)
    if spec.apply == settings.NEVER:
        words.append(NEVER)
    return {VARIABLE: " ".join(words), **describe_lost(uploads if tells else None)}


def find_within(sandbox: Sandbox) -> str:
    """Return the notebook's folder as a path in the uploads; "" if it is that, or not in them."""
    return sandbox.view.workdir.removeprefix(WORKSPACE).lstrip("/")


def shows_outputs(uploads: MountView | None, outputs: MountView | None, within: str = "") -> bool:
    """Return whether the outputs can be mounted in /workspace, in the notebook's folder.

    They can if that has nothing of that name, or this very folder. Another folder of that name
    stays what it is: a person's files are not hidden. ``within``: see ``find_within``.
    """
    name = f"{within}/{NAME}" if within else NAME
    if uploads is None:
        return True
    try:
        folder = (
            open_real(uploads.source)
            if uploads.identity is None
            else reopen(uploads.source, uploads.identity)
        )
        with folder:
            status = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    if outputs is None:
        return False
    if outputs.identity is None:  # a copy in a Docker engine
        return outputs.source == f"{uploads.source.rstrip('/')}/{name}"
    return (status.st_dev, status.st_ino) == tuple(outputs.identity)


def hides_uploads(spec: SandboxSpec, folder: Path) -> bool:
    """Return whether the uploads have a file or link of the name of the folder for outputs, which a
    restored sandbox would not show. Only for the choice of a snapshot."""
    if spec.uploads in (None, PROJECT):
        return False
    try:
        mode = (folder / spec.uploads / NAME).lstat().st_mode
    except OSError:
        return False
    return not stat.S_ISDIR(mode)


def find_view(sandbox: Sandbox, target: str) -> MountView | None:
    """Return the folder that is mounted at ``target``; None if that is in the sandbox's memory, or
    is an empty folder of its state directory."""
    found = next((view for view in sandbox.view.mounts if view.target == target), None)
    if found is None or Path(found.source).parent == sandbox.directory.resolve():
        return None
    return found


def read_left(part: bytes) -> dict[str, Any] | None:
    """Return what PID 1 has said of files at the end of a run; None if it said nothing.

    ``part``: its message. Code of the sandbox may have chosen all of it.
    """
    try:
        content = decode_service(part).content
    except RemoteProtocolError:
        return None
    return content if isinstance(content.get("entries"), list) else None


def list_left(content: Mapping[str, Any]) -> Left | None:
    """Return the files that PID 1 has named; None if that is no list of files."""
    entries, total = content["entries"], content.get("total")
    if type(total) is not int or total < 0:
        return None
    paths = [entry[0] for entry in entries if isinstance(entry, list) and entry]
    names = tuple(path for path in paths if isinstance(path, str))[:MAX_LEFT]
    return Left(max(total, len(names)), content.get("more") is not False, names)


def describe_left(left: Left, apply: str = settings.ASK) -> str:
    """Return words about the files that have ended with a sandbox; "" if there is none. ``apply``:
    the kernel's setting."""
    if not left.paths:
        return UNSEEN if left.more else ""
    shown = [_make_printable(name) for name in left.paths[:MAX_LEFT]]
    rest = max(0, min(left.total, MAX_COUNT) - len(shown))
    least = "at least " if left.more else ""
    more = f" and {least}{rest} more" if rest else ""
    return (
        f"files in /workspace are lost with the sandbox: {', '.join(shown)}{more}. To keep such"
        f" files, write them to outputs/{_OTHER_WAYS[apply]}."
    )


_OTHER_WAYS = {
    settings.ASK: ', apply them before the end (JupyterLab: Changes), or set apply to "new files"',
    NEW_FILES: ", or apply them before the end (JupyterLab: Changes)",
    settings.NEVER: "",
}


def _make_printable(name: str) -> str:
    text = "".join(char if char.isprintable() else "?" for char in name)
    return text if len(text) <= MAX_NAME else f"{text[:MAX_NAME]}…"


def find_host_path(sandbox: Sandbox, path: str) -> Path | None:
    """Return the host's path of the mounted file that the kernel knows as ``path``.

    None if it is not mounted, or if a symbolic link leads out of the mount.
    """
    if "\0" in path:
        return None
    inside = Path(sandbox.view.workdir, path)
    if ".." in inside.parts:
        return None
    views = list(sandbox.view.mounts)
    views += [MountView(view.source, WORKSPACE, True) for view in views if view.target == UPLOADS]
    for view in views:
        if inside.is_relative_to(view.target):
            try:
                root = Path(view.source).resolve(strict=True)
                found = (root / inside.relative_to(view.target)).resolve(strict=True)
            except (OSError, RuntimeError):
                continue
            if found.is_relative_to(root):
                return found
    return None


log = logging.getLogger(__name__)

JudgeLeft: TypeAlias = Callable[[Sandbox, Mapping[str, Any]], Left]
"""Returns which files end with a sandbox, of what it has said."""


def tell_end(
    plan: KernelPlan,
    facts: KernelFacts,
    sandbox: Sandbox,
    part: bytes,
    judge_left: JudgeLeft | None,
    logs: bool,
) -> None:
    """Tell the end of ``sandbox``. ``part``: what it has said of its files. Raises nothing.

    ``logs``: whether files that are lost are in the log, too.
    """
    request, left = plan.request, None
    try:
        content = read_left(part)
        if content is not None and plan.spec.uploads is not None:
            left = list_left(content) if judge_left is None else judge_left(sandbox, content)
    except GvisorKernelError as error:  # it says what cannot be
        log.info("%s: %s", request.kernel_name, error)
    try:
        if plan.spec.apply == NEW_FILES and facts.last_death is not None and logs:
            log.warning(
                "%s in %s: the kernel died, so no new file was written to the folder",
                *(request.kernel_name, facts.folder),
            )
        words = describe_left(left, plan.spec.apply) if left is not None else ""
        if left is not None:
            note_lost(find_view(sandbox, UPLOADS), left.paths)
        if words and logs:
            log.warning("%s in %s: %s", request.kernel_name, facts.folder, words)
        ended = Ended(request.kernel_id, request.kernel_name, facts, left)
        KernelEvents.instance().tell_end(ended)
    except Exception:
        log.exception("The end of a sandbox could not be told")
