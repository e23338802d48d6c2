"""A sandbox on a node as the host sees it: the client's stdio is its link."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import IsolationError, SnapshotError
from gvisor_kernel.runtimes.base import Builder, FoundSandbox, FoundSnapshot, LaunchRequest
from gvisor_kernel.runtimes.copies.contents import Contents
from gvisor_kernel.runtimes.nodes.client import Client
from gvisor_kernel.runtimes.nodes.copies import NO_IMAGE, fetch_image, save_outputs
from gvisor_kernel.runtimes.nodes.engine import Engine
from gvisor_kernel.runtimes.nodes.orders import (
    Ended,
    Leaving,
    Memory,
    Order,
    OrderError,
    Ready,
    Removed,
    save_word,
    show_text,
    write_order,
)
from gvisor_kernel.runtimes.nodes.removal import forget_node
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.runtimes.state.beginning import Beginning
from gvisor_kernel.runtimes.state.recorded_sandbox import RecordedSandbox
from gvisor_kernel.runtimes.state.shown_files import Held, Stamps
from gvisor_kernel.typed_json import read_value

log = logging.getLogger(__name__)

HELPER_SECONDS = 15.0
"""Seconds that a helper may take to remove its sandbox."""
LAST_SECONDS = 1.0
"""Seconds to wait for the last facts of a client that has ended."""


@dataclass(frozen=True)
class NodeStart(Beginning):
    """One start, its engine, the settings for the helper, and what is copied to the node."""

    engine: Engine
    asked: SandboxSpec
    files: Contents | None
    image: Path | None = None
    """Of a saved kernel, which goes on in it."""


class NodeSandbox(RecordedSandbox, FoundSandbox):
    """Returned by ``NodeRuntime.start``. It ends when its client does."""

    def __init__(
        self, start: NodeStart, client: Client, order: Order, host: str, ready: Ready
    ) -> None:
        """``order``: what the helper was asked for; ``ready``: what it has answered."""
        view = start.make_view(ready.environment, ready.python)
        super().__init__(start, client.ends, view)
        self.exit_fd = client.exit_fd
        self.node = self._record.node
        self._engine = start.engine
        self._host = host
        self._client = client
        self._reports = client.reports
        self._order = order
        self.is_saved = start.request.saved_in is not None
        self._goes_on = start.image is not None
        self.ends_at = time.monotonic() + ready.left if ready.left else None
        self.found: FoundSnapshot | None = None
        if (found := ready.found) is not None:
            self.found = FoundSnapshot(
                *(found.key, found.run, found.sandbox_key, found.language, found.preloaded)
            )
        self.lacks = show_text(ready.lacks, 300, keep="")
        self._runsc = show_text(ready.runsc, 64, keep="")

    def poll(self) -> int | None:
        if not self._closed:
            self._ended = self._ended or self._reports.is_over or self._reports.is_kept
        return 0 if self._ended else None

    def memory_used(self) -> int | None:
        if self._closed or self.poll() is not None:
            return None
        memory = self._reports.find(Memory)
        return 0 if memory is None else memory.used

    def memory_kills(self) -> int:
        told = (self._reports.find(Memory), self._reports.find(Ended))
        return max((fact.kills for fact in told if fact is not None), default=0)

    def stderr_tail(self) -> str:
        end = self._reports.find(Ended)
        text = "" if end is None else show_text(end.stderr)
        return "\n".join(part for part in (text, *self._reports.words) if part)[-4096:]

    def find_panic(self) -> str:
        end = self._reports.find(Ended)
        return "" if end is None else show_text(end.panic, 200, keep="")

    def find_cause(self) -> str:
        if killer := super().find_cause():
            return killer
        end = self._reports.find(Ended)
        ours = ("memory",) if self._reports.find(Leaving) is not None else ("itself", "memory")
        if not self._reports.is_over or (end is not None and end.by in ours):
            return ""
        return self._engine.explain(self._reports.words, self._client.status, self._host).fact

    def kill(self) -> None:
        """Let the link end: PID 1 ends at once, and the helper kills what does not within seconds.

        A signal to the client would be quicker where PID 1 hangs. But srun then leaves at once, and
        what the helper says of the removal is lost.
        """
        if not self._closed:
            self._client.end_link()

    def verify(self, said: Mapping[str, str] | None = None) -> None:
        """Check what the guest says of its kernel's log; a restored one has said it before its
        snapshot was made. Its processes were checked by the helper, which says "ready" only
        afterwards."""
        is_restored = self.found is not None or self._goes_on
        if (said is not None or not is_restored) and "gVisor" not in (said or {}).get("dmesg", ""):
            self.kill()
            raise IsolationError(
                f"The sandbox on {self._record.node} is not gVisor's: its kernel's log does not"
                " name it.",
                f"check runsc there: gvisor-kernel doctor --runtime {self._engine.name}",
                self.stderr_tail(),
            )
        self._update_record(ready=True, runsc=self._runsc)

    # -- as a SavedSandbox -----------------------------------------------------------------------

    def checkpoint(self, directory: Path, seconds: float) -> None:
        if self._order.copy:
            raise SnapshotError(*NO_IMAGE)
        fetch_image(self._client, save_word(self._order), directory, seconds)

    def call_before_end(self, call: Callable[[], None]) -> None:
        """Let ``call`` be called, in any thread, when Slurm is about to end the job."""

        def unless_killed() -> None:
            if not records.find_killer(self.directory):
                call()

        self._reports.on_leaving = unless_killed
        if self._reports.find(Leaving) is not None:
            unless_killed()

    def find_shown_files(self) -> Stamps:
        """Nothing is of this machine: what it needs of its node is in its image."""
        return {}

    def find_held(self) -> Held:
        """Not known here: a branch that lacks one does not go on, and says so."""
        return (), (), ()

    # -- for snapshots of the node ---------------------------------------------------------------

    def make_builder(self, plan: Mapping[str, Any]) -> Builder | None:
        if self._order.copy:
            return None
        engine, where = self._engine, self._record.node or self._host
        request = read_value(plan["request"], LaunchRequest)
        kernel = {name: value for name, value in plan.items() if name not in ("spec", "request")}
        order = replace(self._order, request=request, kernel=kernel)
        try:
            message = write_order(order)
        except OrderError as error:
            log.info("No snapshot is made on %s: %s", where, error)
            return None
        argv = engine.build_argv(where, engine.helper("build"))
        return Builder(tuple(argv), self._client.environment, message, where)

    def _stop(self) -> None:
        self._client.end_link()
        if self._record.fetch_argv:
            self._fetch_outputs()
        self._client.end(self._engine.end_argv(self._client.job), LAST_SECONDS)
        gone = self._reports.find(Removed)
        if gone is not None and gone.whole and not (gone.kept and self._record.fetch_argv):
            self._record = forget_node(self.directory, self._record)

    def _release(self) -> None:
        self._client.release(LAST_SECONDS)

    def _fetch_outputs(self) -> None:
        """Fetch the outputs while the helper waits for that, in its own job."""
        if self._reports.wait_for((Removed,), HELPER_SECONDS) and self._reports.is_kept:
            record = records.read_record(self.directory) or self._record
            if save_outputs(self.directory, record, None, in_job=True):
                self._record = records.read_record(self.directory) or self._record
            else:
                self._client.signal()
