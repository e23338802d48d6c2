"""What a run gave, as a program sees it."""

from __future__ import annotations

import base64
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gvisor_kernel.api.execution import (
    CodeFailed,
    Execution,
    ExecutionError,
    Logs,
    Result,
    strip_ansi,
)

PNG = b"\x89PNG\r\n\x1a\n"


def test_forms_of_a_result_have_short_names() -> None:
    data = {
        "text/plain": "<Figure>",
        "image/png": base64.b64encode(PNG).decode() + "\n",
        "application/json": {"a": [1]},
        "application/x-own": "x",
    }
    result = Result(data)
    assert result.formats() == ("text", "png", "json", "application/x-own")
    assert (result.text, result.png, result.json) == ("<Figure>", PNG, {"a": [1]})
    assert (result.html, result.jpeg) == (None, None)
    assert str(result) == "<Figure>"
    assert str(Result({"image/png": ""})) == "(png)"


@pytest.mark.parametrize("value", [None, 7, ["x"], {"a": 1}, "not base64!", "AAA"])
def test_a_picture_that_is_none_is_no_bytes(value: object) -> None:
    assert Result({"image/png": value}).png in (None, b"", b"\x9e\x8b[j\xc7\xba\x1e")


@pytest.mark.parametrize("value", [None, 7, ["x"]])
def test_a_text_that_is_none_is_no_text(value: object) -> None:
    assert Result({"text/plain": value, "text/html": value}).text is None
    assert Result({"text/html": value}).html is None


def test_a_text_has_no_colours_and_its_data_has_them() -> None:
    data = {"text/plain": "{ a: \x1b[33m1\x1b[39m }\x1b]52;c;x\x07"}
    result = Result(data, is_main_result=True)
    assert result.text == str(result) == Execution([result]).text == "{ a: 1 }"
    assert result.data == data


def test_text_is_the_value_of_the_last_expression() -> None:
    shown, main = Result({"text/plain": "1"}), Result({"text/plain": "2"}, is_main_result=True)
    assert Execution(results=[shown, main]).text == "2"
    assert Execution(results=[shown]).text is None


def test_an_error_has_its_traceback_with_and_without_colours() -> None:
    raw = ("\x1b[31mZeroDivisionError\x1b[0m", "\x1b]8;;http://x\x07link\x1b]8;;\x07 1/0")
    error = ExecutionError("ZeroDivisionError", "division by zero", raw)
    assert error.traceback == "ZeroDivisionError\nlink 1/0"
    assert error.traceback_raw == raw
    assert str(error) == "ZeroDivisionError: division by zero"
    execution = Execution(logs=Logs(["a", "b"], ["c"]), error=error)
    assert not execution.ok
    assert (execution.stdout, execution.stderr) == ("ab", "c")
    with pytest.raises(CodeFailed, match="division by zero") as caught:
        execution.raise_for_error()
    assert caught.value.execution is execution


def test_lists_are_lists_as_with_e2b() -> None:
    execution = Execution([Result({})], Logs(["a"], ["b"]))
    assert execution.logs.stdout + execution.logs.stderr == ["a", "b"]
    assert [*execution.results, None] == execution.results + [None]  # noqa: RUF005


def test_json_has_results_logs_and_error() -> None:
    execution = Execution([Result({"text/plain": "1"})], Logs(["a"]), ExecutionError("E", "v"))
    assert json.loads(execution.to_json()) == {
        "results": [{"text/plain": "1"}],
        "logs": {"stdout": ["a"], "stderr": []},
        "error": {"name": "E", "value": "v", "traceback": ""},
    }


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("a\x1b[2Kb", "ab"),
        ("a\x1b(Bb", "ab"),
        ("plain\n\té", "plain\n\té"),
        ("\x1b\x1b[0m[31mnested", "[31mnested"),
        ("a\x9b31mb\x9d0;title\x9cc", "abc"),
        ("\x1b]52;c;AAAA", "52;c;AAAA"),
    ],
)
def test_colours_are_removed(text: str, plain: str) -> None:
    assert strip_ansi(text) == plain


@given(st.text(alphabet="\x1b\x9b\x9d\x9c\x07\\\\[]();0m ?a"))
def test_nothing_is_left_that_a_terminal_obeys(text: str) -> None:
    assert not re.search("[\x1b\x80-\x9f]", strip_ansi(text))


@pytest.mark.parametrize("part", ["\x1b", "\x1b[", "\x1b]", "\x9d", "\x1b ", "\x1b[0;", "\x1b[ "])
def test_a_traceback_of_beginnings_takes_no_squared_time(part: str) -> None:
    """Squared, each of them would take hours."""
    assert "\x1b" not in strip_ansi(part * 1_000_000)
    strip_ansi(part + "0" * 1_000_000)


def test_a_notebook_shows_pictures_and_text_but_nothing_active() -> None:
    data = {
        "text/plain": "x",
        "image/png": "iVBO",
        "text/html": "<script>",
        "image/svg+xml": "<svg",
    }
    shown, _ = Result({**data, "application/javascript": "x"})._repr_mimebundle_()
    assert shown == {"text/plain": "x", "image/png": "iVBO"}
