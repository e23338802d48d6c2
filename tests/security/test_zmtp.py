"""What a relayed kernel says to PID 1 on its ZMQ sockets, below ZMQ."""

from __future__ import annotations

import re
import textwrap

import pytest

from ..jupyter.helpers import execute, reply_to
from ..logs import LogMark
from .inside import Kernel, Neighbour
from .speaking import HOST_SLACK, HostMemory, answers, ends_by, raw_until_idle, works_again

pytestmark = [pytest.mark.usefixtures("unharmed"), pytest.mark.once]

NO_ZMTP = {
    "garbage on each socket": "for c in range(1, 6): shout_on(c, bytes(range(128, 256)) * 9)",
    "a frame of no size": "shout_on(IOPUB, b'\\2' + b'\\xff' * 8)",
    "an error": "shout_on(SHELL, b'\\4\\x08\\5ERROR\\1x')",
}


@pytest.mark.parametrize("attack", NO_ZMTP)
def test_invalid_zmtp_ends_the_kernel(relayed: Kernel, attack: str) -> None:
    identity = relayed.sandbox.identity
    log = ends_by(relayed, NO_ZMTP[attack], "by signal SIGKILL")
    assert len(re.findall(r"The kernel broke ZMQ's rules on \w+, and is killed: ", log)) >= 1
    works_again(relayed)
    assert relayed.sandbox.identity == identity


def test_endless_zmtp_frame_hits_memory_limit(relayed: Kernel) -> None:
    """What PID 1 holds of it is memory of the sandbox, and counted."""
    code = """
    (iopub,) = voices(IOPUB)
    shout(iopub, b"\\2" + struct.pack(">Q", 1 << 39))
    while True:
        shout(iopub, bytes(1 << 20))
    """
    ends_by(relayed, code, "its limit is 256 MiB")
    works_again(relayed)


def test_zmtp_flood_is_handled(relayed: Kernel, beside: Neighbour) -> None:
    """Commands and tiny messages on each socket, one of a million parts: it is well after that."""
    code = """
    for channel in range(SHELL, HB + 1):
        shout_on(channel, b"\\4\\7\\4PING\\0\\0" * 5_000 + b"\\0\\1x" * 500)
    shout_on(IOPUB, b"\\1\\1x" * 10**6 + b"\\0\\0")
    """
    mark = LogMark(relayed.sandbox.log_path)
    memory = HostMemory()
    msg_id = relayed.client.execute(textwrap.dedent(code))
    answers(beside, 3)
    raw_until_idle(relayed, msg_id)
    content = reply_to(relayed.client, msg_id)["content"]
    assert content["status"] == "ok", content
    assert execute(relayed.client, "6 * 7").result == "42"
    assert memory.grown() < HOST_SLACK
    log = mark.more()
    assert "A message has 1000001 parts; 1 to 4096 are allowed." in log
    dropped = re.findall(r"message on (\w+) was dropped: a message has no delimiter", log)
    assert 0 < len(dropped) < 100, "2,000 were sent: most are only counted"
    assert "was dropped" not in relayed.sandbox.log_path.read_text(), "events have their own file"
