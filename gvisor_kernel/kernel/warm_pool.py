"""One sandbox restored ahead, for the next start of a kernel that was started twice already.

Here is when there is one and who gets it; how a sandbox is restored stands in ``restoring``. A
spare is stopped, so it costs memory alone, and it ends with this process like any sandbox of it.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.host.locks import ThreadLock
from gvisor_kernel.kernel.plan import KernelPlan
from gvisor_kernel.kernel.restore import Restored, restore
from gvisor_kernel.runtimes import get_runtime
from gvisor_kernel.runtimes.base import LaunchRequest, Runtime, Sandbox
from gvisor_kernel.snapshots.key import SnapshotKey
from gvisor_kernel.tracing import step

log = logging.getLogger(__name__)

WANTED_AFTER = 2
"""Starts of the same kind in this process: who runs one notebook and ends gets no spare."""
WAIT_SECONDS = 1.0
"""After such a start, before anything is done: its user wants the machine now."""
KEEP_SECONDS = 300.0
"""How long a spare waits. It holds what an idle kernel holds, and the folders it is to show."""
END_SECONDS = 20.0
STOPS = 20
LOOK_SECONDS = 0.1
"""What ran when a sandbox was stopped may go on running, and use a core: it is stopped again."""
KINDS = 1000
"""Of starts that are counted."""


@dataclass(frozen=True)
class Kind:
    """Starts of one kind may take the place of each other: all but whose kernel it is."""

    spec: SandboxSpec
    request: LaunchRequest

    @classmethod
    def of(cls, plan: KernelPlan) -> Kind:
        return cls(plan.spec, replace(plan.request, kernel_id="", spare=True))

    def __hash__(self) -> int:
        return hash((self.spec, self.request.kernel_name, self.request.folder))


@dataclass(frozen=True)
class Spare:
    """A restored sandbox, stopped."""

    kind: Kind
    restored: Restored

    def fits(self, kind: Kind, key: SnapshotKey) -> bool:
        """Whether it is what a start of ``kind`` from the image of ``key`` would make now."""
        sandbox = self.restored.sandbox
        if self.kind != kind or self.restored.key != key or sandbox.poll() is not None:
            return False
        runtime = get_runtime(kind.spec.runtime)
        try:
            return runtime.shows_now(sandbox, kind.spec, kind.request)
        except GvisorKernelError as error:  # the start says so again, to whom it concerns
            log.info("A spare is not used: %s", error.fact)
            return False


class Spares:
    """Of one process. Use ``Spares.instance()``; any thread."""

    _instance: Spares | None = None
    _lock = ThreadLock()

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._starts: Counter[Kind] = Counter()
        self._wanted: KernelPlan | None = None
        self._spare: Spare | None = None
        self._ended = False
        self._thread: threading.Thread | None = None

    @classmethod
    def instance(cls) -> Spares:
        with cls._lock:
            if cls._instance is None or cls._instance._pid != os.getpid():
                cls._instance = cls()
                atexit.register(cls._instance.end)
            return cls._instance

    @property
    def ready(self) -> bool:
        """Whether a spare waits for its start."""
        return self._spare is not None

    def take(self, plan: KernelPlan, key: SnapshotKey) -> Sandbox | None:
        """The spare, going on and ``plan``'s own, if it is what ``plan`` would start from ``key``.

        Another kind's spare stays; one of this kind that does not fit any more is removed.
        Blocks for milliseconds, or for a removal.
        """
        kind = Kind.of(plan)
        with self._changed:
            spare = self._spare
            if spare is None or spare.kind != kind:
                return None
            self._spare = None
            self._changed.notify_all()
        sandbox = spare.restored.sandbox
        if not spare.fits(kind, key):
            sandbox.close()
            return None
        sandbox.assign(plan.request.kernel_id)
        sandbox.resume()
        step("restored ahead")
        return sandbox

    def want(self, plan: KernelPlan) -> None:
        """A kernel was started from an image by ``plan``: have a spare, if that happens often."""
        kind = Kind.of(plan)
        with self._changed:
            if self._ended or not plan.spec.spare:
                return
            if len(self._starts) >= KINDS:  # a server of many folders, in which nobody comes back
                self._starts.clear()
            self._starts[kind] += 1
            if self._starts[kind] < WANTED_AFTER:
                return
            self._wanted = plan
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="gvisor-kernel-spares", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()

    def end(self) -> None:
        """Remove the spare, and make none any more. Called when the process exits.

        Quiet in a forked child, which has neither the spare nor its thread.
        """
        if self._pid != os.getpid():
            return
        with self._changed:
            self._ended = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(END_SECONDS)

    # -- in the thread ---------------------------------------------------------------------------

    def _has_news(self) -> bool:
        return self._ended or self._wanted is not None

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._has_news, KEEP_SECONDS if self._spare else None)
                if self._wanted is not None:
                    self._changed.wait_for(lambda: self._ended, WAIT_SECONDS)
                plan, self._wanted = self._wanted, None
                ended = self._ended
                old = self._spare
                if old is not None and plan is not None and old.kind == Kind.of(plan):
                    continue  # there is one
                self._spare = None
            if old is not None:
                old.restored.sandbox.close()
            if ended:
                return
            if plan is not None:
                self._make(plan)

    def _make(self, plan: KernelPlan) -> None:
        runtime = get_runtime(plan.spec.runtime)
        try:
            restored = restore(runtime, replace(plan, request=Kind.of(plan).request))
        except GvisorKernelError as error:
            log.info("No spare of %s can be made: %s", plan.request.kernel_name, error)
            return
        if not _stop(runtime, restored.sandbox):
            return
        spare = Spare(Kind.of(plan), restored)
        with self._changed:
            self._spare = spare


def _stop(runtime: Runtime, sandbox: Sandbox) -> bool:
    """Let a restored sandbox wait, checked and without using any CPU; False if it may not."""
    try:
        sandbox.verify()
    except GvisorKernelError as error:
        log.warning("%s", error)
        with suppress(Exception):
            sandbox.close()
        return False
    for _ in range(STOPS):
        sandbox.pause()
        time.sleep(LOOK_SECONDS)
        if not sandbox.is_busy():
            return True
        sandbox.resume()
        time.sleep(LOOK_SECONDS)
    log.warning("No spare: a restored sandbox does not come to rest.")
    sandbox.close()
    return False
