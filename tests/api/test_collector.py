"""Messages of a sandbox are collected within bounds, whatever they contain."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gvisor_kernel.api import collector as module
from gvisor_kernel.api.collector import Collector, LeftOut, cut, read_error
from gvisor_kernel.api.execution import ExecutionError, Missing, Omitted, Printed, Result

from ..sweeps import ALL

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)
KINDS = ("stream", "execute_result", "display_data", "update_display_data", "error", "status")


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector("request", 100, 200)
    yield collector
    collector.close()


def stream(text: object, name: object = "stdout") -> dict[str, Any]:
    return {"msg_type": "stream", "content": {"name": name, "text": text}}


def display(data: object, kind: str = "display_data", display_id: str = "") -> dict[str, Any]:
    transient = {"display_id": display_id} if display_id else {}
    content = {"data": data, "metadata": {}, "transient": transient}
    return {"msg_type": kind, "content": content}


def test_text_over_the_limit_is_counted_and_kept_in_a_file(collector: Collector) -> None:
    assert collector.add(stream("a" * 90)) == Printed("stdout", "a" * 90)
    assert collector.add(stream("é" * 10)) == Printed("stdout", "é" * 10)
    collector.add(stream("b"))
    collector.add(stream("error", "stderr"))
    execution = collector.finish(None)
    assert execution.stdout == "a" * 90 + "é" * 5
    assert execution.stderr == "error"
    assert execution.missing == Missing(stdout=11)
    assert collector.read_output().stdout == "a" * 90 + "é" * 10 + "b"
    assert collector.read_output().stderr == "error"


def test_pictures_have_a_limit_of_their_own_and_are_named_beyond_it(collector: Collector) -> None:
    for _ in range(3):
        collector.add(display({"text/plain": "<Figure>", "image/png": "x" * 200}))
    collector.add(display({"text/plain": "y" * 200, "text/html": "z" * 500}))
    execution = collector.finish(None)
    assert [result.formats() for result in execution] == [("text", "png"), ("text",), ("text",)]
    rich = (Omitted("image/png", 2, 2 * (150 + 9)), Omitted("text/html", 1, 509))
    assert execution.missing == Missing(results=200, rich=rich)
    assert str(execution.missing) == (
        "Left out: 200 B of results: print less; 2 image/png (318 B in all), text/html (509 B):"
        " display it smaller, or save it to a file."
    )
    kept = collector.read_output().results
    assert [len(str(result.data.get("image/png", ""))) for result in kept] == [200, 200, 200, 0]


def test_types_that_a_sandbox_makes_up_are_bounded_and_command_nothing(
    collector: Collector,
) -> None:
    for number in range(100):
        collector.add(display({f"\x1b[2J\u202e{number}" + "x" * 1000: "y" * 1000}))
    rich = collector.finish(None).missing.rich
    assert len(rich) == module.MAX_TYPES + 1
    assert sum(forms.count for forms in rich) == 100
    assert all(forms.type.isprintable() and len(forms.type) < 150 for forms in rich)


def test_results_over_the_limit_are_counted_and_kept_in_a_file(collector: Collector) -> None:
    large = {"text/plain": "x" * 200}
    assert collector.add(display(large)) == Result(large)
    collector.add(display({"text/plain": "1"}, "execute_result"))
    execution = collector.finish(None)
    assert execution.text == "1"
    assert execution.missing.results == 200
    assert [dict(result.data) for result in collector.read_output().results] == [
        large,
        {"text/plain": "1"},
    ]


def test_the_beginning_of_a_main_result_is_kept(collector: Collector) -> None:
    collector.add(display({"text/plain": "x" * 5000, "text/html": "y"}, "execute_result"))
    execution = collector.finish(None)
    assert execution.text is not None
    assert set(execution.text) == {"x"}
    assert 0 < len(execution.text) <= 100
    assert len(execution.text) + execution.missing.results == 5000


def test_what_is_kept_is_bounded() -> None:
    collector = Collector("request", 100, max_kept=1000)
    for _ in range(50):
        collector.add(stream("x" * 100))
    assert 0 < len(collector.read_output().stdout) <= 1000
    assert collector.finish(None).missing.stdout == 4900
    collector.close()


def test_a_display_is_updated(collector: Collector) -> None:
    collector.add(display({"text/plain": "1"}, display_id="a"))
    collector.add(display({"text/plain": "2"}, display_id="b"))
    collector.add(display({"text/plain": "3"}, "update_display_data", "a"))
    assert [result.text for result in collector.finish(None).results] == ["3", "2"]


def test_metadata_and_names_of_displays_are_bounded(collector: Collector) -> None:
    long = "x" * 1000
    message = display({}, display_id=long)
    collector.add(message)
    message["content"]["metadata"] = {"a": long}
    assert collector.add(message) == Result({}, {"a": long})
    assert collector.finish(None).results == [Result({}), Result({})]
    assert collector.finish(None).missing.rich[0].size > 1000
    assert not collector._displays


def test_empty_results_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RESULTS", 3)
    collector = Collector("request", 1000)
    for _ in range(5):
        collector.add(display({}, display_id="a"))
    assert collector.finish(None).missing.rich == (Omitted("empty value", 2, 0),)
    collector.add(display({"text/plain": "over"}))
    assert collector.finish(None).missing.results == 4
    collector.add(display({"text/plain": "last"}, "update_display_data", "a"))
    execution = collector.finish(None)
    assert [result.text for result in execution] == [None, None, "last"]
    collector.close()


def test_the_first_reply_counts_and_is_not_kept(collector: Collector) -> None:
    collector.add_reply({"execution_count": 7, "payload": "x" * 1000})
    collector.add_reply({"execution_count": 8, "status": "error"})
    execution = collector.finish(None)
    assert (execution.execution_count, execution.error) == (7, None)
    other = Collector("request", 100)
    other.add_reply({"execution_count": True})
    assert other.has_reply
    assert other.finish(None).execution_count is None


@settings(max_examples=200 if ALL else 40)
@given(st.lists(st.tuples(st.sampled_from(KINDS) | JSON, JSON), max_size=20))
def test_no_message_of_a_sandbox_does_harm(messages: list[tuple[Any, Any]]) -> None:
    collector = Collector("request", 100)
    try:
        for kind, content in messages:
            collector.add({"msg_type": kind, "content": content})
            keys = ("name", "text", "data", "metadata", "transient", "ename", "evalue", "traceback")
            collector.add({"msg_type": kind, "content": dict.fromkeys(keys, content)})
        execution = collector.finish(None)
        assert len(execution.stdout.encode()) <= 100
        collector.read_output()
        execution.to_json()
    finally:
        collector.close()


def test_an_error_is_bounded() -> None:
    lines = ["x" * 100_000] * 100
    error = read_error({"ename": "E" * 10_000, "evalue": None, "traceback": lines})
    assert len(error.name) == 1000
    assert error.value == ""
    assert len(error.traceback) < module.MAX_TRACEBACK + 100
    assert len(read_error({"traceback": [""] * 1_000_000}).traceback_raw) <= module.MAX_TRACEBACK
    assert read_error({}) == ExecutionError("Error", "")


@given(st.text(), st.integers(0, 50))
def test_a_text_is_cut_between_characters(text: str, limit: int) -> None:
    part = cut(text, limit)
    assert text.startswith(part)
    assert len(part.encode("utf-8", "surrogatepass")) <= limit
    if part != text:
        assert len(text[: len(part) + 1].encode("utf-8", "surrogatepass")) > limit


def test_a_value_that_takes_too_much_memory_is_counted(collector: Collector) -> None:
    assert collector.add({"msg_type": "display_data", "content": LeftOut(5000)}) is None
    assert collector.finish(None).missing.results == 5000


def test_many_read_the_output_while_it_grows(collector: Collector) -> None:
    text = "x" * 50_000 + "\n"
    collector.add(stream(text))
    with ThreadPoolExecutor(8) as pool:
        readers = [pool.submit(collector.read_output) for _ in range(50)]
        for _ in range(20):
            collector.add(stream(text))
        for reader in readers:
            read = reader.result().stdout
            assert read == text * (len(read) // len(text))
    assert collector.read_output().stdout == text * 21


def test_a_full_disk_costs_the_kept_output_alone(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    collector.add(stream("first"))
    monkeypatch.setattr(os, "pwrite", fail)
    collector.add(stream("second"))
    assert collector.finish(None).stdout == "firstsecond"
    assert collector.read_output().stdout == "first"
    collector.close()


def test_the_name_of_an_exception_commands_no_terminal() -> None:
    assert read_error({"ename": "\x1b[2JName\n"}).name == "?[2JName?"
    assert str(read_error({"ename": "", "evalue": "127"})) == "CommandFailed: exit status 127"
