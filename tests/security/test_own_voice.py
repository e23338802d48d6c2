"""What a kernel says in its own name: on the socket on which it speaks frames, and in messages.

The first PID 1 deals with, the second the bridge. A kernel ends for the first; what is not its own
to say of the second is dropped, and noted.
"""

from __future__ import annotations

import json
import textwrap

import pytest

from gvisor_kernel.bridge.journal import RECORDED_KINDS

from ..jupyter.helpers import execute, reply_to
from ..logs import LogMark
from .inside import Kernel, Neighbour
from .speaking import armed, ends_by, raw_until_idle, works_again

pytestmark = [pytest.mark.usefixtures("unharmed"), pytest.mark.once]

# -- on its own socket ----------------------------------------------------------------------------

VOICES = {
    "garbage": ("link._socket.send(bytes(range(256)))", "type 0 with"),
    "half a frame": (
        "link._socket.send(frame(DATA, pack(b'x'), IOPUB, 1)[:12])",
        "part of a frame",
    ),
    "a huge length": ("link._socket.send(frame(DATA, b'x', IOPUB, length=2**31))", "may not pass"),
    "an exit": ("link._socket.send(frame(EXIT, run + bytes(4)))", "type 7 "),
    "statistics": ("link._socket.send(frame(STATS, bytes(16)))", "type 8 "),
    "a log": ("link._socket.send(frame(LOG, b'bridge: all is well', 0))", "type 9 "),
    "a heartbeat": ("link._socket.send(frame(DATA, pack(b'x'), HB, 1))", "on channel 5 "),
    "a second hello": ("link._socket.send(frame(HELLO, b'{}'))", "type 1 "),
    "a restore that never was": ("link._socket.send(frame(RESUMED, run + b'\\1'))", "type 14 "),
    "an answer that is none": ("link._socket.send(frame(QUIET, b'1'))", "QUIET"),
    "nothing any more": ("link._socket.shutdown(2)", "has closed its end of the link"),
    "its own windows": ("link._flow._outflow[IOPUB].credit = 2**40", "its end of the link"),
}


@pytest.mark.parametrize("voice", VOICES)
def test_kernel_that_breaks_frame_rules_is_killed(patient: Kernel, voice: str) -> None:
    """PID 1 ends it, and the sandbox is good for another one."""
    code, words = VOICES[voice]
    identity = patient.sandbox.identity
    log = ends_by(patient, f"{code}\nprint('x' * 10**6)", "by signal SIGKILL")
    (told,) = [line for line in log.splitlines() if "and is killed" in line]
    assert words in told
    works_again(patient)
    assert patient.sandbox.identity == identity


def test_kernel_that_blocks_its_link_can_be_restarted(patient: Kernel) -> None:
    """It has made itself mute: a restart helps, and nobody else waits."""
    patient.client.execute("link._lock.acquire(); link._delivery.acquire(); time.sleep(100)")
    identity = patient.sandbox.identity
    works_again(patient)
    assert patient.sandbox.identity == identity


# -- with messages of its own ---------------------------------------------------------------------


def test_forged_messages_do_not_reach_other_clients(victim: Kernel, beside: Neighbour) -> None:
    """By their identity and session, and as an answer to what they asked: only its own get them."""
    theirs = beside.kernel.client
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
    got = raw_until_idle(victim, msg_id)
    assert len([parts for parts in got if b'"forged"' in parts[-1]]) == 9
    beside.check()
    for channel in (theirs.shell_channel, theirs.stdin_channel, theirs.control_channel):
        assert channel.socket.poll(0) == 0
    assert theirs.iopub_channel.socket.poll(0) == 0


@pytest.mark.parametrize("way", ["patient", "relayed"])
def test_replayed_and_unsigned_messages_are_dropped(request: pytest.FixtureRequest, way: str) -> None:
    """Of the kernel before, with another's signature, with none: each is dropped and noted."""
    kernel: Kernel = request.getfixturevalue(way)
    kept = "/mnt/user-data/outputs/parts"
    text = '{"name": "stdout", "text": "dropped"}'
    keep = f"""
    parts = message("stream", {text})
    Path("{kept}").write_text(repr([bytes(part) for part in parts]))
    """
    assert execute(kernel.client, textwrap.dedent(keep)).status == "ok"
    works_again(kernel)
    armed(kernel, "")
    mark = LogMark(kernel.sandbox.log_path)
    code = f"""
    old = eval(Path("{kept}").read_text())
    new = message("stream", {text})
    changed = [*new[:-1], new[-1].replace(b"dropped", b"droPPed")]
    signatures = [b"", b"0" * 64, old[1], new[1][:-1], new[1].upper(), new[1] + b"0"]
    for parts in [old, changed, *([new[0], one, *new[2:]] for one in signatures), new[1:], new[:5]]:
        get_ipython().kernel.iopub_socket.send_multipart(parts)
    get_ipython().kernel.iopub_socket.send_multipart(message("stream", {{"text": "signed"}}))
    """
    got = raw_until_idle(kernel, kernel.client.execute(textwrap.dedent(code)))
    assert len([parts for parts in got if b'"signed"' in parts[-1]]) == 1
    assert not [
        parts for parts in got if b"dropped" in parts[-1].lower() and b"old" not in parts[-1]
    ]
    log = mark.more()
    assert log.count("a message has a wrong signature") == 8
    assert log.count("was dropped") == 10
    transcript = (kernel.sandbox.transcripts / "transcript.jsonl").read_text()
    entries = [json.loads(line) for line in transcript.splitlines()]
    outputs = [str(entry) for entry in entries if entry["event"] == "output"]
    assert [text for text in outputs if "signed" in text]
    assert not [text for text in outputs if "dropped" in text.lower()]


FORGE = """
def signed(kind, content):
    '''Anything at all, with this kernel's signature.'''
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
    """Any output and any reply, to requests that never were, too; no request, and nothing twice."""
    path = victim.sandbox.transcripts / "transcript.jsonl"
    before = len(path.read_bytes().splitlines())
    msg_id = victim.client.execute(FORGE)
    raw_until_idle(victim, msg_id)
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
