"""Kernels that outlive the process that started them: whose they are then, and how a server starts
them asleep, as saved kernels, which their first request wakes.

On the server's loop.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

from jupyter_core.utils import ensure_async
from traitlets.config import Config

from gvisor_kernel.config.settings import SandboxSpec, find_entry
from gvisor_kernel.kernel.branches import Branch, handing, remove_all
from gvisor_kernel.kernel.saved_kernel import goes_on_always, refuse_runtime
from gvisor_kernel.kernel.session import SandboxedKernel
from gvisor_kernel.runtimes.state.records import Keeper


class Resumes(NamedTuple):
    """The id of a kernel that starts only if it can take over a saved one, the directory of that
    if it is known, and what its start waits for."""

    kernel_id: str
    directory: Path | None = None
    starts: asyncio.Future[None] | None = None


RESUMES_ONLY: ContextVar[Resumes | None] = ContextVar("resumes_only", default=None)
"""What the task starts."""


def find_keeper(manager: Any, config: Config, spec: SandboxSpec) -> tuple[Keeper, bool]:
    """Return who may take over what is saved of ``manager``'s kernel, and whether it is also saved
    when this process ends without ending it.

    :raises SnapshotError: when a program wants that, and the runtime cannot do it
    """
    if getattr(manager, "lasting", False):
        if find_entry(spec.runtime).save is None:
            raise refuse_runtime(spec.runtime)
        return "program", True
    if getattr(manager, "parent", None) is None:
        return "nobody", False
    lasts = config.get("GVisorServer", {}).get("hibernate_on_shutdown")
    return "server", goes_on_always(spec) if lasts is None else bool(lasts)


async def list_asleep(manager: Any, resumes: Resumes, name: str, folder: str) -> None:
    """Let ``manager``, a server's, have a saved kernel in its list. One that has pending kernels
    lists it before it starts.

    :raises Exception: whatever a manager raises; it has no such kernel then
    """
    path = os.path.relpath(folder, os.path.realpath(manager.root_dir))
    RESUMES_ONLY.set(resumes)
    starting = {"kernel_id": resumes.kernel_id, "kernel_name": name, "path": path}
    try:
        await ensure_async(manager.start_kernel(**starting))
    except BaseException:
        # jupyter_client keeps its id, and could not shut any kernel down then
        getattr(manager, "_pending_kernels", {}).pop(resumes.kernel_id, None)
        raise
    finally:
        RESUMES_ONLY.set(None)


def show_state(taken: Any) -> None:
    """Let a kernel that was started asleep have its state, of which no message tells."""
    kernel = taken.provisioner.sandboxed_kernel
    # A cell that ran as the server was killed goes on.
    taken.execution_state = "busy" if kernel and kernel.hibernation.works else "idle"


async def start_branches(
    manager: Any, kernel_id: str, kernel: SandboxedKernel, wanted: Sequence[Branch]
) -> None:
    """Let ``manager`` have branches of its kernel ``kernel_id``, each asleep.

    :raises GvisorKernelError: see ``Checkpoints.branch``, or when one cannot be taken over; those
        after it are not started then
    """
    name, facts = manager.get_kernel(kernel_id).kernel_name, kernel.describe()
    folder = str(facts.folder) if facts is not None else manager.root_dir
    branches = await kernel.checkpoints.branch(wanted)
    left = list(branches)
    try:
        for branch, saved in zip(wanted, branches, strict=True):
            left.remove(saved)
            with handing(branch, saved):
                await list_asleep(manager, Resumes(branch.kernel_id), name, folder)
                show_state(manager.get_kernel(branch.kernel_id))
    finally:
        remove_all(left)
