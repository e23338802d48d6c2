"""Writes the log and the transcript of one kernel, while it has a sandbox."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from gvisor_kernel.bridge.journal import KernelLog, Transcript
from gvisor_kernel.bridge.wire import WireError, WireMessage
from gvisor_kernel.host.log_files import Limiter
from gvisor_kernel.link import Channel, Log, LogSource


class Records:
    """The log and the transcript of the current sandbox. Can be reopened; silent when closed."""

    def __init__(self) -> None:
        self._log: KernelLog | None = None
        self._transcript: Transcript | None = None
        self._drops = Limiter()

    def open(self, log_path: Path, transcripts: Path | None) -> None:
        """Open the files of a sandbox. ``transcripts``: the transcript's folder; None: none."""
        self._log = KernelLog(log_path)
        self._transcript = Transcript(transcripts) if transcripts is not None else None

    def close(self) -> None:
        """Close the files. Idempotent; records nothing until the next ``open``."""
        for file in (self._log, self._transcript):
            if file is not None:
                file.close()
        self._log = self._transcript = None

    def note(self, text: str) -> None:
        """Log an event. Not for events that a kernel or a client can cause without limit."""
        if self._log is not None:
            self._log.write("bridge", text)

    def note_egress(self, text: str) -> None:
        """Log what requests to the network caused, within the allowance of the sandbox."""
        if self._log is not None:
            self._log.write_inside("egress", text)

    def note_drop(self, text: str) -> None:
        """Count a dropped message. Only the first ones and some of the later ones are logged."""
        line = self._drops.admit(text)
        if line is not None and self._log is not None:
            self._log.write_inside("bridge", line)

    def report_drops(self) -> None:
        """Log how many messages were dropped, at the end of a kernel."""
        if self._drops.count:
            self.note(f"{self._drops.count} messages were dropped")
        self._drops = Limiter()

    def write_inside(self, event: Log) -> None:
        """Log what a process in the sandbox wrote."""
        if self._log is not None:
            self._log.write_inside(event.source.name.lower(), event.text)
            is_line = event.source is LogSource.GUEST and not event.text.endswith("\n")
            self._log.remember(event.text + "\n" * is_line)

    @property
    def recent(self) -> list[str]:
        """The last lines from inside, escaped."""
        return self._log.recent if self._log is not None else []

    def record_request(self, message: WireMessage) -> None:
        """Record a client's request in the transcript."""
        if self._transcript is not None:
            with suppress(WireError):
                self._transcript.record("request", message)

    def record_answer(self, channel: Channel, message: WireMessage) -> None:
        """Record a kernel's message in the transcript.

        :raises WireError: when its header or parent header cannot be parsed
        """
        if self._transcript is not None and channel is not Channel.CONTROL:
            self._transcript.record("reply" if channel is Channel.SHELL else "output", message)
