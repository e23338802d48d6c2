"""The replacement for a message of a kernel that is too large for the link.

``make_replacement`` is only for a relayed kernel, of which PID 1 has the messages and the signing
key. A kernel that speaks frames itself prints the reason to its own stderr (``direct``); the words
of ``explain_drop`` serve both.
"""

from __future__ import annotations

import hmac
import json
import uuid
from typing import List, Optional

from gvisor_kernel.link import Channel
from gvisor_kernel.strict_json import parse_json

DELIMITER = b"<IDS|MSG>"
MAX_PARTS_BEFORE = 16
"""Number of identities before the delimiter up to which a list of parts counts as a message."""
MAX_HEADER = 64 * 1024
"""Bytes of a header, or of a parent header, that is parsed or repeated at most."""


def explain_drop(channel: Channel, error: Exception) -> str:
    """Return the text for the person who waits for the message."""
    return (
        f"A message on {channel.name.lower()} was dropped. {error} "
        "Show it in parts, or write it to a file.\n"
    )


def make_replacement(
    channel: Channel, parts: List[bytes], key: str, scheme: str, words: str
) -> Optional[List[bytes]]:
    """Return signed parts that tell ``words`` in place of ``parts``; None if these are no message.

    On iopub the replacement is text on stderr of the same cell. On other channels it is the same
    reply with status "error".
    """
    try:
        at = parts.index(DELIMITER, 0, MAX_PARTS_BEFORE + 1)
        header, parent = parts[at + 2], parts[at + 3]
        if len(parent) > MAX_HEADER:
            return None
        fields = parse_json(header, MAX_HEADER)
        if channel is Channel.IOPUB:
            fields["msg_type"], fields["msg_id"] = "stream", uuid.uuid4().hex
            content = {"name": "stderr", "text": words}
        else:
            content = {"status": "error", "ename": "MessageTooLarge", "evalue": words}
            content["traceback"] = []  # type: ignore[assignment]
    except (ValueError, IndexError, TypeError):
        return None
    dicts = [json.dumps(fields).encode(), parent, b"{}", json.dumps(content).encode()]
    signature = hmac.new(key.encode(), b"".join(dicts), scheme.partition("-")[2]).hexdigest()
    return [*parts[:at], DELIMITER, signature.encode(), *dicts]
