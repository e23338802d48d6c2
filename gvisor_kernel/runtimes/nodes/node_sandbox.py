"""A sandbox on a node as the host sees it: the client's stdio is its link."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

from gvisor_kernel.errors import IsolationError
from gvisor_kernel.runtimes.base import Builder, FoundSnapshot, KernelView, LaunchRequest
from gvisor_kernel.runtimes.nodes.client import Client
from gvisor_kernel.runtimes.nodes.copies import save_outputs
from gvisor_kernel.runtimes.nodes.engine import Engine
from gvisor_kernel.runtimes.nodes.orders import SNAPSHOT, Order, OrderError, write_order
from gvisor_kernel.runtimes.nodes.removal import forget_node
from gvisor_kernel.runtimes.nodes.reports import Reports
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.runtimes.state.beginning import Beginning
from gvisor_kernel.runtimes.state.recorded_sandbox import RecordedSandbox
from gvisor_kernel.runtimes.stdio import Ends, StderrLog

log = logging.getLogger(__name__)

FOUND = ("key", "run", "sandbox_key", "language")
MAX_WORD = 200
"""Characters of each text that a helper reports of a snapshot."""
HELPER_SECONDS = 15.0
"""Seconds that a helper may take to remove its sandbox."""
LAST_SECONDS = 1.0
"""Seconds to wait for the last facts of a client that has ended."""


def read_found(ready: Mapping[str, Any]) -> FoundSnapshot | None:
    """Return the snapshot that a helper reports; None if there is none, or it is malformed."""
    found = ready.get("found")
    if not isinstance(found, dict):
        return None
    key, run, sandbox_key, language = (found.get(name) for name in FOUND)
    if not (_is_word(key) and _is_word(sandbox_key) and _is_word(language)):
        return None
    if not SNAPSHOT.fullmatch(key) or not isinstance(run, int) or not 0 <= run < 2**31:
        return None
    return FoundSnapshot(key, run, sandbox_key, language, found.get("preloaded"))


def _is_word(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and len(value) <= MAX_WORD


class NodeSandbox(RecordedSandbox):
    """Returned by ``NodeRuntime.start``. It ends when its client does."""

    def __init__(
        self,
        *,
        engine: Engine,
        host: str,
        client: Client,
        reports: Reports,
        stderr: StderrLog,
        ends: Ends,
        exit_fd: int,
        begun: Beginning,
        view: KernelView,
        environment: Mapping[str, str],
        order: Order,
    ) -> None:
        """``environment``: the client's. ``order``: what the helper was asked for."""
        super().__init__(begun, ends, view)
        self.exit_fd = exit_fd
        self.node = self._record.node
        self._engine = engine
        self._host = host
        self._client = client
        self._reports = reports
        self._stderr = stderr
        self._variables = environment
        self._order = order
        self.found = read_found(reports.find("ready") or {})
        self.lacks = "".join(c for c in reports.text("ready", "lacks") if c.isprintable())[:300]

    def poll(self) -> int | None:
        if not self._closed:
            self._ended = self._ended or self._reports.is_over or self._reports.is_kept
        return 0 if self._ended else None

    def memory_used(self) -> int | None:
        if self._closed or self.poll() is not None:
            return None
        return self._reports.number("memory", "used")

    def memory_kills(self) -> int:
        kinds = ("memory", "ended")
        return max(self._reports.number(kind, "kills") for kind in kinds)

    def stderr_tail(self) -> str:
        text = self._reports.shown("ended", "stderr")
        return "\n".join(part for part in (text, *self._reports.words) if part)[-4096:]

    def find_panic(self) -> str:
        words = self._reports.text("ended", "panic")
        return "".join(c for c in words if c.isprintable())[:200]

    def find_cause(self) -> str:
        if killer := super().find_cause():
            return killer
        if not self._reports.is_over or self._reports.text("ended", "by") in ("itself", "memory"):
            return ""
        status = self._client.process.poll() or 0
        return self._engine.explain(self._reports.words, status, self._host).fact

    def kill(self) -> None:
        """Let the link end: PID 1 ends at once, and the helper kills what does not within seconds.

        A signal to the client would be quicker where PID 1 hangs. But srun then leaves at once, and
        what the helper says of the removal is lost.
        """
        if not self._closed:
            self._end_link()

    def verify(self, said: Mapping[str, str] | None = None) -> None:
        """Check what the guest says of its kernel's log; a restored one has said it before its
        snapshot was made. Its processes were checked by the helper, which says "ready" only
        afterwards."""
        if (said is not None or self.found is None) and "gVisor" not in (said or {}).get(
            "dmesg", ""
        ):
            self.kill()
            raise IsolationError(
                f"The sandbox on {self._record.node} is not gVisor's: its kernel's log does not"
                " name it.",
                f"check runsc there: gvisor-kernel doctor --runtime {self._engine.name}",
                self.stderr_tail(),
            )
        self._update_record(ready=True)

    def make_builder(self, plan: Mapping[str, Any]) -> Builder | None:
        if self._order.copy:
            return None
        engine, where = self._engine, self._record.node or self._host
        request = {**plan["request"], "folder": Path(plan["request"]["folder"]), "ahead": ()}
        kernel = {name: value for name, value in plan.items() if name not in ("spec", "request")}
        order = replace(self._order, request=LaunchRequest(**request), kernel=kernel)
        try:
            message = write_order(order)
        except OrderError as error:
            log.info("No snapshot is made on %s: %s", where, error)
            return None
        argv = engine.build_argv(where, engine.helper("build"))
        return Builder(tuple(argv), self._variables, message, where)

    def _stop(self) -> None:
        self._end_link()
        if self._record.fetch_argv:
            self._fetch_outputs()
        self._client.end(self._engine.end_argv(self._job), self._variables)
        self._reports.join(LAST_SECONDS)
        gone = self._reports.find("removed") or {}
        if gone.get("whole") is True and not (gone.get("kept") and self._record.fetch_argv):
            self._record = forget_node(self.directory, self._record)

    def _release(self) -> None:
        with suppress(OSError):
            os.close(self._client.exit_fd)
        self._stderr.wait(LAST_SECONDS)

    def _fetch_outputs(self) -> None:
        """Fetch the outputs while the helper waits for that, in its own job."""
        if self._reports.wait_for(("removed",), HELPER_SECONDS) and self._reports.is_kept:
            record = records.read_record(self.directory) or self._record
            if save_outputs(self.directory, record, None, in_job=True):
                self._record = records.read_record(self.directory) or self._record
            else:
                self._client.signal()

    @property
    def _job(self) -> str:
        return self._reports.text("here", "job")

    def _end_link(self) -> None:
        """Let the client's stdin end. The descriptor itself is closed with the others."""
        with suppress(OSError):
            # by path: the kernel's own file systems, /proc, /sys and /dev
            null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(null, self.link_in, inheritable=False)
            os.close(null)
