"""The log and the transcript of a kernel are bounded, ordered, and cannot be forged."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel.bridge import records
from gvisor_kernel.bridge.records import KernelLog, Records, Transcript
from gvisor_kernel.bridge.wire import WireMessage, new_message
from gvisor_kernel.host import log_files
from gvisor_kernel.host.log_files import INSIDE, Limiter

PARENT = json.dumps({"msg_id": "the-request"}).encode()


class Clock:
    now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the log, which a test sets."""
    made = Clock()
    monkeypatch.setattr(log_files.time, "monotonic", lambda: made.now)
    return made


def entries(directory: Path) -> list[dict[str, Any]]:
    """Return all recorded entries, oldest first."""
    files = sorted(directory.glob("transcript.jsonl*"), key=lambda p: p.name, reverse=True)
    files = [f for f in files if f.suffix != ".jsonl"] + [directory / "transcript.jsonl"]
    return [json.loads(line) for file in files for line in file.read_bytes().splitlines()]


def message(kind: str, **content: Any) -> WireMessage:
    return new_message(kind, content, PARENT, b"")


@pytest.mark.parametrize(
    "text",
    [
        "\x1b[31mred\x1b[0m",
        "\x1b]0;title\x07",
        "\x9b31m",
        "\rover",
        "\x00",
        "\u202egnp.exe",
        "\ud800",
        "a\x0bb\x0cc\x1cd\x85e\u2028f",
    ],
)
def test_log_escapes_control_characters(text: str, tmp_path: Path) -> None:
    log = KernelLog(tmp_path / "log")
    log.write("stdout", text)
    log.remember(text)
    log.close()
    written = (tmp_path / "log").read_text()
    assert written.endswith("\n")
    assert all(c.isprintable() for line in written.split("\n") for c in line)
    assert all(c.isprintable() for line in log.recent for c in line)


@pytest.mark.parametrize("text", ["\n" * 32760, "\r" * 32760, "\0" * 32760, "line\n" * 6552, ""])
def test_flood_from_inside_is_bounded(text: str, tmp_path: Path) -> None:
    """It pushes out no event of the bridge, and the log says what was left out."""
    log = KernelLog(tmp_path / "log")
    log.write("bridge", "before")
    for _ in range(200):
        log.write_inside("stderr", text)
        log.remember(text)
    log.write("bridge", "after")
    log.close()
    before, after = (tmp_path / "log").read_text().splitlines()
    assert before.endswith(" bridge: before")
    assert after.endswith(" bridge: after")
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 3 * log_files.MAX_INSIDE
    if text:
        assert "left out" in (tmp_path / INSIDE).read_text().splitlines()[-1]
    assert all(len(line) <= records.RECENT_LENGTH for line in log.recent)
    assert len(log.recent) <= records.RECENT_LINES


def test_log_keeps_beginning_and_end(tmp_path: Path, clock: Clock) -> None:
    """However much is logged in between, and for however long."""
    log = KernelLog(tmp_path / "log")
    for number in range(30_000):
        clock.now += 1.0
        log.write("bridge", f"event {number}")
        log.write_inside("stdout", f"output {number} {'x' * 60}")
    log.close()
    for name, word in (("log", "event"), (INSIDE, "output")):
        parts = [path for path in log_files.log_parts(tmp_path / name) if path.exists()]
        lines = [line for path in parts for line in path.read_text().splitlines()]
        numbers = [int(line.split()[3]) for line in lines]
        assert numbers[0] == 0
        assert numbers[-1] == 29_999
        assert numbers == sorted(numbers)
        assert len(parts) == 3
        assert word in lines[0]
        assert sum(path.stat().st_size for path in parts) <= 3 * log_files.MAX_INSIDE


def test_dropped_messages_are_counted_and_few_are_logged(tmp_path: Path) -> None:
    """13,000 of them once pushed all other lines out of the log."""
    records = Records()
    records.open(tmp_path / "log", None)
    records.note("sandbox is up")
    for number in range(13_000):
        records.note_drop(f"the kernel's message on iopub was dropped: {number}")
    records.report_drops()
    records.note_drop("of the next kernel")
    records.report_drops()
    records.note("the link ended")
    records.close()
    events = [
        line.partition(" bridge: ")[2] for line in (tmp_path / "log").read_text().splitlines()
    ]
    assert [event.strip() for event in events] == [
        "sandbox is up",
        "13000 messages were dropped",
        "1 messages were dropped",
        "the link ended",
    ]
    told = (tmp_path / INSIDE).read_text().splitlines()
    assert 10 < len(told) < 100
    assert told[0].endswith("dropped: 0")


def test_limiter_reports_suppressed_lines(clock: Clock) -> None:
    limiter = Limiter(burst=3, seconds=10.0)
    assert [limiter.admit(str(n)) for n in range(6)] == ["0", "1", "2", None, None, None]
    clock.now += 11.0
    assert limiter.admit("6") == "6 (and 3 more before it)"
    assert limiter.admit("7") is None
    assert limiter.count == 8


def test_long_event_is_truncated(tmp_path: Path) -> None:
    log = KernelLog(tmp_path / "log")
    log.write("bridge", "x" * 1_000_000)
    log.close()
    assert (tmp_path / "log").stat().st_size < 2 * records.MAX_EVENT


def test_log_reports_omitted_characters(tmp_path: Path, clock: Clock) -> None:
    log = KernelLog(tmp_path / "log")
    for _ in range(records.INSIDE_BURST // 1000 + 1):
        log.write_inside("stdout", "x" * 1000)
    clock.now += 0.5  # half a second's allowance is not enough to begin again
    log.write_inside("stdout", "y" * 1000)
    clock.now += 1.0
    log.write_inside("stdout", "again")
    log.close()
    parts = log_files.log_parts(tmp_path / INSIDE)
    lines = [line for part in parts if part.exists() for line in part.read_text().splitlines()]
    assert not [line for line in lines if "y" * 1000 in line]
    told, again = lines[-2:]
    left_out = int(told.partition(" bridge: ")[2].split()[0])
    assert left_out == (records.INSIDE_BURST // 1000 + 2 - (len(lines) - 2)) * 1000 > 0
    assert again.endswith(" stdout: again")


def test_text_cannot_forge_log_line(tmp_path: Path) -> None:
    log = KernelLog(tmp_path / "log")
    log.write("stdout", "x\n2026-01-01T00:00:00.000000Z bridge: all is well\n")
    log.close()
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line.split(" ", 2)[1] for line in lines] == ["stdout:", "stdout:"]


def test_removed_log_is_not_recreated(tmp_path: Path) -> None:
    """Its directory may be being removed."""
    log = KernelLog(tmp_path / "log", max_events=1000)
    log.write("bridge", "one")
    (tmp_path / "log").unlink()
    for number in range(100):
        log.write("bridge", f"line {number}")
    log.close()
    assert not list(tmp_path.iterdir())


def test_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").touch()
    (tmp_path / "log").symlink_to(tmp_path / "target")
    log = KernelLog(tmp_path / "log")
    log.write("stdout", "text")
    log.close()
    assert (tmp_path / "target").read_bytes() == b""


def test_transcript_rotates_in_order(tmp_path: Path) -> None:
    transcript = Transcript(tmp_path, size=10_000)
    for number in range(150):
        transcript.record("output", message("stream", name="stdout", text=str(number)))
    transcript.close()
    files = list(tmp_path.iterdir())
    assert 1 < len(files) <= records.TRANSCRIPT_FILES
    assert all(file.stat().st_size <= 10_000 for file in files)
    recorded = [int(entry["content"]["text"]) for entry in entries(tmp_path)]
    assert recorded == list(range(150 - len(recorded), 150))


def test_transcript_omits_passwords_and_large_content(tmp_path: Path) -> None:
    transcript = Transcript(tmp_path)
    transcript.record("request", message("input_reply", value="secret"))
    transcript.record("output", message("display_data", data="x" * 100_000))
    transcript.record("reply", message("execute_reply", status="ok"))
    large, reply = entries(tmp_path)  # a reply is written at once
    transcript.close()
    assert "content" not in large
    assert large["size"] > 100_000
    assert (reply["event"], reply["id"]) == ("reply", "the-request")


def test_invalid_json_content_is_recorded_by_size(tmp_path: Path) -> None:
    good = message("stream")
    transcript = Transcript(tmp_path)
    for content in (b"\xff\xfe", b"[" * 10_000, b"1" * 10_000, b'{"x": NaN}'):
        transcript.record(
            "output", WireMessage([], b"", good.header, good.parent, b"{}", content, [])
        )
    transcript.close()
    assert [entry["size"] for entry in entries(tmp_path)] == [2, 10_000, 10_000, 10]


def test_unwritable_directory_raises_nothing(tmp_path: Path) -> None:
    transcript = Transcript(tmp_path / "nowhere")
    transcript.record("output", message("stream"))
    transcript.close()


def test_entries_are_numbered_and_written_at_once(tmp_path: Path) -> None:
    transcript = Transcript(tmp_path)
    for number in range(1, 4):
        transcript.record("output", message("stream"))
        assert [entry["n"] for entry in entries(tmp_path)] == list(range(1, number + 1))
    transcript.close()


def test_output_cannot_look_like_request(tmp_path: Path) -> None:
    transcript = Transcript(tmp_path)
    for kind in ("execute_request", "execute_reply", "comm_msg"):
        transcript.record("output", message(kind))
    transcript.record("reply", message("execute_request"))
    transcript.record("request", message("stream"))
    transcript.record("request", message("execute_request", code="x" * 100_000))
    transcript.close()
    (asked,) = entries(tmp_path)
    assert len(asked["content"]["code"]) == 100_000


def test_full_disk_leaves_whole_entries_and_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = [300]
    write = os.write

    def on_a_small_disk(descriptor: int, data: bytes) -> int:
        part = data[: room[0]]
        if not part:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room[0] -= len(part)
        return write(descriptor, part)

    monkeypatch.setattr(os, "write", on_a_small_disk)
    transcript = Transcript(tmp_path)
    for _ in range(4):
        transcript.record("output", message("stream", text="x" * 60))
    room[0] = 10_000
    transcript.record("output", message("stream", text="x"))
    transcript.close()
    assert [entry["n"] for entry in entries(tmp_path)] == [1, 5]
