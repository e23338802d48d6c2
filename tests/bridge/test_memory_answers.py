"""What front ends are told of a kernel that hibernates."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from gvisor_kernel.bridge.memory_answers import MemoryAnswers
from gvisor_kernel.bridge.wire import MAX_HEADER, new_message
from gvisor_kernel.strict_json import MAX_DEPTH, parse_json

ASKED = new_message("comm_info_request", {}, b"{}", b"")


def test_a_comm_is_forgotten_when_it_is_closed() -> None:
    known = MemoryAnswers()
    assert known.find(ASKED)
    known.note(new_message("comm_open", {"comm_id": "a"}, b"{}", b""))
    assert known.find(ASKED) is None
    known.note(new_message("comm_close", {"comm_id": "a"}, b"{}", b""))
    assert known.find(ASKED)


@pytest.mark.parametrize("content", [b"[" * 9, b"{" + b" " * MAX_HEADER + b"}"])
def test_what_is_not_parsed_is_passed_on_and_the_kernel_is_asked(content: bytes) -> None:
    known = MemoryAnswers()
    for kind in (
        "kernel_info_reply",
        "debug_reply",
        "execute_request",
        "execute_reply",
        "comm_close",
    ):
        known.note(replace(new_message(kind, {}, b"{}", b""), content=content))
    assert known.find(ASKED)
    assert known.find(new_message("kernel_info_request", {}, b"{}", b"")) is None
    known.note(replace(new_message("comm_open", {}, b"{}", b""), content=content))
    assert known.find(ASKED) is None
    known.note(replace(new_message("comm_close", {}, b"{}", b""), content=content))
    assert known.find(ASKED) is None


@pytest.mark.parametrize("levels", [40, MAX_DEPTH - 1])
def test_what_is_known_can_be_read_again(levels: int) -> None:
    """A kernel decides how deep its reply is nested, and it is written inside other objects."""
    reply: dict[str, object] = {"command": "debugInfo"}
    for _ in range(levels):
        reply = {"command": "debugInfo", "body": reply}
    known, after = MemoryAnswers(), MemoryAnswers()
    known.note(new_message("debug_reply", reply, b"{}", b""))
    written = json.dumps({"known": known.dump(), "others": [[[]]]})
    after.load(parse_json(written, MAX_HEADER)["known"])
    asked = new_message("debug_request", {"command": "debugInfo", "seq": 1}, b"{}", b"")
    assert (after.find(asked) is not None) is (levels == 40)


def test_a_large_request_of_the_debugger_counts_as_its_use() -> None:
    known, request = MemoryAnswers(), {"command": "debugInfo", "seq": 1}
    asked = new_message("debug_request", request, b"{}", b"")
    known.note(new_message("debug_reply", {"command": "debugInfo"}, b"{}", b""))
    assert known.find(asked)
    known.note(new_message("debug_request", {"code": "#" * MAX_HEADER}, b"{}", b""))
    assert known.find(asked) is None
