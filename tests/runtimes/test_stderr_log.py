"""What a sandbox's processes write to stderr, in the log file for people."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gvisor_kernel.host.log_files import MAX_STDERR, log_parts
from gvisor_kernel.runtimes.stdio import LONGEST_LINE, TAIL_BYTES, StderrLog

from ..patience import scale_seconds

SECONDS = scale_seconds(20)


class Writer:
    def __init__(self, path: Path) -> None:
        read, self.fd = os.pipe()
        self.log = StderrLog(read, path)

    def write(self, content: bytes) -> None:
        view = memoryview(content)
        while view:
            view = view[os.write(self.fd, view) :]

    def end(self) -> None:
        os.close(self.fd)
        self.log.wait(SECONDS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kernel.log"


@pytest.fixture
def writer(path: Path) -> Iterator[Writer]:
    writer = Writer(path)
    yield writer
    writer.log.wait(SECONDS)


def test_lines_have_a_mark_and_are_printable(writer: Writer, path: Path) -> None:
    writer.write(b"one\ntw")
    writer.write(b"o \x1b[2J\xff\n\nthree")
    writer.end()
    lines = path.read_text().splitlines()
    texts = [re.fullmatch(r"\S+Z sandbox: (.*)", line) for line in lines]
    assert [text and text[1] for text in texts] == ["one", "two \\x1b[2J\ufffd", "three"]
    assert writer.log.tail() == "one\ntwo [2J\ufffd\n\nthree"


def test_the_last_lines_are_there_however_late_the_reader_is(
    writer: Writer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while a writer is still there. A person needs them when a kernel has died."""
    waited = threading.Event()
    write, has_all = writer.log._write_lines, writer.log._has_all

    def write_late(content: bytes) -> None:
        waited.wait(SECONDS)
        write(content)

    def look() -> bool:
        found = has_all()
        if not found:
            waited.set()
        return found

    monkeypatch.setattr(writer.log, "_write_lines", write_late)
    monkeypatch.setattr(writer.log, "_has_all", look)
    for number in range(3):
        waited.clear()
        writer.write(b"words %d\n" % number)
        writer.log.catch_up(SECONDS)
        assert waited.is_set()
        assert writer.log.tail().endswith(f"words {number}\n")
        assert path.read_text().endswith(f"words {number}\n")
    writer.end()


def test_removed_file_is_not_made_again(writer: Writer, path: Path) -> None:
    """Its directory is being removed while the last lines come."""
    path.unlink()
    writer.write(b"last words\n")
    writer.end()
    assert not path.exists()
    assert writer.log.tail() == "last words\n"


@pytest.mark.parametrize("text", [b"x", b"x\n", b"\0", b"\0\n", b"\xff"])
def test_file_size_is_bounded(writer: Writer, path: Path, text: bytes) -> None:
    """For any bytes: the beginning and the end stay, and a line says how much was left out."""
    writer.write(b"first words\n")
    for _ in range(40):
        writer.write(text * (65536 // len(text)))
    writer.write(b"\nlast words\n")
    writer.end()
    parts = [part for part in log_parts(path) if part.exists()]
    lines = [line for part in parts for line in part.read_text().splitlines()]
    longest = 4 * 17 * LONGEST_LINE  # one read and the line before it, escaped
    assert sum(part.stat().st_size for part in parts) < 3 * (MAX_STDERR + longest)
    assert max(map(len, lines)) < longest
    assert lines[0].endswith(" sandbox: first words")
    assert lines[-1].endswith(" sandbox: last words")
    assert any("bytes were left out" in line for line in lines)
    assert len(writer.log.tail()) <= TAIL_BYTES
