"""What a result shows, without a sandbox: its limits, what was cut, and how it goes on."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from gvisor_kernel.api.async_sandbox import AsyncSandbox
from gvisor_kernel.api.execution import Execution, ExecutionError, Logs, Missing, Result
from gvisor_kernel.mcp.file_tools import decode
from gvisor_kernel.mcp.limits import Limits
from gvisor_kernel.mcp.results import make_run_result
from gvisor_kernel.mcp.sessions import Session

pytestmark = pytest.mark.once

LIMITS = Limits(shown=10, images=2, image_bytes=100)


def show(**parts: Any) -> tuple[str, dict[str, Any], int]:
    """Return the text, the structure and the number of pictures of a run."""
    session = Session("s", AsyncSandbox(), None, is_new=False)
    result = make_run_result(session, 7, Execution(**parts), LIMITS)
    structure: Any = result.structured_content
    content: Any = result.content
    assert result.is_error == (structure["status"] != "ok")
    return content[0].text, structure, len(content) - 1


def picture(size: int) -> Result:
    return Result({"image/png": base64.b64encode(bytes(size)).decode(), "text/plain": "<Figure>"})


def test_nothing_is_said_to_be_nothing() -> None:
    assert show()[0] == "[no output]"


def test_colours_and_what_is_no_text_are_removed() -> None:
    text, structure, _ = show(logs=Logs(("\x1b[1mred\ud800",)))
    assert structure["stdout"] == "red?"
    assert text == "[stdout]\nred?"


@pytest.mark.parametrize("missing", [0, 5])
def test_what_is_cut_says_how_to_read_on(missing: int) -> None:
    text, structure, _ = show(
        logs=Logs(("x" * (11 if not missing else 10),)), missing=Missing(stdout=missing)
    )
    assert structure["stdout"] == "x" * 10
    assert 'sandbox_read_output with session="s", run=7, stream="stdout", offset=10' in text


def test_results_are_cut_too() -> None:
    text, structure, _ = show(results=(Result({"text/plain": "y" * 11}, is_main_result=True),))
    assert structure["result"] == "y" * 10
    assert 'stream="result", offset=10' in text
    text, structure, _ = show(missing=Missing(results=5))
    assert 'stream="result", offset=0' in text


def test_pictures_beyond_the_limits_are_left_out() -> None:
    _, structure, count = show(results=(picture(101), picture(10), picture(10), picture(10)))
    assert count == structure["images"] == 2
    assert len([line for line in structure["cut"] if "left out" in line]) == 2


@pytest.mark.parametrize("ended_by", ["kill", "death"])
def test_a_dead_kernel_says_what_to_do(ended_by: str) -> None:
    text, structure, _ = show(error=ExecutionError("KernelDied", "why"), ended_by=ended_by)
    assert structure["status"] in ("killed", "died")
    assert "sandbox_restart_session" in text


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", ("", "text", 0)),
        ("\u00e9".encode(), ("\u00e9", "text", 2)),
        ("a\u20ac".encode()[:3], ("a", "text", 1)),
        ("\u20ac".encode()[:2], ("4oI=", "base64", 2)),
        (b"\xff", ("/w==", "base64", 1)),
        (b"a\x00", ("YQA=", "base64", 2)),
        (b"aaaaa\xffbbbbb", ("YWFhYWH/YmJiYmI=", "base64", 11)),
    ],
)
def test_bytes_are_text_if_they_can_be(data: bytes, expected: tuple[str, str, int]) -> None:
    assert decode(data) == expected
