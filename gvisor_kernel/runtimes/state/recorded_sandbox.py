"""The part of a sandbox that is the same for every runtime: its places, its pipes, its record.

What runs the sandbox, and how it ends, is in the runtimes' own modules.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gvisor_kernel.errors import StateError
from gvisor_kernel.runtimes.base import MountView, Sandbox
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.runtimes.state.records import Record


@dataclass(frozen=True)
class KernelView:
    """What a kernel process is given: see the attributes of ``Sandbox``."""

    mounts: tuple[MountView, ...]
    environment: Mapping[str, str]
    python: str
    workdir: str
    transcripts: Path | None


class RecordedSandbox(Sandbox):
    """A sandbox with a record in a state directory of its own."""

    def __init__(
        self, record: Record, directory: Path, log: Path, view: KernelView, link: tuple[int, int]
    ) -> None:
        """``link``: the host's ends, ``link_in`` and ``link_out``. The subclass sets ``exit_fd``
        and closes all three."""
        self.identity = record.identity
        self.directory = directory
        self.log_path = log
        self.transcripts = view.transcripts
        self.link_in, self.link_out = link
        self.mounts = view.mounts
        self.kernel_environment = dict(view.environment)
        self.python = view.python
        self.workdir = view.workdir
        self._record = record
        self._ended = False
        self._closed = False
        self._closing = threading.Lock()

    def assign(self, kernel_id: str) -> None:
        self._update_record(kernel_id=kernel_id, spare=False)

    def _update_record(self, **facts: Any) -> None:
        """Change ``facts`` of the record, unless the sandbox is closed. Never raises."""
        with self._closing, suppress(OSError, StateError), records.locked():
            if not self._closed:
                self._record = replace(records.read_record(self.directory) or self._record, **facts)
                records.write_record(self.directory, self._record)
