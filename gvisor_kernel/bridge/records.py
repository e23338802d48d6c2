"""What is written down of one kernel: its log and its transcript, while it has a sandbox."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from gvisor_kernel.bridge.journal import KernelLog, Transcript
from gvisor_kernel.bridge.wire import WireError, WireMessage
from gvisor_kernel.host.log_files import Limiter
from gvisor_kernel.link import Channel, Log


class Records:
    """From ``open`` to ``close``, again and again; quiet when closed."""

    def __init__(self) -> None:
        self._log: KernelLog | None = None
        self._transcript: Transcript | None = None
        self._drops = Limiter()

    def open(self, log_path: Path, transcripts: Path | None) -> None:
        self._log = KernelLog(log_path)
        self._transcript = Transcript(transcripts) if transcripts is not None else None

    def close(self) -> None:
        for file in (self._log, self._transcript):
            if file is not None:
                file.close()
        self._log = self._transcript = None

    def note(self, text: str) -> None:
        """An event. Not for what a kernel or a client can cause as often as it likes."""
        if self._log is not None:
            self._log.write("bridge", text)

    def note_drop(self, text: str) -> None:
        """A message was dropped: of the first ones and of some of the others, each is told."""
        line = self._drops.take(text)
        if line is not None and self._log is not None:
            self._log.write_inside("bridge", line)

    def sum_up(self) -> None:
        """A kernel has ended: how many messages were dropped."""
        if self._drops.count:
            self.note(f"{self._drops.count} messages were dropped")
        self._drops = Limiter()

    def keep(self, event: Log) -> None:
        """What was said inside."""
        if self._log is not None:
            self._log.write_inside(event.source.name.lower(), event.text)
            self._log.remember(event.text)

    @property
    def recent(self) -> list[str]:
        """The last lines from inside, clean."""
        return list(self._log.recent) if self._log is not None else []

    def asked(self, message: WireMessage) -> None:
        """A client's request goes to the kernel."""
        if self._transcript is not None:
            with suppress(WireError):
                self._transcript.record("request", message)

    def answered(self, channel: Channel, message: WireMessage) -> None:
        """The kernel's message goes to clients. Raises WireError."""
        if self._transcript is not None and channel is not Channel.CONTROL:
            self._transcript.record("reply" if channel is Channel.SHELL else "output", message)
