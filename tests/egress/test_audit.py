"""The record of requests: bounded, without secrets, and kept although a kernel floods it."""

from __future__ import annotations

import dataclasses
import json
import resource
from pathlib import Path

import pytest

from gvisor_kernel.egress import audit
from gvisor_kernel.egress.audit import (
    MAX_PENDING,
    REFUSED_BURST,
    Audit,
    Entry,
    describe_entry,
    read_entries,
)
from gvisor_kernel.errors import EgressError


def entry(path: str = "/a", reason: str = "", **values: int) -> Entry:
    return Entry(
        route="x",
        method="GET",
        host="example.org",
        path=path,
        status=403 if reason else 200,
        reason=reason,
        **values,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / audit.FILE


def test_entries_are_read_as_they_were_written(path: Path) -> None:
    record = Audit(path)
    written = [entry("/a", up=3, down=5), entry("/b", reason="no"), entry("/c")]
    assert all(record.write(item) for item in written)
    record.close()
    assert list(read_entries(path)) == written
    assert len(path.read_text().splitlines()) == 3


def test_query_is_not_recorded(path: Path) -> None:
    record = Audit(path)
    record.write(entry("/a?token=sk-0123"))
    record.close()
    assert "sk-0123" not in path.read_text()
    assert [item.path for item in read_entries(path)] == ["/a"]


def test_text_of_a_sandbox_makes_one_line_of_bounded_length(path: Path) -> None:
    record = Audit(path)
    long = "\n\x1b[2J\u202e\udcff" + "x" * 100_000
    record.write(Entry(route=long, method=long, host=long, path=long, status=400, reason=long))
    record.close()
    [line] = path.read_bytes().splitlines()
    assert len(line) < 10_000
    assert line.isascii()
    [found] = read_entries(path)
    assert found.path.startswith("\n\x1b[2J\u202e")


def test_older_half_is_dropped(path: Path) -> None:
    record = Audit(path, 2000)
    for number in range(100):
        record.write(entry(f"/{number}"))
    record.close()
    found = [int(item.path[1:]) for item in read_entries(path)]
    assert found == list(range(found[0], 100))
    assert 5 < len(found) < 50
    assert sum(part.stat().st_size for part in path.parent.iterdir()) <= 4000


def test_refused_requests_do_not_push_out_others(path: Path) -> None:
    record = Audit(path)
    record.write(entry("/sent", up=1000))
    for number in range(5000):
        record.write(entry(f"/{number}", reason="no"))
    record.write(entry("/last"))
    record.write(entry("/refused", reason="no"))
    record.close()
    found = list(read_entries(path))
    assert found[0].path == "/sent"
    assert "/last" in [item.path for item in found]
    assert len(found) < REFUSED_BURST + 100
    assert sum(1 + item.more for item in found) == 5003


def test_refusal_that_has_sent_bytes_is_always_written(path: Path) -> None:
    record = Audit(path)
    assert all(record.write(entry(reason="too long", up=1)) for _ in range(2000))
    record.close()


def test_request_that_was_sent_is_always_written(path: Path) -> None:
    record = Audit(path)
    written = [record.write(entry(reason="gone", id="1")) for _ in range(2000)]
    assert all(written)
    record.close()


def test_request_that_cannot_be_recorded_blocks_the_next(path: Path) -> None:
    record = Audit(path)
    record.check()
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, most))  # as on a full disk
    try:
        assert not record.write(entry("/a"))
        with pytest.raises(EgressError, match="cannot be recorded"):
            record.check()
        for _ in range(2 * MAX_PENDING):
            record.write(entry("/b"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))
    record.check()
    record.close()
    assert len(list(read_entries(path))) == MAX_PENDING


def test_broken_lines_are_skipped(path: Path) -> None:
    good = json.dumps(dataclasses.asdict(entry()))
    bad = ["", "x", "[]", "{}", "3", '{"time": 3}', good.replace("200", "true"), "[" * 1000]
    bad += [good.replace('"route"', '"rotue"'), good[:-5], good.replace('"up": 0', '"up": "0"')]
    path.write_text("\n".join([good, *bad, good]))
    assert len(list(read_entries(path))) == 2


def test_link_in_the_place_of_the_record_is_not_followed(path: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_text(json.dumps(dataclasses.asdict(entry())) + "\n")
    path.symlink_to("other")
    with pytest.raises(OSError, match="symbolic links"):
        list(read_entries(path))


def test_missing_record_has_no_entries(path: Path) -> None:
    assert list(read_entries(path)) == []


def test_entry_is_described_in_one_line() -> None:
    text = describe_entry(dataclasses.replace(entry(up=3, down=2048, reason="no"), more=4))
    assert text.startswith("GET example.org/a by the route x: 403, 3 B up, 2 KiB down, 0.000 s; no")
    assert text.endswith("(and 4 refused requests before it)")
    assert "\n" not in text
