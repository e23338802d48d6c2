"""A sandbox that an engine runs: threads of this process move its bytes, and tell its end.

What moves them, what is checked, and how the engine is asked are the runtimes' own.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping

from gvisor_kernel.errors import IsolationError
from gvisor_kernel.runtimes.base import KernelView
from gvisor_kernel.runtimes.state.beginning import Beginning
from gvisor_kernel.runtimes.state.recorded_sandbox import RecordedSandbox
from gvisor_kernel.runtimes.stdio import Ends, StderrLog

THREAD_SECONDS = 10.0
"""Seconds to wait for each of the threads that copy the link and stderr."""


class EngineSandbox(RecordedSandbox):
    """A sandbox without a process of its own on this machine."""

    kind: str
    """The engine's word for it, such as "pod"."""
    advice: str
    """What a person can do if it is not the sandbox that was asked for."""

    def __init__(self, begun: Beginning, ends: Ends, view: KernelView, stderr: StderrLog) -> None:
        super().__init__(begun, ends, view)
        self.exit_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        # The thread that tells the end may outlive ``close``, in a request that nobody answers. By
        # then ``exit_fd`` may be another file, so it has a copy.
        self._told_fd = os.dup(self.exit_fd)
        self._stderr = stderr

    def tell_end(self) -> None:
        """Report that the sandbox has ended. Called once, in a thread."""
        self._ended = True
        os.eventfd_write(self._told_fd, 1)
        os.close(self._told_fd)

    def poll(self) -> int | None:
        return 0 if self._ended else None

    def memory_used(self) -> int | None:
        return None if self._ended or self._closed else self.measure()

    @abstractmethod
    def measure(self) -> int | None:
        """Return how many bytes of memory it holds, as ``memory_used`` does while it runs."""

    def stderr_tail(self) -> str:
        if self._ended:
            self._stderr.catch_up()
        return self._stderr.tail()

    @abstractmethod
    def find_faults(self) -> list[str]:
        """Ask the engine how the sandbox differs from what was asked for; empty if it does not."""

    def find_inside_faults(self, said: Mapping[str, str]) -> list[str]:
        """Return what is wrong by the facts of the guest's HELLO; empty if nothing is."""
        is_named = "gVisor" in said.get("dmesg", "")
        return [] if is_named else ["its kernel's log does not name gVisor"]

    def verify(self, said: Mapping[str, str] | None = None) -> None:
        faults = [*self.find_inside_faults(said or {}), *self.find_faults()]
        if faults:
            self.kill()
            raise IsolationError(
                f"The {self.kind} is not the sandbox that was asked for: {'; '.join(faults)}.",
                self.advice,
                self.stderr_tail(),
            )
        self._update_record(ready=True, node=self.node)

    def _release(self) -> None:
        self._stderr.wait(THREAD_SECONDS)
