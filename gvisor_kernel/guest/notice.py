"""What stands in the place of a kernel's message that is too large for the link.

Only for a kernel that speaks ZMQ: PID 1 has its messages in hand, and the key that signs them. One
that speaks frames itself says so on its own stderr (``direct``).
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
LARGEST_HEADER = 64 * 1024


def explain_drop(channel: Channel, error: Exception) -> str:
    """For the person who waits for the message."""
    return (
        f"A message on {channel.name.lower()} was dropped. {error} "
        "Show it in parts, or write it to a file.\n"
    )


def stand_in(
    channel: Channel, parts: List[bytes], key: str, scheme: str, words: str
) -> Optional[List[bytes]]:
    """Parts that tell ``words`` where ``parts`` would have gone; None if those are no message.

    On iopub that is text on stderr, in the same cell; elsewhere the same reply, as an error.
    """
    try:
        at = parts.index(DELIMITER, 0, MAX_PARTS_BEFORE + 1)
        header, parent = parts[at + 2], parts[at + 3]
        if len(parent) > LARGEST_HEADER:
            return None
        fields = parse_json(header, LARGEST_HEADER)
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
