"""What PID 1 forwards to the host's log of a kernel's output, and of lines that a kernel causes."""

from __future__ import annotations

from typing import Any, cast

import pytest

from gvisor_kernel.guest import guest_log
from gvisor_kernel.guest.guest_log import GuestLog
from gvisor_kernel.link import Connection, LogSource

BURST, PER_SECOND = 8 * 1024, 1024


class Sink:
    def __init__(self) -> None:
        self.texts: list[str] = []

    def send_log(self, source: LogSource, text: str) -> None:
        self.texts.append(text)


@pytest.mark.parametrize("size", [1, 100, 500])
@pytest.mark.parametrize("way", ["output", "complaints"])
def test_flood_of_output_is_cut_with_few_notes(
    way: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, a note that output was dropped came with every byte that passed."""
    now = 1000.0
    monkeypatch.setattr(guest_log.time, "monotonic", lambda: now)
    monkeypatch.setattr(guest_log, "LOG_BURST", BURST)
    monkeypatch.setattr(guest_log, "LOG_PER_SECOND", PER_SECOND)
    sink = Sink()
    log = GuestLog(cast(Connection, sink))
    seconds, sent = 20, 0
    while now < 1000.0 + seconds:
        now += max(size, 50) / (8 * PER_SECOND)
        for _ in range(max(50 // size, 1)):
            sent += size
            if way == "output":
                log.forward_output(LogSource.STDERR, b"x" * size)
            else:
                log.write_limited("x" * size)
    passed = sum(map(len, sink.texts))
    notes = [text for text in sink.texts if "were not logged" in text]
    assert sent > 4 * passed
    assert passed <= BURST + seconds * PER_SECOND + 100 * len(notes)
    assert 0 < len(notes) <= 2 * seconds + 1
    told = sum(int(note.split()[0]) for note in notes)
    assert told <= sent - (passed - sum(map(len, notes)))


def test_small_output_is_forwarded_completely() -> None:
    sink = Sink()
    log = GuestLog(cast(Any, sink))
    log.forward_output(LogSource.STDOUT, b"one")
    log.write_limited("two")
    assert sink.texts == ["one", "two"]
