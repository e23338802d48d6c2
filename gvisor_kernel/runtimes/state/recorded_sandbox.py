"""The part of a sandbox that is the same for every runtime: its places, its pipes, its record.

What runs the sandbox, and how it ends, is in the runtimes' own modules.
"""

from __future__ import annotations

import logging
import os
import threading
from contextlib import suppress
from typing import Any

from gvisor_kernel.host.folders import Opened
from gvisor_kernel.runtimes.base import KernelView, Sandbox
from gvisor_kernel.runtimes.state import lifeline, records
from gvisor_kernel.runtimes.state.beginning import Beginning
from gvisor_kernel.runtimes.state.records import Keeper
from gvisor_kernel.runtimes.state.sweep import remove_sandbox, retire_sandbox
from gvisor_kernel.runtimes.stdio import Ends

log = logging.getLogger(__name__)


class RecordedSandbox(Sandbox):
    """A sandbox with a record in a state directory of its own."""

    def __init__(self, begun: Beginning, ends: Ends, view: KernelView) -> None:
        """Take over the host's ends of the link. The subclass sets ``exit_fd``; all three are
        closed with the sandbox."""
        self.identity = begun.record.identity
        self.directory = begun.places.directory
        self.log_path = begun.places.log
        self.view = view
        self.link_in, self.link_out = ends.link_in, ends.link_out
        self._record = begun.find_record()
        self._ended = False
        self._closed = False
        self.is_saved = False
        """Its kernel was saved in its directory, which stays when it is closed."""
        # no timeout: held during removal: END_SECONDS, and COPY_SECONDS if outputs are copied out
        # of an engine
        self._closing = threading.Lock()

    def find_cause(self) -> str:
        return records.find_killer(self.directory)

    def note_saved(self, saved: float, keeper: Keeper = "server") -> None:
        """Note that the kernel was saved in the directory at that Unix time, and for whom; 0: that
        it goes on.

        :raises StateError: when it cannot be noted that it was saved; it is not then
        """
        if saved:
            with self._closing:
                facts = {"saved": saved, "keeper": keeper}
                self._record = records.change_record(self.directory, self._record, **facts)
        else:
            self._update_record(saved=saved)
        self.is_saved = saved > 0

    def note_given_back(self, size: int) -> None:
        self._update_record(given_back=size)

    def close(self) -> None:
        with self._closing:
            if self._closed:
                return
            self._stop()
            self._closed = self._ended = True
            self._remove(None)
            self._close_descriptors()
            self._release()
            lifeline.release()

    def _remove(self, lent: Opened | None) -> None:
        """``lent``: see ``remove_sandbox``."""
        remove = retire_sandbox if self.is_saved else remove_sandbox
        if not remove(self.directory, self._record, lent):
            log.warning(
                "Not everything of %s was removed; the next sweep tries again", self.identity
            )

    def _stop(self) -> None:
        """End what moves the sandbox's bytes, so that the sandbox ends, too. Never raises."""

    def _release(self) -> None:
        """Give back what the subclass holds, once the sandbox is removed. Never raises."""

    def _close_descriptors(self) -> None:
        for fd in (self.link_in, self.link_out, self.exit_fd):
            with suppress(OSError):
                os.close(fd)

    def _update_record(self, **facts: Any) -> None:
        """Change ``facts`` of the record, unless the sandbox is closed. Never raises."""
        with self._closing:
            if not self._closed:
                self._record = records.note_facts(self.directory, self._record, **facts)
