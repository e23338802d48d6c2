"""Orders and facts: what is written is read again, and anything else is refused or is no fact."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gvisor_kernel.config.mounts import ExtraMount
from gvisor_kernel.config.packages import Packages
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.node import serve
from gvisor_kernel.runtimes.base import LaunchRequest
from gvisor_kernel.runtimes.nodes.orders import (
    HEAD,
    MARK,
    MAX_ORDER,
    Fact,
    Failed,
    Files,
    Found,
    Here,
    Leaving,
    Memory,
    Order,
    OrderError,
    Ready,
    read_fact,
    read_head,
    read_order,
    show_text,
    write_fact,
    write_head,
    write_order,
)
from gvisor_kernel.runtimes.nodes.reports import MAX_WORDS, Reports
from gvisor_kernel.runtimes.nodes.settings import Slurm

SPEC = SandboxSpec(
    runtime="slurm",
    mounts=(ExtraMount("/data", "/data"),),
    environment=("SHOWN",),
    preload=("numpy",),
    packages=Packages(("polars",), "a" * 64),
    own=Slurm(arguments=("--x",)),
)
REQUEST = LaunchRequest(
    *("gvisor-python", "an id", Path("/notebooks"), "/usr/bin/python3"),
    {"SHOWN": "yes", "SECRET": "hunter2"},
    ahead=("ipykernel",),
    saved={"argv": ["python"], "preload": ["numpy"]},
    unfit="0123456789abcdef" * 2,
)
ORDER = Order(
    *(SPEC, REQUEST, (("/notebooks", 7),), {"HOME": "/home/me"}, ("/state",)),
    kernel={"argv": [], "environment": {"A": "b"}, "substituted": []},
)


def test_order_is_read_as_it_was_written() -> None:
    data = write_order(ORDER)
    size = read_head(data[:HEAD])
    assert size == len(data) - HEAD
    shown = dataclasses.replace(REQUEST, environment={"SHOWN": "yes"})
    spec = dataclasses.replace(SPEC, own=None)  # what the client is asked for
    assert read_order(data[HEAD:]) == dataclasses.replace(ORDER, spec=spec, request=shown)


def test_order_has_no_variable_that_nobody_has_named() -> None:
    assert b"hunter2" not in write_order(ORDER)


@pytest.mark.parametrize("key", ["..", "x/../../y", "0" * 31, "A" * 32])
def test_order_with_an_odd_snapshot_is_refused(key: str) -> None:
    """It is the name of a folder that is removed."""
    request = dataclasses.replace(REQUEST, unfit=key)
    with pytest.raises(OrderError, match="malformed"):
        read_order(write_order(dataclasses.replace(ORDER, request=request))[HEAD:])


def test_order_that_is_too_long_is_refused() -> None:
    request = dataclasses.replace(REQUEST, environment={"SHOWN": "x" * MAX_ORDER})
    with pytest.raises(OrderError, match="the limit is"):
        write_order(dataclasses.replace(ORDER, request=request))


def test_head_of_another_release_names_both() -> None:
    head = write_head(5).replace(write_head(5).split()[1], b"9.9.9")[:HEAD]
    with pytest.raises(OrderError, match=r"has gvisor-kernel 9\.9\.9, this node has"):
        read_head(head)


@pytest.mark.parametrize(
    "head", [b"", b"GET / HTTP/1.1\r\n", b"gvisor-kernel 0.1.0 x", b"\xff" * 48]
)
def test_other_bytes_are_no_head(head: bytes) -> None:
    with pytest.raises(OrderError):
        read_head(head)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_nothing_else(data: bytes) -> None:
    for read in (read_head, read_order):
        with contextlib.suppress(OrderError):
            read(data)
    assert read_fact(data) is None or data.startswith(MARK)


@given(st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x), max_leaves=9))
def test_order_of_other_values_is_refused(value: object) -> None:
    with pytest.raises(OrderError):
        read_order(json.dumps(value).encode())


KEY = "0123456789abcdef" * 2
FOUND = Found(KEY, 1, "secret", "python", ["numpy"])
READY = Ready({"A": "b\udcff"}, "/python", "/workspace", "/copy", 3, FOUND, "a\nb")


def fact_of(**values: object) -> bytes:
    return MARK + json.dumps(values).encode()


@pytest.mark.parametrize("fact", [Here("n1", "7"), READY, Memory(5, 0), Failed("LaunchError", "x")])
def test_fact_is_read_as_it_was_written(fact: Fact) -> None:
    line = write_fact(fact)
    assert read_fact(line.rstrip(b"\n")) == fact
    assert line.count(b"\n") == 1


@pytest.mark.parametrize("line", [b"", b"{}", MARK, MARK + b"[]", MARK + b'{"kind": 3}', MARK[1:]])
def test_other_lines_are_no_facts(line: bytes) -> None:
    assert read_fact(line) is None


@pytest.mark.parametrize("value", [-1, 2**63, 2**80, "5", None, 1.5, True, [1]])
def test_fact_with_an_odd_number_is_none(value: object) -> None:
    assert read_fact(fact_of(kind="memory", used=value, kills=0)) is None


@pytest.mark.parametrize(
    "change",
    [
        {"key": "../" + "0" * 29},
        {"key": KEY.upper()},
        {"key": f"{KEY}\n"},
        {"key": 7},
        {"run": -1},
        {"run": 2**31},
        {"run": "1"},
        {"sandbox_key": None},
        {"sandbox_key": "x" * 201},
        {"language": ["python"]},
    ],
)
def test_snapshot_that_a_helper_reports_is_checked(change: dict[str, object]) -> None:
    """Its key comes back to the node as the name of a folder. The start fails."""
    good = {"key": KEY, "run": 1, "sandbox_key": "secret", "language": "python"}
    assert isinstance(read_fact(fact_of(kind="ready", environment={}, found=good)), Ready)
    odd = fact_of(kind="ready", environment={}, found={**good, **change})
    assert read_fact(odd) == Failed()


@pytest.mark.parametrize(
    "environment", [None, [], {"A": 1}, {str(number): "" for number in range(1025)}]
)
def test_environment_that_a_helper_reports_is_checked(environment: object) -> None:
    assert read_fact(fact_of(kind="ready", environment=environment)) == Failed()


def reports_of(data: bytes) -> tuple[Reports, list[str]]:
    """Return what is read from a client that has said ``data`` and has ended."""
    words: list[str] = []
    read, write = os.pipe()
    reports = Reports(read, words.append, lambda: None)
    with os.fdopen(write, "wb") as stream:
        stream.write(data)
    reports.join(60)
    assert reports.is_over
    return reports, words


def test_words_and_facts_are_told_apart() -> None:
    data = b"srun: job 5 queued\n" + write_fact(Here("n1")) + b"\x1b[2Jodd\xff\nlast"
    reports, words = reports_of(data)
    assert reports.find(Here) == Here("n1")
    assert words == reports.words == ["srun: job 5 queued", "[2Jodd�", "last"]


def test_fact_that_no_helper_tells_is_not_kept() -> None:
    """A node could send kinds without end, each with a megabyte."""
    reports, words = reports_of(
        write_fact(Here("n1")) + fact_of(kind="files", found=True, x="y" * 9000) + b"\n"
    )
    assert reports.find(Here)
    assert reports.find(Files) is None
    assert len(words) == 1
    assert len(words[0]) <= 4096


def test_notices_of_a_node_are_passed_on_once() -> None:
    told: list[int] = []
    read, write = os.pipe()
    reports = Reports(read, lambda _: None, lambda: None)
    reports.on_leaving = lambda: told.append(1)
    with os.fdopen(write, "wb") as stream:
        stream.write(write_fact(Leaving()) * 1000)
    reports.join(60)
    assert len(told) == 1


def test_long_fact_waits_for_no_reader() -> None:
    """A pipe with room for a part of a fact does not hold up the helper, which has a sandbox."""
    read, write = os.pipe()
    helper = threading.Thread(
        target=serve.FactWriter(write, seconds=0.1).tell, args=(Failed(detail="y" * 200_000),)
    )
    helper.start()
    helper.join(10)
    stuck = helper.is_alive()
    os.close(read)
    helper.join()
    os.close(write)
    assert not stuck


def test_what_a_client_says_is_bounded() -> None:
    data = b"x" * 3_000_000 + b"\n" + b"word\n" * 1000 + MARK + b"y" * 3_000_000 + b"\n"
    reports, _ = reports_of(data)
    assert len(reports.words) == MAX_WORDS
    assert max(map(len, reports.words)) <= 4096


def test_end_of_the_client_ends_what_another_process_holds_open() -> None:
    """As the master of an SSH connection does, for as long as the helper waits to be fetched."""
    read, write = os.pipe()
    with subprocess.Popen(["true"]) as client:
        reports = Reports(read, print, lambda: None, client=os.pidfd_open(client.pid))
        os.write(write, write_fact(Here("n1")))
    reports.join(60)
    assert reports.is_over
    assert reports.find(Here) == Here("n1")
    os.close(write)


def test_text_that_is_shown_steers_no_terminal() -> None:
    assert show_text("\x1b]0;title\x07a\n\tb\x9b2J") == "]0;titlea\n\tb2J"


def test_waiting_for_a_fact_ends_with_the_client() -> None:
    reports, _ = reports_of(b"")
    assert not reports.wait_for((Here,), 600)
