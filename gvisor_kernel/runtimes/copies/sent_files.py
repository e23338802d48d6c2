"""Files that are sent to an engine that mounts nothing of this machine, and their places there.

``contents.py`` makes the archive of it. What only one engine gets is added there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import gvisor_kernel
from gvisor_kernel.environments.environment import Base
from gvisor_kernel.host.folders import open_path
from gvisor_kernel.runtimes.copies.contents import Contents
from gvisor_kernel.runtimes.mounts.covers import Cover, find_jupyter_covers, identify
from gvisor_kernel.runtimes.mounts.folders import Inputs
from gvisor_kernel.runtimes.mounts.plan import GUEST_PARTS, check_source, open_packages
from gvisor_kernel.runtimes.state.beginning import Beginning
from gvisor_kernel.spec.identity import format_info
from gvisor_kernel.spec.layout import (
    CONTAINER_INFO,
    ENVIRONMENT,
    GUEST,
    GUEST_PART,
    LAYOUT,
    OUTPUTS,
    UPLOADS,
    Bind,
    Tmpfs,
    mount_part,
    scratch_mounts,
)

EMPTY = [place.part for target, place in LAYOUT.items() if target not in (CONTAINER_INFO, OUTPUTS)]
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
        contents.folders.append((f"{GUEST_PART}/gvisor_kernel/{part}", opened, ""))
    add_inputs(contents, begun.inputs, jupyters)
    packages = open_packages(begun.spec, base)
    if packages is not None:
        opened = held.enter_context(open_path(str(packages.tree)))
        place = f"{GUEST_PART}{ENVIRONMENT.removeprefix(GUEST)}"  # where the guest is
        contents.folders.append((place, opened, "packages"))
    return contents


def add_inputs(contents: Contents, inputs: Inputs, jupyters: Sequence[Cover]) -> None:
    """Add uploads, skills and extra mounts.

    :raises SettingError: when an extra mount shows one of Jupyter's own folders
    """
    if inputs.uploads is not None:
        contents.folders.append((LAYOUT[UPLOADS].part, inputs.uploads, "uploads"))
    for target, folder in inputs.skills.items():
        contents.folders.append((LAYOUT[target].part, folder, "skills"))
    for i, folder in enumerate(inputs.mounts):
        check_source(folder.path, jupyters)
        contents.folders.append((mount_part(i), folder, "mounts"))


def describe_sandbox(begun: Beginning, *, keeps_outputs: bool) -> str:
    """Return the content of /container_info.json. ``keeps_outputs``: they outlive the sandbox."""
    spec = begun.spec
    layout = [
        Tmpfs(OUTPUTS, spec.disk_limit)
        if target == OUTPUTS and not keeps_outputs
        else Bind("", target, place.read_only)
        for target, place in LAYOUT.items()
    ]
    return format_info(
        begun.identity,
        spec,
        kernel_name=begun.request.kernel_name,
        created=begun.record.created,
        versions={"gvisor-kernel": gvisor_kernel.__version__},
        mounts=[*layout, *scratch_mounts(spec)],
    )
