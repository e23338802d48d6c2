"""One run of a kernel: whether its end is expected, why it died, and what clients are told then.

Starts and kills nothing; ``kernel`` does. The words are in ``deaths``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from gvisor_kernel.bridge.addresses import KernelIdentity
from gvisor_kernel.bridge.attached_sandbox import AttachedSandbox
from gvisor_kernel.bridge.deaths import (
    Death,
    advise_more_memory,
    describe_death,
    describe_status,
    find_death,
    find_loss,
)
from gvisor_kernel.bridge.exchange import Exchange
from gvisor_kernel.bridge.records import Records
from gvisor_kernel.host.log_files import Limiter

STRAY_SECONDS = 10.0
"""Seconds until a request counts as lost: one that never comes must not hide another for longer."""


class ShutdownRequests:
    """Decides whether a shutdown request is for the running kernel or for one that has ended.

    A manager sends its request over a socket and also announces it to the provisioner. The socket
    may still be connecting, so the request may come late. If the kernel is dead already, the
    manager starts the next one at once, and a late request would end that one. So announced
    requests are counted against received ones, across restarts.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due = 0
        """Announced, but not received yet."""
        self._early = 0
        """Received, but not announced: not yet, or a client sent it by itself."""
        self._strays = 0
        """Announced for a kernel that has ended, and not received yet."""
        self._until = 0.0

    def announce(self) -> None:
        """Note that the manager has sent a request to the kernel."""
        if self._early:
            self._early -= 1
        else:
            self._due += 1

    def begin(self) -> None:
        """Note the start of a kernel. May be called again during the same start."""
        if self._clock() > self._until:
            self._strays = 0
        if self._due:
            self._until = self._clock() + STRAY_SECONDS
        self._strays += self._due
        self._due = self._early = 0

    def arrive(self, *, running: bool) -> bool:
        """Note a received request; return whether it is for the running kernel."""
        if self._strays and self._clock() < self._until:
            self._strays -= 1
            return False
        if self._due:
            self._due -= 1
        else:
            self._early += 1
        return running


log = logging.getLogger(__name__)

FLUSH_SECONDS = 2.0
"""Seconds that clients have to read a dead kernel's last messages before its exit is reported."""
LAST_LINE_SECONDS = 0.2
"""Seconds that a dead kernel's last output may take: it comes by a pipe of its own, and nothing
marks its end."""


class KernelRun:
    """The run of a kernel that starts, runs or has ended; ``begin`` makes it the next one.

    ``exit_status`` and ``death`` may be read from any thread.
    """

    def __init__(
        self,
        identity: KernelIdentity,
        exchange: Exchange,
        attached: AttachedSandbox,
        records: Records,
    ) -> None:
        self.number = 0
        """The number by which the guest knows this run."""
        self.exit_status: int | None = None
        """None while a kernel runs or starts, else as in ``subprocess``."""
        self.exited = asyncio.Event()
        """Set once ``exit_status`` was set."""
        self.cause: Death | None = None
        """That of which the kernel must have died, if it is known before the exit."""
        self.death: Death | None = None
        """The death, once it was reported; None if the end was requested."""
        self.end_expected = False
        self.keep_sandbox = True
        """True if the sandbox is kept for a restart after this run."""
        self.restarts = False
        """True if the end was announced as that of a restart."""
        self.has_answered = False
        """True once the kernel has replied to a request."""
        self.logs_death = True
        """True if a death is logged as a warning; False where a command reports it as its error."""
        self.on_death: Callable[[Death], None] | None = None
        """Called with each death; must not raise."""
        self._identity = identity
        self._exchange = exchange
        self._attached = attached
        self._records = records
        self._deaths = Limiter()

    @property
    def has_failed(self) -> bool:
        """Return whether the last cell of this sandbox failed, or has not ended."""
        return self._exchange.has_failed

    def begin(self) -> None:
        """Note the start of a kernel. May be called again during the same start."""
        self.cause = self.death = None
        self.has_answered = False
        self.end_expected = False
        self.exit_status = None
        self.exited.clear()
        self.keep_sandbox, self.restarts = True, False

    def note_loss(self, reason: str) -> None:
        """Note that the sandbox has ended; ``reason`` is the link's."""
        if self.cause is None and not self.end_expected:
            attached = self._attached
            reason = attached.find_cause() or reason
            self.cause = find_loss(reason, attached.memory, attached.find_panic())

    async def finish(self, status: int) -> None:
        """Explain the death of a kernel, send its last messages, then report its exit."""
        try:
            await self._report_end(status)
        finally:
            self.exit_status = status
            self.exited.set()

    async def _report_end(self, status: int) -> None:
        self._attached.fail_start(status)
        self._records.note(f"the kernel ended {describe_status(status)}")
        await self._exchange.drain(FLUSH_SECONDS, clients=False)
        self._records.report_drops()
        death = self.cause
        if death is None and not self.end_expected:
            death = find_death(status, self._attached.memory, await self._find_last_line())
        if death is not None:
            self._report_death(death)
        self._exchange.forget_requests()
        if self.cause is not None:
            await self._attached.end_if_memory_stays()
        await self._exchange.drain(FLUSH_SECONDS)

    def _report_death(self, death: Death) -> None:
        """Log why the kernel died, if wanted, and show it in the cell that was running."""
        self.death, reason = death, describe_death(death, advise_more_memory(self._identity))
        if self.logs_death:
            line = self._deaths.admit(f"{self._identity.name}: {reason}")
            if line is not None:
                log.warning("%s", line)
        self._records.note(reason)
        self._exchange.show_death(reason)
        if self.on_death is not None:
            self.on_death(death)

    async def _find_last_line(self) -> str:
        """Return the last line that a kernel wrote which never answered; else nothing.

        An interpreter without ipykernel says there what it lacks, and nobody sees the log of a
        kernel that did not start.
        """
        if self.has_answered or self._attached.sandbox is None:
            return ""
        await asyncio.sleep(LAST_LINE_SECONDS)
        return self._attached.find_last_line()
