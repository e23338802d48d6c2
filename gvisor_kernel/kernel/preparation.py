"""Makes a start quick before somebody asks for it: the snapshot, and then a spare.

The snapshot is made by ``snapshot_queue`` in a process of the lowest priority. A spare is a sandbox
that was restored ahead for the next start of the same kernel, by a thread. There is one at most. It
is made after the second start from a snapshot, or earlier for a start that a server expects. It is
stopped, so that it costs only memory, and it ends with this process, like all of its sandboxes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from gvisor_kernel.bridge import SnapshotRun
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import GvisorKernelError, StateError
from gvisor_kernel.host.locks import PerProcess
from gvisor_kernel.kernel.learned_modules import find_outdated, with_learned
from gvisor_kernel.kernel.plan import KernelPlan, fix_program, without_routes
from gvisor_kernel.kernel.restore import Restored, find_obstacle, find_snapshot, read_meta, restore
from gvisor_kernel.kernel.snapshot_queue import SnapshotQueue
from gvisor_kernel.runtimes import get_runtime, get_snapshot_runtime
from gvisor_kernel.runtimes.base import (
    CheckpointedSandbox,
    LaunchRequest,
    PausableSandbox,
    Sandbox,
    SnapshotRuntime,
)
from gvisor_kernel.snapshots.key import SnapshotKey
from gvisor_kernel.tracing import step

log = logging.getLogger(__name__)

MIN_STARTS = 2
"""Starts of the same kind in this process before a spare is made."""
WAIT_SECONDS = 1.0
"""The wait after such a start: its user needs the CPU now."""
CLOCK_SECONDS = 1.2
"""Seconds that a spare runs before it is stopped. gVisor measures its clock a second after a
restore. Until then a reading is a system call of 20 µs, which makes a cell a millisecond slower:
Python reads the clock at each lock that it takes. What was measured stays valid over a stop."""
KEEP_SECONDS = 300.0
"""Seconds that a spare waits. It holds the memory of an idle kernel and open folders."""
END_SECONDS = 20.0
"""Seconds that the exit of this process waits for the removal of the spare."""
MAX_STOPS = 20
"""Attempts to stop a sandbox: a system call that ran at the stop may run on and use a core."""
POLL_SECONDS = 0.1
"""The wait after each attempt."""
MAX_KINDS = 1000
"""Kinds of starts that are counted."""


@dataclass(frozen=True)
class Kind:
    """The settings and the request of a start, without the kernel's identity.

    A spare may serve any start of its kind.
    """

    spec: SandboxSpec
    request: LaunchRequest

    @classmethod
    def of(cls, plan: KernelPlan) -> Kind:
        """Return the kind of the start that ``plan`` describes."""
        plan = without_routes(plan)  # they come with the kernel that gets the spare
        return cls(plan.spec, replace(plan.request, kernel_id="", spare=True))

    def __hash__(self) -> int:
        return hash((self.spec, self.request.kernel_name, self.request.folder))


@dataclass(frozen=True)
class Spare:
    """A restored sandbox, stopped."""

    kind: Kind
    restored: Restored

    def fits(self, kind: Kind, key: SnapshotKey, run: SnapshotRun) -> bool:
        """Return whether a start of ``kind`` would make the same now, from the snapshot ``key`` as
        it is: its ``run`` has a key for the sandbox that no other one has."""
        restored, sandbox = self.restored, self.restored.sandbox
        if self.kind != kind or sandbox.poll() is not None:
            return False
        if (restored.key, restored.run.key) != (key.name, run.key):
            return False
        runtime = get_snapshot_runtime(kind.spec.runtime)
        try:
            return runtime.has_current_mounts(sandbox, kind.spec, kind.request)
        except GvisorKernelError as error:  # the start will fail with the same error
            log.info("The spare is not used: %s", error.fact)
            return False


class SpareKeeper(PerProcess):
    """Keeps the spare of a process, made by a thread. Use ``instance()``. Any thread."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition()  # no timeout: held for a few steps that do not wait
        self._starts: Counter[Kind] = Counter()
        self._wanted: KernelPlan | None = None
        self._spare: Spare | None = None
        self._ended = False
        self._thread: threading.Thread | None = None

    @property
    def ready(self) -> bool:
        """Return whether there is a spare."""
        return self._spare is not None

    def take(self, plan: KernelPlan, key: SnapshotKey, run: SnapshotRun) -> Sandbox | None:
        """Return the spare, resumed and assigned to ``plan``'s kernel, if it fits; else None.

        A spare of another kind stays. One of this kind that no longer fits is removed. Blocks for
        milliseconds, or for a removal.
        """
        kind = Kind.of(plan)
        with self._changed:
            spare = self._spare
            if spare is None or spare.kind != kind:
                return None
            self._spare = None
            self._changed.notify_all()
        sandbox = spare.restored.sandbox
        try:
            if not spare.fits(kind, key, run):
                sandbox.close()
                return None
            assert isinstance(sandbox, CheckpointedSandbox)
            sandbox.assign(plan.request.kernel_id)
        except (OSError, StateError) as error:
            log.info("The spare is not used: %s", error)
            sandbox.close()
            return None
        assert isinstance(sandbox, PausableSandbox)
        sandbox.resume()
        step("spare taken")
        return sandbox

    def request(self, plan: KernelPlan) -> None:
        """Count a start from a snapshot; make a spare after MIN_STARTS of the same kind."""
        kind = Kind.of(plan)
        with self._changed:
            if self._ended or not plan.spec.spare:
                return
            if len(self._starts) >= MAX_KINDS:  # a server of many folders
                self._starts.clear()
            self._starts[kind] += 1
            if self._starts[kind] >= MIN_STARTS:
                self._want(plan)

    def prepare(self, plan: KernelPlan) -> None:
        """Make a spare for a start that is expected, whatever was started before.

        It replaces the spare of another kind, so also of another runsc. One of this kind is kept
        for longer.

        :raises RuntimeMissing: when there is no runsc
        """
        plan = fix_program(plan)
        with self._changed:
            if not self._ended and plan.spec.spare:
                self._want(plan)

    def _want(self, plan: KernelPlan) -> None:
        self._wanted = plan
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, name="gvisor-kernel-spares", daemon=True
            )
            self._thread.start()
        self._changed.notify_all()

    def end(self) -> None:
        """Remove the spare and make no other. Called at exit. Blocks up to END_SECONDS.

        Does nothing in a forked child, which has neither the spare nor its thread.
        """
        if self.is_inherited:
            return
        with self._changed:
            self._ended = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(END_SECONDS)

    # -- in the thread ---------------------------------------------------------------------------

    def _has_work(self) -> bool:
        return self._ended or self._wanted is not None

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work, KEEP_SECONDS if self._spare else None)
                if self._wanted is not None:
                    self._changed.wait_for(lambda: self._ended, WAIT_SECONDS)
                plan, self._wanted = self._wanted, None
                ended = self._ended
                old = self._spare
                if old is not None and plan is not None and old.kind == Kind.of(plan):
                    continue  # there is such a spare already
                self._spare = None
            if old is not None:
                old.restored.sandbox.close()
            if ended:
                return
            if plan is not None:
                self._make(plan)

    def _make(self, plan: KernelPlan) -> None:
        runtime = get_snapshot_runtime(plan.spec.runtime)
        try:
            restored = restore(
                runtime, replace(without_routes(plan), request=Kind.of(plan).request)
            )
        except GvisorKernelError as error:
            log.info("Could not make a spare of %s: %s", plan.request.kernel_name, error)
            return
        with self._changed:
            self._changed.wait_for(lambda: self._ended, CLOCK_SECONDS)
        if not _stop(restored.sandbox):
            return
        spare = Spare(Kind.of(plan), restored)
        with self._changed:
            self._spare = spare


def _stop(sandbox: Sandbox) -> bool:
    """Verify a restored sandbox and stop it; close it and return False if that fails."""
    try:
        sandbox.verify()
    except GvisorKernelError as error:
        log.warning("%s", error)
        with suppress(Exception):
            sandbox.close()
        return False
    if not isinstance(sandbox, PausableSandbox):
        sandbox.close()
        return False
    for _ in range(MAX_STOPS):
        sandbox.pause()
        time.sleep(POLL_SECONDS)
        if not sandbox.is_busy():
            return True
        sandbox.resume()
        time.sleep(POLL_SECONDS)
    log.warning("No spare was made: the restored sandbox keeps using CPU after a stop.")
    sandbox.close()
    return False


# -- before somebody asks --------------------------------------------------------------------------
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
    plan = fix_program(plan)
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
