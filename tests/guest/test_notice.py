"""A message that is too large for the link is reported in the notebook, in each kernel mode."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.session import Session

from gvisor_kernel.guest.relay import DELIMITER, make_replacement
from gvisor_kernel.link import Channel

from ..jupyter.helpers import SANDBOXED, execute, running_kernel
from ..sweeps import needs_all
from ..world import WAYS

SHOW = (
    "from IPython.display import display\n"
    "display({'text/plain': 'x' * (257 << 20)}, raw=True)\nprint('after')"
)


@pytest.mark.slow
@pytest.mark.skipif(not SANDBOXED, reason="the local kernel has no link")
@pytest.mark.parametrize("way", ["direct", pytest.param("relay", marks=needs_all)])
def test_too_large_output_is_reported_in_its_cell(way: str, tmp_path: Path) -> None:
    """The output is dropped; the cell reports it and continues."""
    with running_kernel(settings=WAYS[way], start={"cwd": str(tmp_path)}) as (_, client):
        answer = execute(client, SHOW)
        assert answer.status == "ok"
        assert answer.text == "after\n"
        assert not answer.of_type("display_data")
        told = "".join(
            m["content"]["text"]
            for m in answer.of_type("stream")
            if m["content"]["name"] == "stderr"
        )
        assert "was dropped" in told
        assert "limit of 268435456" in told
        assert execute(client, "6 * 7").result == "42"


def signed(kind: str, **changes: Any) -> tuple[Session, list[bytes]]:
    session = Session(key=b"inner")
    message = session.msg(kind, {"text": "x" * 1000}, parent=session.msg("execute_request"))
    message["header"].update(changes)
    return session, [b"topic", *session.serialize(message)]


def test_replacement_on_iopub_is_stderr_text_of_the_cell() -> None:
    session, parts = signed("display_data")
    told = make_replacement(Channel.IOPUB, parts, "inner", "hmac-sha256", "gone")
    assert told is not None
    identities, rest = session.feed_identities(told)
    message = session.deserialize(rest)
    assert identities == [b"topic"]
    assert message["msg_type"] == "stream"
    assert message["content"] == {"name": "stderr", "text": "gone"}
    assert message["parent_header"]["msg_type"] == "execute_request"
    assert message["header"]["msg_id"] != json.loads(parts[3])["msg_id"]


def test_replacement_of_a_reply_is_an_error_reply() -> None:
    session, parts = signed("inspect_reply")
    told = make_replacement(Channel.SHELL, parts, "inner", "hmac-sha256", "gone")
    assert told is not None
    message = session.deserialize(session.feed_identities(told)[1])
    assert message["msg_type"] == "inspect_reply"
    assert message["content"]["status"] == "error"
    assert message["content"]["evalue"] == "gone"


@pytest.mark.parametrize(
    "parts",
    [
        [b"no delimiter"],
        [DELIMITER, b"signature"],
        [DELIMITER, b"", b"not JSON", b"{}", b"{}", b"{}"],
        [DELIMITER, b"", b"[]", b"{}", b"{}", b"{}"],
        [DELIMITER, b"", b"{" * 70000, b"{}", b"{}", b"{}"],
        [DELIMITER, b"", b"[" * 60000, b"{}", b"{}", b"{}"],
    ],
)
def test_malformed_message_has_no_replacement(parts: list[bytes]) -> None:
    assert make_replacement(Channel.IOPUB, parts, "inner", "hmac-sha256", "gone") is None
