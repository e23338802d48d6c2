"""Answers of the service process."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from gvisor_kernel.guest.service_process import split_list
from gvisor_kernel.link.service_messages import MAX_ANSWER_CONTENT

names = st.text(st.characters(codec="utf-8"), max_size=1000)


@given(st.lists(st.tuples(names, st.integers(0, 2**63))), st.integers(1, 40))
def test_a_long_list_is_split_into_short_messages(
    entries: list[tuple[str, int]], times: int
) -> None:
    reply = {"entries": entries * times, "more": False, "done": True}
    messages = list(split_list(reply))
    assert all(len(json.dumps(message)) <= MAX_ANSWER_CONTENT for message in messages)
    assert [entry for message in messages for entry in message["entries"]] == reply["entries"]
    assert all(message["entries"] and "done" not in message for message in messages[:-1])
    assert {**messages[-1], "entries": entries * times} == reply


def test_an_answer_without_a_list_is_one_message() -> None:
    assert list(split_list({"total": 7, "done": True})) == [{"total": 7, "done": True}]
