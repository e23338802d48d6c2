"""Attacks with frames on the kernel's own socket, and with messages of its own.

PID 1 handles the frames, and ends the kernel for a wrong one. The bridge handles the messages, and
drops and logs those that the kernel may not send.
"""

from __future__ import annotations

import json
import textwrap

import pytest

from gvisor_kernel.bridge.records import RECORDED_KINDS

from ..jupyter.helpers import execute, reply_to
from ..logs import LogPosition
from ..sweeps import needs_all
from .forging import armed, assert_ends_with, assert_restart_works, read_raw_until_idle
from .inside import Kernel, Neighbour

pytestmark = [pytest.mark.usefixtures("unharmed"), pytest.mark.once]

# -- on its own socket ----------------------------------------------------------------------------

FORBIDDEN_FRAMES = {
    "garbage": ("link._socket.send(bytes(range(256)))", "type 0 with"),
    "half a frame": (
        "link._socket.send(frame(DATA, pack(b'x'), IOPUB, 1)[:12])",
        "partial frame",
    ),
    "a huge length": (
        "link._socket.send(frame(DATA, b'x', IOPUB, length=2**31))",
        "is not allowed",
    ),
    "an exit": ("link._socket.send(frame(EXIT, run + bytes(4)))", "type 7 "),
    "statistics": ("link._socket.send(frame(STATS, bytes(16)))", "type 8 "),
    "a log": ("link._socket.send(frame(LOG, b'bridge: all is well', 0))", "type 9 "),
    "a heartbeat": ("link._socket.send(frame(DATA, pack(b'x'), HB, 1))", "on channel 5 "),
    "a second hello": ("link._socket.send(frame(HELLO, b'{}'))", "type 1 "),
    "a forged RESUMED": ("link._socket.send(frame(RESUMED, run + b'\\1'))", "type 14 "),
    "an invalid answer": ("link._socket.send(frame(IDLE_REPLY, b'1'))", "IDLE_REPLY"),
    "a closed socket": ("link._socket.shutdown(2)", "it closed its end of the link"),
    "a changed window": ("link._flow._outflow[IOPUB].credit = 2**40", "its end of the link"),
}


ALWAYS = ("garbage", "half a frame", "an exit", "an invalid answer", "a changed window")
"""Frames that are refused in different places; tests/link has the rules for each type of frame."""


@pytest.mark.parametrize(
    "attack",
    [name if name in ALWAYS else pytest.param(name, marks=needs_all) for name in FORBIDDEN_FRAMES],
)
def test_kernel_that_breaks_frame_rules_is_killed(survivor: Kernel, attack: str) -> None:
    """PID 1 ends the kernel, and the sandbox is usable for the next one."""
    code, words = FORBIDDEN_FRAMES[attack]
    identity = survivor.sandbox.identity
    log = assert_ends_with(survivor, f"{code}\nprint('x' * 10**6)", "by signal SIGKILL")
    (told,) = [line for line in log.splitlines() if "Killed the kernel" in line]
    assert words in told
    assert_restart_works(survivor)
    assert survivor.sandbox.identity == identity


def test_kernel_that_blocks_its_link_can_be_restarted(survivor: Kernel) -> None:
    """The kernel cannot send any more: a restart helps, and no other kernel waits."""
    survivor.client.execute("link._lock.acquire(); link._delivery.acquire(); time.sleep(100)")
    identity = survivor.sandbox.identity
    assert_restart_works(survivor)
    assert survivor.sandbox.identity == identity


# -- with messages of its own ---------------------------------------------------------------------


def test_forged_messages_do_not_reach_other_clients(victim: Kernel, neighbour: Neighbour) -> None:
    """Messages with another client's identity, session and parent reach only the own clients."""
    theirs = neighbour.kernel.client
    asked = theirs.session.msg("execute_request")["header"]
    code = f"""
    asked = json.loads({json.dumps(asked, default=str)!r})
    for channel in (SHELL, STDIN, CONTROL, IOPUB):
        kind = "stream" if channel == IOPUB else "execute_reply"
        made = session.msg(kind, {{"name": "stdout", "text": "forged"}}, parent=asked)
        for _ in range(9):
            link.send(Channel(channel), session.serialize(made, ident={theirs.session.bsession!r}))
    """
    msg_id = victim.client.execute(textwrap.dedent(code))
    got = read_raw_until_idle(victim, msg_id)
    assert len([parts for parts in got if b'"forged"' in parts[-1]]) == 9
    neighbour.check()
    for channel in (theirs.shell_channel, theirs.stdin_channel, theirs.control_channel):
        assert channel.socket.poll(0) == 0
    assert theirs.iopub_channel.socket.poll(0) == 0


@pytest.mark.parametrize("way", ["survivor", "relayed"])
def test_replayed_and_unsigned_messages_are_dropped(
    request: pytest.FixtureRequest, way: str
) -> None:
    """From the previous kernel, with a wrong signature, without one: each is dropped and logged."""
    kernel: Kernel = request.getfixturevalue(way)
    kept = "/mnt/user-data/outputs/parts"
    text = '{"name": "stdout", "text": "dropped"}'
    keep = f"""
    parts = message("stream", {text})
    Path("{kept}").write_text(repr([bytes(part) for part in parts]))
    """
    assert execute(kernel.client, textwrap.dedent(keep)).status == "ok"
    assert_restart_works(kernel)
    armed(kernel, "")
    mark = LogPosition(kernel.sandbox.log_path)
    code = f"""
    old = eval(Path("{kept}").read_text())
    new = message("stream", {text})
    changed = [*new[:-1], new[-1].replace(b"dropped", b"droPPed")]
    signatures = [b"", b"0" * 64, old[1], new[1][:-1], new[1].upper(), new[1] + b"0"]
    for parts in [old, changed, *([new[0], one, *new[2:]] for one in signatures), new[1:], new[:5]]:
        get_ipython().kernel.iopub_socket.send_multipart(parts)
    get_ipython().kernel.iopub_socket.send_multipart(message("stream", {{"text": "signed"}}))
    """
    got = read_raw_until_idle(kernel, kernel.client.execute(textwrap.dedent(code)))
    assert len([parts for parts in got if b'"signed"' in parts[-1]]) == 1
    assert not [
        parts for parts in got if b"dropped" in parts[-1].lower() and b"old" not in parts[-1]
    ]
    log = mark.more()
    assert log.count("a message has a wrong signature") == 8
    assert log.count("was dropped") == 10
    transcript = (kernel.sandbox.view.transcripts / "transcript.jsonl").read_text()
    entries = [json.loads(line) for line in transcript.splitlines()]
    outputs = [str(entry) for entry in entries if entry["event"] == "output"]
    assert [text for text in outputs if "signed" in text]
    assert not [text for text in outputs if "dropped" in text.lower()]


FORGE = """
def signed(kind, content):
    '''Any content, with this kernel's signature.'''
    header = {"msg_id": "forged", "msg_type": kind, "session": "s", "username": "bridge"}
    dicts = [json.dumps(header).encode(), b'{"msg_id": "nobody\\'s"}', b"{}", content]
    return [b"nobody", b"<IDS|MSG>", session.sign(dicts), *dicts]

text = 'x"}\\\\n{"n": 1, "event": "request", "type": "execute_request", "id": "forged"}\\\\n'
text = json.dumps({"name": "stdout", "text": text, "event": "request", "n": 0}).encode()
kinds = ["execute_request", "execute_reply", "stream", "input_request", "input_reply"]
for channel in (SHELL, IOPUB, STDIN, CONTROL):
    for kind in [*kinds, ["execute_request"], None, {}, "x" * 50000]:
        link.send(Channel(channel), signed(kind, text))
for content in (b"", b"\\xff", b"[" * 10000, b'{"a": NaN}', b'{"a": 1e999}', b"9" * 9000,
                b'"\\\\ud800"', b"{}\\n{}", bytes(16384), bytes(99999)):
    link.send(Channel.IOPUB, signed("stream", content))
"""


def test_kernel_cannot_forge_requests_in_transcript(victim: Kernel) -> None:
    """It can forge outputs and replies, even to requests that never existed, but no request."""
    path = victim.sandbox.view.transcripts / "transcript.jsonl"
    before = len(path.read_bytes().splitlines())
    msg_id = victim.client.execute(FORGE)
    read_raw_until_idle(victim, msg_id)
    assert reply_to(victim.client, msg_id)["content"]["status"] == "ok"
    entries = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert [entry["n"] for entry in entries] == list(range(1, len(entries) + 1))
    new = entries[before:]
    assert [entry["id"] for entry in new if entry["event"] == "request"] == [msg_id]
    assert all(entry["type"] in RECORDED_KINDS[entry["event"]] for entry in new)
    forged = {(e["event"], e["type"]) for e in new if e["id"] == "nobody's"}
    assert forged == {("reply", "execute_reply"), ("output", "stream"), ("output", "input_request")}
    assert {entry["id"] for entry in new} == {msg_id, "nobody's"}
    assert execute(victim.client, "6 * 7").result == "42"
