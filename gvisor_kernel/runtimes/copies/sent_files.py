"""Files that are sent to an engine that mounts nothing of this machine, and their places there.

``contents.py`` makes the archive of it. What only one engine gets is added there.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import gvisor_kernel
from gvisor_kernel.environments.environment import Base
from gvisor_kernel.host.folders import open_path
from gvisor_kernel.runtimes.copies.contents import Contents
from gvisor_kernel.runtimes.mounts.covers import find_jupyter_covers, identify
from gvisor_kernel.runtimes.mounts.plan import GUEST_PARTS, check_source, open_packages
from gvisor_kernel.runtimes.state.beginning import Beginning
from gvisor_kernel.spec.info import format_info
from gvisor_kernel.spec.layout import (
    ENVIRONMENT,
    GUEST,
    LAYOUT,
    OUTPUTS,
    Bind,
    Tmpfs,
    scratch_mounts,
)

EMPTY = ("uploads", "skills/public", "skills/examples", "transcripts")
"""Folders that are there also where nothing is sent to them."""


def find_contents(
    begun: Beginning, base: Base, etc: Mapping[str, str], held: ExitStack
) -> Contents:
    """Return the guest's code, files of /etc, uploads, skills, packages and extra mounts.

    ``held`` closes the folders that are opened here.

    :raises SettingError: when a folder cannot be shown
    :raises GvisorKernelError: when the packages do not fit ``base``
    """
    jupyters = find_jupyter_covers(())
    contents = Contents(empty=list(EMPTY), covered=identify(jupyters))
    for name, text in etc.items():
        contents.texts[f"etc/{name}"] = text
    package = Path(gvisor_kernel.__file__).parent
    for part in GUEST_PARTS:
        opened = held.enter_context(open_path(str(package / part)))
        contents.folders.append((f"guest/gvisor_kernel/{part}", opened, ""))
    for target, folder in begun.inputs.skills.items():
        contents.folders.append((f"skills/{target.rpartition('/')[2]}", folder, "skills"))
    if begun.inputs.uploads is not None:
        contents.folders.append(("uploads", begun.inputs.uploads, "uploads"))
    packages = open_packages(begun.spec, base)
    if packages is not None:
        opened = held.enter_context(open_path(str(packages.tree)))
        place = f"guest{ENVIRONMENT.removeprefix(GUEST)}"  # the part of it that is mounted there
        contents.folders.append((place, opened, "packages"))
    for (place, _), folder in zip(begun.extra, begun.inputs.mounts, strict=True):
        check_source(folder.path, jupyters)
        contents.folders.append((place, folder, "mounts"))
    return contents


def describe_sandbox(begun: Beginning, *, keeps_outputs: bool) -> str:
    """Return the content of /container_info.json. ``keeps_outputs``: they outlive the sandbox."""
    spec = begun.spec
    layout = [
        Tmpfs(OUTPUTS, spec.disk_limit)
        if target == OUTPUTS and not keeps_outputs
        else Bind("", target, read_only=target != OUTPUTS)
        for target in LAYOUT
    ]
    return format_info(
        begun.identity,
        spec,
        kernel_name=begun.request.kernel_name,
        created=begun.record.created,
        versions={"gvisor-kernel": gvisor_kernel.__version__},
        mounts=[*layout, *scratch_mounts(spec)],
    )
