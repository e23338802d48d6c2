"""The debugger: a breakpoint stops a cell, variables can be read, and the cell continues."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from jupyter_client import BlockingKernelClient

from .helpers import Message, ask, every_way_if_all, finish, wait_for

pytestmark = every_way_if_all

SEQUENCE = count(1)
CODE = """def double(x):
    y = x * 2
    return y

print(double(21))
"""


def debug(client: BlockingKernelClient, command: str, **arguments: Any) -> dict[str, Any]:
    content = {
        "type": "request",
        "seq": next(SEQUENCE),
        "command": command,
        "arguments": arguments,
    }
    reply = ask(client, "debug_request", content)
    assert reply.get("success", True), reply
    body = reply.get("body") or {}
    assert isinstance(body, dict)
    return body


@pytest.fixture
def attached(client: BlockingKernelClient) -> Iterator[BlockingKernelClient]:
    debug(client, "initialize", clientID="test", adapterID="", pathFormat="path")
    debug(client, "attach")
    yield client
    debug(client, "disconnect", restart=False, terminateDebuggee=False)


def test_breakpoint_stops_cell(attached: BlockingKernelClient) -> None:
    source = debug(attached, "dumpCell", code=CODE)["sourcePath"]
    placed = debug(attached, "setBreakpoints", source={"path": source}, breakpoints=[{"line": 3}])[
        "breakpoints"
    ]
    assert [b["verified"] for b in placed] == [True]
    debug(attached, "configurationDone")

    msg_id = attached.execute(CODE)
    stopped = wait_for(attached, is_event("stopped"), "the stop at the breakpoint")
    thread = stopped["content"]["body"]["threadId"]
    frame = debug(attached, "stackTrace", threadId=thread)["stackFrames"][0]
    assert (frame["name"], frame["line"]) == ("double", 3)
    scope = debug(attached, "scopes", frameId=frame["id"])["scopes"][0]
    variables = debug(attached, "variables", variablesReference=scope["variablesReference"])
    values = {v["name"]: v["value"] for v in variables["variables"]}
    assert (values["x"], values["y"]) == ("21", "42")

    debug(attached, "continue", threadId=thread)
    assert finish(attached, msg_id).text == "42\n"


def test_debug_info_and_variables_work_without_stop(attached: BlockingKernelClient) -> None:
    assert debug(attached, "debugInfo")["isStarted"] is True
    finish(attached, attached.execute("answer = 42"))
    names = [v["name"] for v in debug(attached, "inspectVariables")["variables"]]
    assert "answer" in names


def is_event(name: str) -> Any:
    def condition(message: Message) -> bool:
        return bool(message["msg_type"] == "debug_event" and message["content"]["event"] == name)

    return condition
