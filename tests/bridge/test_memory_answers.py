"""What front ends are told of a kernel that hibernates."""

from __future__ import annotations

from dataclasses import replace

from gvisor_kernel.bridge.memory_answers import MAX_INFO, MemoryAnswers
from gvisor_kernel.bridge.wire import new_message

ASKED = new_message("comm_info_request", {}, b"{}", b"")


def test_a_comm_is_forgotten_when_it_is_closed() -> None:
    known = MemoryAnswers()
    assert known.find(ASKED)
    known.note(new_message("comm_open", {"comm_id": "a"}, b"{}", b""))
    assert known.find(ASKED) is None
    known.note(new_message("comm_close", {"comm_id": "a"}, b"{}", b""))
    assert known.find(ASKED)


def test_a_large_message_of_a_comm_is_not_parsed_and_the_kernel_is_asked() -> None:
    known, opened = MemoryAnswers(), new_message("comm_open", {}, b"{}", b"")
    known.note(replace(opened, content=b"[" * (MAX_INFO + 1)))  # no JSON: parsing it would raise
    assert known.find(ASKED) is None
