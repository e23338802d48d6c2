"""Messages on the channel SERVICE as bytes: questions to a sandbox itself, and its answers.

A message of that channel has one part::

    call u64 | length of the content u32, big endian | content, JSON | data, any bytes

The host numbers its calls 1, 2, 3 and so on, and may send more than one message for a call; the
answers name the call. What a content says is decided by ``guest.service_process`` and by its
caller on the host. Call 0 is about the service process itself: the host sends it to end the
process, PID 1 to tell that it has ended.

PID 1 numbers the questions of programs in the sandbox upwards from FIRST_QUESTION, one at a time
(``guest.questions``). Their parts are data of messages with the question's number.

Whoever decodes JSON holds the interpreter lock, and all kernels of the host's process wait. So a
guest's contents are short (MAX_ANSWER_CONTENT takes 5 ms at worst): a long list comes in several
messages.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

from gvisor_kernel.link.frames import LocalProtocolError, Part, RemoteProtocolError
from gvisor_kernel.strict_json import JsonError, parse_json

PROCESS = 0
"""The number of no call."""
RELEASED = "released"
"""Key of the host's message about the process that ends the wait of PID 1 at the end of a run."""
FIRST_QUESTION = 1 << 63
"""The least number of a question of the guest."""
MAX_QUESTION = 5 * 1024 * 1024 + 64 * 1024
"""Bytes of a question: the largest value that a page may keep, and what is said of it."""
MAX_CONTENT = 8 * 1024 * 1024
"""Bytes of a content of the host: the paths of ten thousand changes. Of a guest's long list, the
bytes of all its messages."""
MAX_ANSWER_CONTENT = 32 * 1024
"""Bytes of a content of the guest in an answer."""
MAX_QUESTION_CONTENT = 512
"""Bytes of a content of the guest in a message of a question, which is decoded on the loop that all
kernels share."""
MAX_DATA = 1024 * 1024
"""Bytes of data in one message."""

LENGTH = struct.Struct(">I")
"""The length before each message where no frame bounds it: between PID 1 and other processes."""
_HEAD = struct.Struct(">QI")
MAX_SERVICE_MESSAGE = _HEAD.size + MAX_CONTENT + MAX_DATA
MAX_ANSWER = _HEAD.size + MAX_ANSWER_CONTENT + MAX_DATA
"""Bytes of a message of the guest."""


class ServiceMessage(NamedTuple):
    """A message about ``call``."""

    call: int
    content: dict[str, Any]
    data: bytes


def encode_service(
    call: int, content: Mapping[str, object], data: bytes = b"", limit: int = MAX_CONTENT
) -> bytes:
    """Return the part of a message, whose content has at most ``limit`` bytes.

    :raises LocalProtocolError: when it is too large
    """
    text = json.dumps(content).encode()
    if len(text) > limit or len(data) > MAX_DATA:
        raise LocalProtocolError(
            f"A message with {len(text)} bytes of content and {len(data)} of data is over"
            f" {limit} and {MAX_DATA}."
        )
    return _HEAD.pack(call, len(text)) + text + data


def decode_call(part: Part) -> int:
    """Return the number of the call that a message is about.

    :raises RemoteProtocolError: when it is too short
    """
    if len(part) < _HEAD.size:
        raise RemoteProtocolError(f"A message on service has {len(part)} bytes.")
    return int(_HEAD.unpack_from(part)[0])


def decode_service(part: Part, limit: int = MAX_CONTENT) -> ServiceMessage:
    """Return the message in a part. Nothing of one that is too large is copied or parsed.

    ``limit``: the most bytes of its content.

    :raises RemoteProtocolError: when it is malformed or too large
    """
    call = decode_call(part)
    size = int(_HEAD.unpack_from(part)[1])
    begin = _HEAD.size + size
    if size > limit or not begin <= len(part) <= begin + MAX_DATA:
        raise RemoteProtocolError(f"A message on service of {len(part)} bytes is malformed.")
    data = bytes(part[begin:])
    try:
        content = parse_json(bytes(part[_HEAD.size : begin]), limit)
    except JsonError as error:
        raise RemoteProtocolError(f"A message on service has a wrong content: {error}.") from None
    if not isinstance(content, dict):
        raise RemoteProtocolError("The content of a message on service is no object.")
    return ServiceMessage(call, content, data)
