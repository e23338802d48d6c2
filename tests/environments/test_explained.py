"""What a person reads when pip fails, by what pip wrote."""

from __future__ import annotations

import pytest

from gvisor_kernel.egress.package_catalog import NO_INDEX
from gvisor_kernel.errors import PackagesError
from gvisor_kernel.kernel.environment_builder import (
    SHOWN_LINES,
    _explain,
    _find_failures,
    _read_message,
)


@pytest.mark.parametrize(
    ("line", "fact"),
    [
        (
            "ERROR: No matching distribution found for nosuch>=3",
            "The package index has no nosuch>=3 that fits this Python.",
        ),
        ("ERROR: Could not install: [Errno 28] No space left on device", "The disk is full."),
        ("ERROR: ResolutionImpossible: for help visit", "exclude each other"),
        ("/home/user/.venv/bin/python: No module named pip", "has no pip"),
        ("ERROR: Failed building wheel for lxml", "could not be built"),
        ("error: metadata-generation-failed", "could not be built"),
        ("ERROR: something else", "pip could not install a b."),
    ],
)
def test_reason_is_found_and_pips_last_lines_are_shown(line: str, fact: str) -> None:
    before = [f"line {number}" for number in range(100)]
    error = _explain([*before, line, '{"status": 1}'], ["a", "b"], [])
    assert fact in error.fact
    assert error.hint
    shown = error.detail.splitlines()
    assert shown[-1] == line
    assert len(shown) == SHOWN_LINES


def test_index_that_failed_comes_first() -> None:
    answers = [[404, "no index has a"], [502, "pypi.org did not answer.\n"], [404, NO_INDEX]]
    failures = _find_failures({"answers": answers})
    assert failures == ["pypi.org did not answer.", NO_INDEX]
    error = _explain(["No matching distribution found for a", "{}"], ["a"], failures)
    assert error.fact == "The packages a could not be got from an index: pypi.org did not answer."


@pytest.mark.parametrize(
    ("kind", "content", "read"),
    [
        ("stream", {"text": "a\nb"}, ("a\nb", False)),
        ("stream", {"text": [1]}, ("[1]", False)),
        ("error", {"ename": "E", "evalue": "why"}, ("\nE: why\n", False)),
        ("status", {"execution_state": "busy"}, ("", False)),
        ("status", {"execution_state": "idle"}, ("", True)),
    ],
)
def test_messages_are_read(kind: str, content: object, read: tuple[str, bool]) -> None:
    message = {"parent_header": {"msg_id": "1"}, "msg_type": kind, "content": content}
    assert _read_message(message, "1") == read
    assert _read_message({**message, "parent_header": {"msg_id": "2"}}, "1") == ("", False)


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"parent_header": []},
        {"parent_header": {"msg_id": "1"}, "msg_type": "stream", "content": {}},
        {"parent_header": {"msg_id": "1"}, "msg_type": "stream", "content": "text"},
        {"parent_header": {"msg_id": "1"}, "msg_type": "status", "content": []},
        {"parent_header": {"msg_id": "1"}, "msg_type": "error", "content": 3},
    ],
)
def test_message_that_is_none_of_a_kernel_is_refused(message: dict[str, object]) -> None:
    with pytest.raises(PackagesError, match="odd answer"):
        _read_message(message, "1")


@pytest.mark.parametrize(
    "answers", [None, 3, [1], [["x", "y"]], {"a": 1}, [[1, 2, 3]], [[float("inf"), ""]]]
)
def test_odd_answers_say_nothing(answers: object) -> None:
    assert _find_failures({"answers": answers}) == []
