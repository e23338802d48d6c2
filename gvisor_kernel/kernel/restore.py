"""Which image a plan may start from, and the sandbox that is restored from it.

All of it blocks, for a worker thread. Whatever is wrong with an image costs a cold start: it is
discarded with the reason in the log, and nothing is raised.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from gvisor_kernel.bridge import SnapshotRun
from gvisor_kernel.errors import NoSnapshot, SnapshotError
from gvisor_kernel.kernel.plan import KernelPlan, full_request, kernel_argv
from gvisor_kernel.runtimes.base import Runtime, Sandbox
from gvisor_kernel.runtimes.mounts.folders import are_uploads_covered
from gvisor_kernel.snapshots.host_facts import find_host_facts
from gvisor_kernel.snapshots.key import (
    IMPORTED,
    KernelFacts,
    SnapshotKey,
    make_key,
    split_environment,
)
from gvisor_kernel.snapshots.reseed import find_renewal
from gvisor_kernel.snapshots.store import Meta, Store
from gvisor_kernel.spec.layout import WORKSPACE
from gvisor_kernel.tracing import step

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Restored:
    """A sandbox with a live kernel in it, which does not know yet whose it is."""

    sandbox: Sandbox
    key: SnapshotKey
    run: SnapshotRun

    def discard(self, reason: str) -> None:
        """Let no other kernel start from this image. Blocks."""
        Store.open().discard(self.key.name, reason)


def find_key(runtime: Runtime, plan: KernelPlan) -> tuple[SnapshotKey, KernelPlan]:
    """The key of the images that ``plan`` may start from, and the plan of a kernel to take one of.

    That one lacks the variables that a restored kernel is told later. Raises as ``Runtime.start``.
    """
    early, later = _split(plan)
    kernel = KernelFacts(
        argv=kernel_argv(plan),
        environment=early,
        workdir=WORKSPACE,
        kernel_mode=plan.spec.kernel_mode,
        preload=plan.spec.preload,
    )
    key = make_key(runtime.describe(plan.spec, full_request(plan)), kernel, find_host_facts())
    bare = replace(
        plan,
        request=replace(plan.request, environment=_without(plan.request.environment, later)),
        environment=_without(plan.environment, later),
    )
    return key, bare


def find_obstacle(plan: KernelPlan) -> str | None:
    """Why no kernel of ``plan`` is imaged or restored, whatever images there are; None if it may.

    A variable that a setting passes on is in no image, so a restored kernel has to be told it. And
    mounts of a restored sandbox are those of its image. Raises SettingError.
    """
    if are_uploads_covered(plan.spec, plan.request):
        return "Jupyter's own files are among the uploads, where they are not shown"
    _, later = _split(plan)
    if later and not _can_be_told(plan):
        return f"{_name(later)} is passed on, which this kernel could not be told when restored"
    late = IMPORTED.intersection(later)
    if late and plan.spec.preload:
        return f"{_name(late)} is passed on, which modules of preload may read when imported"
    return None


def _split(plan: KernelPlan) -> tuple[dict[str, str], dict[str, str]]:
    names = plan.spec.environment
    passed = {n: plan.request.environment[n] for n in names if n in plan.request.environment}
    return split_environment({**passed, **plan.environment}, (*names, *plan.substituted))


def _name(names: Collection[str]) -> str:
    first = min(names)
    return first if len(names) == 1 else f"{first} (and {len(names) - 1} more)"


def _describe_run(meta: Meta, plan: KernelPlan) -> SnapshotRun:
    renewal = find_renewal(meta.facts)
    _, later = _split(plan)
    return SnapshotRun(meta.run, meta.sandbox_key, renewal.code, renewal.always, bool(later))


def _without(environment: dict[str, str], names: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in names}


def _can_be_told(plan: KernelPlan) -> bool:
    """Whether a restored kernel can set its variables: only one that speaks frames itself."""
    return not plan.argv and plan.spec.kernel_mode == "auto"


def restore(
    runtime: Runtime,
    plan: KernelPlan,
    take_spare: Callable[[SnapshotKey], Sandbox | None] | None = None,
) -> Restored:
    """A sandbox restored from an image that fits ``plan``. Blocks.

    ``take_spare``: asked for one that was restored from the image of that key before.

    :raises NoSnapshot: there is none; its fact says why.
    :raises GvisorKernelError: what ``Runtime.start`` raises for causes that a cold start would
        have as well.
    """
    try:
        store = Store.open()
    except SnapshotError as error:
        log.warning("Kernels start without images: %s", error)
        raise NoSnapshot(str(error)) from error
    key, _ = find_key(runtime, plan)
    step("image's key made")
    with store.use(key.name) as image:
        if image is None:
            raise NoSnapshot("none that fits")
        reason = image.meta.manifest.find_change()
        step("image compared with its files")
        if reason is None:
            try:
                sandbox = take_spare(key) if take_spare is not None else None
                sandbox = sandbox or runtime.start(plan.spec, full_request(plan), image.files)
                return Restored(sandbox, key, _describe_run(image.meta, plan))
            except SnapshotError as error:
                reason = str(error)
    store.discard(key.name, reason)
    raise NoSnapshot(reason)
