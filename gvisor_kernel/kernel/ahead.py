"""Makes a start quick before somebody asks for it: the snapshot, and then a spare.

Both are made beside this: by ``snapshot_queue`` in a process of the lowest priority, by
``spare_keeper`` in a thread.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from gvisor_kernel.kernel.plan import KernelPlan
from gvisor_kernel.kernel.restore import find_obstacle, has_snapshot
from gvisor_kernel.kernel.snapshot_queue import SnapshotQueue
from gvisor_kernel.kernel.spare_keeper import SpareKeeper
from gvisor_kernel.runtimes import get_runtime

Step: TypeAlias = Literal["nothing", "snapshot", "spare"]


def may_prepare(plan: KernelPlan) -> bool:
    """Return whether kernels of ``plan`` start from snapshots.

    :raises GvisorKernelError: when they cannot start at all
    """
    return (
        plan.spec.snapshot != "off"
        and get_runtime(plan.spec.runtime).supports_snapshots
        and find_obstacle(plan) is None
    )


def prepare(plan: KernelPlan) -> Step:
    """Have what is missing for a start by ``plan`` made; return what comes first. Blocks for
    milliseconds.

    :raises GvisorKernelError: when such a kernel cannot be started, or the store cannot be used
    """
    if not may_prepare(plan):
        return "nothing"
    if not has_snapshot(plan):
        SnapshotQueue.instance().request(plan, on_made=lambda: SpareKeeper.instance().prepare(plan))
        return "snapshot"
    if not plan.spec.spare:
        return "nothing"
    SpareKeeper.instance().prepare(plan)
    return "spare"
