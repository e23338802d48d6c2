"""``initialize`` over stdio is answered before the SDK is imported, as the SDK would answer it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel.mcp.stdio import VERSIONS, find_request

from .servers import raw_server
from .test_hostile import INITIALIZE, READY, Answers, send

PARAMS: Any = INITIALIZE["params"]
LATE = """
import os, sys
open({fifo!r}).read()
sys.path.remove({folder!r})
del sys.modules["mcp"]
import mcp
"""


def initialize(version: str, **more: Any) -> dict[str, Any]:
    return {**INITIALIZE, "params": {**PARAMS, "protocolVersion": version}, **more}


def test_initialize_is_answered_while_the_sdk_is_still_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The import waits for this test, which first reads the answer."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    (tmp_path / "mcp.py").write_text(LATE.format(fifo=str(fifo), folder=str(tmp_path)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with raw_server() as process, Answers(process) as answers:
        send(process, initialize(VERSIONS[0], id="a"), READY)
        send(process, {"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
        first = json.loads(answers.file.readline())
        assert (first["id"], first["result"]["protocolVersion"]) == ("a", VERSIONS[0])
        fifo.write_text("")
        second = json.loads(answers.file.readline())
        assert second["id"] == 1  # the SDK's own answer to "a" is not sent
        assert second["result"]["tools"]


def test_the_answer_is_the_sdks() -> None:
    """A line that is no message, before it, makes the SDK answer."""
    found = []
    for before in (b"", b"no message\n"):
        with raw_server() as process, Answers(process) as answers:
            send(process, before, initialize(VERSIONS[-1]))
            found.append(answers.until(0))
    assert found[0] == found[1]


@pytest.mark.once
@pytest.mark.parametrize(
    "change",
    [
        {"method": "ping"},
        {"id": None},
        {"id": True},
        {"jsonrpc": "1.0"},
        {"params": None},
        {"params": {"protocolVersion": "1.0"}},
        {"params": {**PARAMS, "protocolVersion": "2026-07-28"}},
        {"params": {**PARAMS, "clientInfo": {"name": "x"}}},
        {"params": {**PARAMS, "capabilities": []}},
    ],
)
def test_what_is_not_plain_is_left_to_the_sdk(change: dict[str, Any]) -> None:
    assert find_request(json.dumps(INITIALIZE).encode()) is not None
    assert find_request(json.dumps({**INITIALIZE, **change}).encode()) is None
    assert find_request(b"[" * 60_000) is None
    assert find_request(b"7") is None
