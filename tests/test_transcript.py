"""Tests of the transcript: the host's file, and the kernel's read-only view of it."""

from __future__ import annotations

import json
from typing import Any

from .jupyter.helpers import execute, running_kernel

READ = """
import json
lines = open("/mnt/transcripts/transcript.jsonl").read().splitlines()
[json.loads(line)["content"]["code"] for line in lines if '"execute_request"' in line][:3]
"""


def test_requests_and_replies_are_recorded() -> None:
    with running_kernel() as (manager, client):
        sandbox: Any = manager.provisioner._kernel.sandbox  # type: ignore[union-attr]
        execute(client, "print('hello')")
        execute(client, "print('x' * 100_000)")
        execute(client, "1 / 0")
        inside = execute(client, READ)
        assert inside.result == repr(["print('hello')", "print('x' * 100_000)", "1 / 0"])
        text = (sandbox.view.transcripts / "transcript.jsonl").read_text()
    entries = [json.loads(line) for line in text.splitlines()]
    requests = [entry for entry in entries if entry["event"] == "request"]
    hello, large, error = (
        [entry for entry in entries if entry["id"] == request["id"]] for request in requests[:3]
    )
    # Output and reply use different channels: their order is not promised.
    assert hello[0]["event"] == "request"
    assert [entry["content"]["status"] for entry in hello if entry["event"] == "reply"] == ["ok"]
    printed_text = [entry["content"]["text"] for entry in hello if entry["event"] == "output"]
    assert "".join(printed_text) == "hello\n"
    # The newline may come separately and be kept; of the large text only the size is kept.
    printed = [entry for entry in large if entry["event"] == "output"]
    assert sum(entry["size"] for entry in printed if "content" not in entry) >= 100_000
    assert all("x" not in entry["content"]["text"] for entry in printed if "content" in entry)
    assert {entry["type"] for entry in error} == {"execute_request", "error", "execute_reply"}
    assert [entry["time"] for entry in entries] == sorted(entry["time"] for entry in entries)


def test_no_transcript_when_setting_is_off() -> None:
    with running_kernel(settings={"transcripts": False}) as (manager, client):
        sandbox: Any = manager.provisioner._kernel.sandbox  # type: ignore[union-attr]
        assert sandbox.view.transcripts is None
        answer = execute(client, "import os; os.listdir('/mnt/transcripts')")
        assert answer.result == "[]"
