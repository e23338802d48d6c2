"""Attacks of a relayed kernel on PID 1 with raw bytes on its ZMQ sockets."""

from __future__ import annotations

import re
import textwrap

import pytest

from ..jupyter.helpers import execute, reply_to
from ..logs import LogPosition
from .forging import (
    HOST_SLACK,
    HostMemory,
    assert_answers,
    assert_ends_with,
    assert_restart_works,
    read_raw_until_idle,
)
from .inside import Kernel, Neighbour

pytestmark = [pytest.mark.usefixtures("unharmed"), pytest.mark.once]

INVALID_ZMTP = {
    "garbage on each socket": "for c in range(1, 6): send_on(c, bytes(range(128, 256)) * 9)",
    "a frame of a huge size": "send_on(IOPUB, b'\\2' + b'\\xff' * 8)",
    "an ERROR command": "send_on(SHELL, b'\\4\\x08\\5ERROR\\1x')",
}


@pytest.mark.parametrize("attack", INVALID_ZMTP)
def test_invalid_zmtp_ends_the_kernel(relayed: Kernel, attack: str) -> None:
    identity = relayed.sandbox.identity
    log = assert_ends_with(relayed, INVALID_ZMTP[attack], "by signal SIGKILL")
    assert len(re.findall(r"Killed the kernel: it violated the ZMTP protocol on \w+: ", log)) >= 1
    assert_restart_works(relayed)
    assert relayed.sandbox.identity == identity


def test_endless_zmtp_frame_hits_memory_limit(relayed: Kernel) -> None:
    """PID 1's buffer is memory of the sandbox and counts towards its limit."""
    code = """
    (iopub,) = voices(IOPUB)
    send_all(iopub, b"\\2" + struct.pack(">Q", 1 << 39))
    while True:
        send_all(iopub, bytes(1 << 20))
    """
    assert_ends_with(relayed, code, "its limit is 256 MiB")
    assert_restart_works(relayed)


def test_zmtp_flood_is_handled(relayed: Kernel, neighbour: Neighbour) -> None:
    """Commands, tiny messages and one message of a million parts do no harm."""
    code = """
    for channel in range(SHELL, HB + 1):
        send_on(channel, b"\\4\\7\\4PING\\0\\0" * 5_000 + b"\\0\\1x" * 500)
    send_on(IOPUB, b"\\1\\1x" * 10**6 + b"\\0\\0")
    """
    mark = LogPosition(relayed.sandbox.log_path)
    memory = HostMemory()
    msg_id = relayed.client.execute(textwrap.dedent(code))
    assert_answers(neighbour, 3)
    read_raw_until_idle(relayed, msg_id)
    content = reply_to(relayed.client, msg_id)["content"]
    assert content["status"] == "ok", content
    assert execute(relayed.client, "6 * 7").result == "42"
    assert memory.grown() < HOST_SLACK
    log = mark.more()
    assert "A message has 1000001 parts; 1 to 4096 are allowed." in log
    dropped = re.findall(r"message on (\w+) was dropped: a message has no delimiter", log)
    assert 0 < len(dropped) < 100, "2,000 were sent: most are only counted"
    assert "was dropped" not in relayed.sandbox.log_path.read_text(), "events have their own file"
