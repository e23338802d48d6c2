"""Which image a plan may start from, and the sandbox that is restored from it.

All of it blocks, for a worker thread. Whatever is wrong with an image costs a cold start: it is
discarded with the reason in the log, and nothing is raised.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from gvisor_kernel.bridge import ImageRun
from gvisor_kernel.errors import SnapshotError
from gvisor_kernel.plans import KernelPlan, full_request, kernel_argv
from gvisor_kernel.runtimes.base import Runtime, Sandbox
from gvisor_kernel.snapshots.facts import find_host_facts
from gvisor_kernel.snapshots.key import ImageKey, KernelFacts, make_key, split_environment
from gvisor_kernel.snapshots.renewal import find_renewal
from gvisor_kernel.snapshots.store import Meta, Store
from gvisor_kernel.spec.layout import WORKSPACE
from gvisor_kernel.trace import step

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Restored:
    """A sandbox with a live kernel in it, which does not know yet whose it is."""

    sandbox: Sandbox
    key: ImageKey
    run: ImageRun

    def discard(self, reason: str) -> None:
        """Let no other kernel start from this image. Blocks."""
        Store.open().discard(self.key.name, reason)


def find_key(runtime: Runtime, plan: KernelPlan) -> tuple[ImageKey, KernelPlan]:
    """The key of the images that ``plan`` may start from, and the plan of a kernel to take one of.

    That one lacks the variables that a restored kernel is told later. Raises as ``Runtime.start``.
    """
    names = plan.spec.environment
    passed = {n: plan.request.environment[n] for n in names if n in plan.request.environment}
    early, later = split_environment(
        {**passed, **plan.environment}, names, sets_later=not plan.argv and _may_be_direct(plan)
    )
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


def _describe_run(meta: Meta) -> ImageRun:
    renewal = find_renewal(meta.facts)
    return ImageRun(meta.run, meta.sandbox_key, renewal.code, renewal.always)


def _without(environment: dict[str, str], names: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in names}


def _may_be_direct(plan: KernelPlan) -> bool:
    """Only a kernel that speaks frames itself can be told its environment when it is restored."""
    return plan.spec.kernel_mode == "auto"


def restore(
    runtime: Runtime,
    plan: KernelPlan,
    take_spare: Callable[[ImageKey], Sandbox | None] | None = None,
) -> Restored | str:
    """A sandbox restored from an image that fits ``plan``; or why there is none.

    ``take_spare``: asked for one that was restored from the image of that key before.
    Raises what ``Runtime.start`` raises for causes that a cold start would have as well.
    """
    try:
        store = Store.open()
    except SnapshotError as error:
        log.warning("Kernels start without images: %s", error)
        return str(error)
    key, _ = find_key(runtime, plan)
    step("image's key made")
    with store.use(key.name) as image:
        if image is None:
            return "none that fits"
        reason = image.meta.manifest.find_change()
        step("image compared with its files")
        if reason is None:
            try:
                sandbox = take_spare(key) if take_spare is not None else None
                sandbox = sandbox or runtime.start(plan.spec, full_request(plan), image.files)
                return Restored(sandbox, key, _describe_run(image.meta))
            except SnapshotError as error:
                reason = str(error)
    store.discard(key.name, reason)
    return reason
