"""JSON of strangers: what is taken, what is refused, and that nothing else in the package parses
any."""

from __future__ import annotations

import ast
import asyncio
import json
from collections.abc import Callable

import pytest

from gvisor_kernel.bridge.settling import RenewalRequest
from gvisor_kernel.bridge.wire import WireError, new_message
from gvisor_kernel.link import Channel
from gvisor_kernel.strict_json import MAX_DEPTH, JsonError, parse_json

from .test_style import MODULES, PACKAGE

LARGE = 10 * 1024 * 1024

OWN = {
    "cli/checks/jupyter.py": "what this machine's own interpreter says",
    "cli/snapshots.py": "the plan that this package's own process was given",
    "guest/resume.py": "the connection file, in the kernel's own process",
    "host/enter.py": "what this package's own process was given",
    "jupyter/kernelspecs.py": "kernelspecs of this machine",
    "jupyter/launcher.py": "the connection file of a front end",
    "images/store.py": "flat documents that the store has written",
    "runtimes/docker/files.py": "a flat list that the runtime has written",
    "runtimes/runsc/features.py": "a flat document that the runtime has written",
    "runtimes/runsc/staging.py": "an error of this package's own process",
    "runtimes/state/records.py": "a record that this user has written",
    "runtimes/mounts/host_python.py": "what this machine's own interpreter says",
    "runtimes/mounts/written_folders.py": "flat lines that the runtime has written",
    "skills/store.py": "a flat record that the store has written",
    "snapshots/store.py": "a document whose checksum was compared",
    "strict_json.py": "here it is bounded",
}
"""Modules that call Python's parser, with whose JSON it is."""


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


@pytest.mark.parametrize(
    "data",
    [
        nested(MAX_DEPTH),
        b'{"a":' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH,
        b"[" + b"[]," * 1000 + b"1]",
        json.dumps("[" * 1000 + '"{"' * 1000).encode(),
        b'["' + rb"\\\"[{" * 1000 + b'"]',
        b'"\xed\xa0\x80"',
    ],
)
def test_json_within_bounds_is_parsed(data: bytes) -> None:
    expected = json.loads(data)
    for kind in (bytes, bytearray, memoryview):
        assert parse_json(kind(data), LARGE) == expected


@pytest.mark.parametrize(
    "data",
    [
        nested(MAX_DEPTH + 1),
        b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1),
        b"[" * 1_000_000,
        b'[""' + b",[" * 1_000_000,
        rb'["\\",' + nested(MAX_DEPTH) + b"]",
        b'"' + rb"\"" * 1_000_000,
        b"{" * 1_000_000 + b'"' * 1_000_000,
        nested(500).decode().encode("utf-16"),
        b"\xff\xfe",
        b"1" * 100_000,
        b"",
        b"[1",
        b"\\" * 1000 + b"[" * 1000,
        bytes(LARGE + 1),
    ],
    ids=lambda data: data[:12].hex() or "nothing",
)
def test_other_data_raises_json_error(data: bytes) -> None:
    with pytest.raises(JsonError):
        parse_json(data, LARGE)


def test_error_contains_nothing_of_data() -> None:
    with pytest.raises(JsonError) as caught:
        parse_json(b'{"secret": "s3cr3t"', LARGE)
    assert "s3cr3t" not in str(caught.value)
    assert caught.value.__suppress_context__


def find_parsers() -> set[str]:
    found = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"json.loads", "json.load"}:
                found.add(str(path.relative_to(PACKAGE)))
    return found


def test_only_listed_modules_parse_json() -> None:
    assert find_parsers() == set(OWN)


def status(text: str) -> bytes:
    return b'{"status": ' + text.encode() + b"}"


@pytest.mark.parametrize(
    "make", [lambda d: "[" * d + "]" * d, lambda d: '{"a":' * d + "1" + "}" * d]
)
def test_nested_reply_to_renewal_request_is_refused(make: Callable[[int], str]) -> None:
    """Its answer is refused as what it is, and nothing is left to the loop's own handler."""

    async def answer(content: bytes) -> str:
        settling = RenewalRequest("1", asyncio.get_running_loop().create_future())
        reply = new_message("execute_reply", {}, settling.request.header, b"")
        idle = new_message("status", {"execution_state": "idle"}, settling.request.header, b"")
        object.__setattr__(reply, "content", content)
        try:
            settling.consumes(Channel.SHELL, reply)
        except WireError:
            return "refused"
        assert settling.consumes(Channel.IOPUB, idle)
        return type(settling.done.exception()).__name__

    for depth in (1, MAX_DEPTH + 1, *range(200, 1400, 50), 30_000):
        said = asyncio.run(answer(status(make(depth))))
        assert said in ("refused", "WireError"), depth
