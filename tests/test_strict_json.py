"""JSON from untrusted sources: what is parsed and refused, and that no other module parses it."""

from __future__ import annotations

import ast
import asyncio
import json
from collections.abc import Callable

import pytest

from gvisor_kernel.bridge.queues import RenewalRequest
from gvisor_kernel.bridge.wire import WireError, new_message
from gvisor_kernel.link import Channel
from gvisor_kernel.strict_json import MAX_DEPTH, JsonError, TooManyValues, parse_json

from .source import MODULES, PACKAGE

LARGE = 10 * 1024 * 1024

OWN = {
    "api/manager.py": "kernelspecs of this package",
    "artifacts/page.py": "a ticket whose signature was compared",
    "artifacts/storage.py": "values whose levels were counted when they were written",
    "changes/backups.py": "a flat record that the store wrote",
    "cli/checks/jupyter.py": "output of this machine's interpreter",
    "cli/snapshots.py": "a plan from a process of this package",
    "guest/modules/gvisor_sandbox.py": "in the sandbox: answers of the host",
    "egress/worker.py": "routes from the process that started this one",
    "guest/preload.py": "in the sandbox: lines of a process that it has started",
    "guest/resume.py": "the connection file, in the kernel's own process",
    "host/enter.py": "input from a process of this package",
    "jupyter/kernelspecs.py": "kernelspecs of this machine",
    "jupyter/launcher.py": "the connection file of a front end",
    "images/image.py": "flat documents that the store wrote",
    "runtimes/kubernetes/cluster.py": "three texts of a record",
    "runtimes/kubernetes/settings.py": "settings",
    "runtimes/kubernetes/pod.py": "settings, after their validation",
    "guest/lost_files.py": "in the sandbox: a variable that the host has set",
    "guest/missed_paths.py": "in the sandbox: a variable that the host has set",
    "guest/workspace.py": "in the sandbox: what the host says of it",
    "guest/pod.py": "the host's words to PID 1, before anything else runs",
    "runtimes/runsc/command_line.py": "a flat document that the runtime wrote",
    "runtimes/runsc/staging.py": "an error of a process of this package",
    "runtimes/mounts/host_python.py": "output of this machine's interpreter",
    "runtimes/state/pages.py": "a flat document that the store wrote",
    "runtimes/mounts/written_folders.py": "flat lines that the runtime wrote",
    "snapshots/snapshot.py": "a document whose checksum was compared",
    "strict_json.py": "the parser with bounds",
}
"""Modules that call Python's parser, and where the JSON comes from."""


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
    for path in (path for path in MODULES if "json.load" in path.read_text()):
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
    """The reply is refused by WireError; no exception reaches the loop's handler."""

    async def answer(content: bytes) -> str:
        renewal = RenewalRequest("1", asyncio.get_running_loop().create_future())
        reply = new_message("execute_reply", {}, renewal.request.header, b"")
        idle = new_message("status", {"execution_state": "idle"}, renewal.request.header, b"")
        object.__setattr__(reply, "content", content)
        try:
            renewal.consumes(Channel.SHELL, reply)
        except WireError:
            return "refused"
        assert renewal.consumes(Channel.IOPUB, idle)
        return type(renewal.done.exception()).__name__

    for depth in (1, MAX_DEPTH + 1, *range(200, 1400, 50), 30_000):
        said = asyncio.run(answer(status(make(depth))))
        assert said in ("refused", "WireError"), depth


def test_number_of_values_is_bounded_where_it_is_asked_for() -> None:
    fine = json.dumps(["x, [ {" * 100, 'a\\"b,"', {"k": [1, 2]}])
    assert parse_json(fine, 10_000, 10) == json.loads(fine)
    for text in ("[" + "[]," * 11 + "1]", json.dumps(["x"] * 12), json.dumps([","] * 12)):
        with pytest.raises(TooManyValues):
            parse_json(text, 10_000, 10)
        parse_json(text, 10_000)
