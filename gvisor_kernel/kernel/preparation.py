"""Makes a start quick before somebody asks for it: the snapshot, and then a spare.

Both are made beside this: by ``snapshot_queue`` in a process of the lowest priority, by
``spare_keeper`` in a thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal, TypeAlias

from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.kernel.learned_modules import find_outdated, with_learned
from gvisor_kernel.kernel.plan import KernelPlan
from gvisor_kernel.kernel.restore import Restored, find_obstacle, find_snapshot, read_meta
from gvisor_kernel.kernel.snapshot_queue import SnapshotQueue
from gvisor_kernel.kernel.spare_keeper import SpareKeeper
from gvisor_kernel.runtimes import get_runtime
from gvisor_kernel.runtimes.base import Sandbox, SnapshotRuntime

log = logging.getLogger(__name__)

Step: TypeAlias = Literal["nothing", "snapshot", "spare"]


def may_prepare(plan: KernelPlan) -> bool:
    """Return whether kernels of ``plan`` start from snapshots.

    :raises GvisorKernelError: when they cannot start at all
    """
    return (
        plan.spec.snapshot != "off"
        and isinstance(get_runtime(plan.spec.runtime), SnapshotRuntime)
        and find_obstacle(plan) is None
    )


def prepare(plan: KernelPlan) -> Step:
    """Have what is missing for a start by ``plan`` made; return what comes first. Blocks for
    milliseconds.

    :raises GvisorKernelError: when such a kernel cannot be started, or the store cannot be used
    """
    if not may_prepare(plan):
        return "nothing"
    if not renew(plan):
        return "snapshot"
    if not plan.spec.spare:
        return "nothing"
    SpareKeeper.instance().prepare(plan)
    return "spare"


def renew(plan: KernelPlan) -> bool:
    """Have the snapshot for ``plan`` made if there is none that fits, or if it should import other
    modules; return whether there is one that fits.

    :raises GvisorKernelError: see ``prepare``
    """
    found = find_snapshot(plan)
    wanted = with_learned(plan) if found is None else find_outdated(plan, read_meta(found))
    if wanted is not None:
        SnapshotQueue.instance().request(
            wanted, on_made=lambda: SpareKeeper.instance().prepare(plan)
        )
    return found is not None


def request_snapshot(
    plan: KernelPlan, sandbox: Sandbox | None, is_wanted: Callable[[], bool]
) -> None:
    """Have a snapshot made after a cold start in ``sandbox``; see ``SnapshotQueue.request``."""
    SnapshotQueue.instance().request(with_learned(plan), is_wanted, sandbox=sandbox)


def renew_outdated(plan: KernelPlan, restored: Restored, is_wanted: Callable[[], bool]) -> None:
    """Have the snapshot of ``restored`` made anew if it should import other modules. Raises
    nothing."""
    try:
        wanted = find_outdated(plan, restored.preloaded)
    except GvisorKernelError as error:
        log.info("The snapshot is not made anew: %s", error)
        return
    if wanted is not None:
        SnapshotQueue.instance().request(wanted, is_wanted, sandbox=restored.sandbox)
