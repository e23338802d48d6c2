"""Jupyter's wire format: splits, checks and signs messages. Knows no sockets and no message types.

https://jupyter-client.readthedocs.io/en/stable/messaging.html#the-wire-protocol
"""

from __future__ import annotations

import hmac
import json
import re
import secrets
import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from gvisor_kernel.link.frames import Part
from gvisor_kernel.strict_json import MAX_DEPTH, JsonError, parse_json

DELIMITER = b"<IDS|MSG>"
MAX_HEADER = 16 * 1024
"""Bytes of a header that is parsed here, on the loop that all kernels share: 3 ms at worst. Usual
ones have a few hundred."""
MAX_IDENTITIES = 16
MAX_IDENTITY = 4096
"""Bytes of a client's identity or of a topic. ZMQ allows 255 for an identity."""
MAX_SURROGATES = 1_000_000
"""Escaped surrogates in one part, which are looked at one by one: a second at worst."""
OURS = "gvisor_kernel"
"""Field of each header that is passed on. No two messages are the same with it."""
_MARK = re.compile(rb"\\u[dD]")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_WINDOW = 1024 * 1024
"""Bytes that are searched at once: a search stops all other threads."""
VERSION = re.compile(r"5(\.[0-9]{1,4}){0,2}")
"""Versions of the protocol that are accepted: messages of others are translated by clients."""
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:")
_ODD_DATE = re.compile(r"T24|[+-]\d{2}:?[6-9]\d$")  # some Pythons read it, and strptime does not


class WireError(Exception):
    """Parts that are not a Jupyter message, or whose signature is wrong."""


def parse_object(data: Part, name: str, max_depth: int = MAX_DEPTH) -> dict[str, Any]:
    """Parse a JSON object of at most MAX_HEADER bytes.

    :raises WireError: when ``data`` is not one
    """
    try:
        value = parse_json(data, MAX_HEADER, max_depth=max_depth)
    except JsonError as error:
        raise WireError(f"the {name} cannot be parsed: {error}") from None
    if not isinstance(value, dict):
        raise WireError(f"the {name} is not a JSON object")
    return value


@dataclass(frozen=True)
class WireMessage:
    """A message as on the wire. Only its headers are parsed, on demand."""

    identities: list[Part]
    signature: Part
    header: Part
    parent: Part
    metadata: Part
    content: Part
    buffers: list[Part]

    @property
    def size(self) -> int:
        """Bytes of all parts except the signature."""
        parts = (self.header, self.parent, self.metadata, self.content)
        return sum(map(len, (*self.identities, *parts, *self.buffers)))

    @cached_property
    def _header(self) -> dict[str, Any]:
        return parse_object(self.header, "header")

    @cached_property
    def _parent(self) -> dict[str, Any]:
        return parse_object(self.parent, "parent header")

    @property
    def kind(self) -> str:
        """The ``msg_type``.

        :raises WireError: when the header cannot be parsed
        """
        kind = self._header.get("msg_type")
        return kind if isinstance(kind, str) else ""

    @property
    def id(self) -> str:
        """The ``msg_id``.

        :raises WireError: when the header cannot be parsed
        """
        return _text(self._header.get("msg_id"))

    @property
    def session(self) -> str:
        """The ``session`` of who has sent it.

        :raises WireError: when the header cannot be parsed
        """
        return _text(self._header.get("session"))

    @property
    def parent_id(self) -> str:
        """The ``msg_id`` of the parent, or "".

        :raises WireError: when the parent header cannot be parsed
        """
        return _text(self._parent.get("msg_id"))

    def for_clients(self) -> WireMessage:
        """Return this message, a kernel's, with headers that every client can read.

        jupyter_client raises where it cannot, and for a message that has come before; Jupyter's
        server then hears no more of the kernel. A message of another version than 5 it translates,
        type and content.

        :raises WireError: when there is no such message
        """
        if not (self.kind and self.id and _has_dates(self._header) and _has_dates(self._parent)):
            raise WireError("the header has no type or ID, or a date that is none")
        header = self._header | {OURS: secrets.token_hex(8)}
        if not VERSION.fullmatch(_text(header.get("version"))):
            header["version"] = "5.4"
        passed = replace(self, header=json.dumps(header).encode())
        try:
            parse_object(self.metadata, "metadata")
        except WireError:
            passed = replace(passed, metadata=b"{}")
        return passed

    def as_unicode(self) -> WireMessage:
        """Return this message with U+FFFD for each surrogate without its other half, which no
        notebook can be saved with.

        :raises WireError: when a part has more than MAX_SURROGATES
        """
        dicts = (self.header, self.parent, self.metadata, self.content)
        header, parent, metadata, content = map(_mend_surrogates, dicts)
        return replace(self, header=header, parent=parent, metadata=metadata, content=content)


def _mend_surrogates(part: Part) -> Part:
    """Replace lone surrogates in JSON, which are escapes: bytes that are not UTF-8 are replaced by
    all who read them."""
    if _MARK.search(part) is None:
        return part
    data = bytes(part)
    seen, high = 0, -1
    lone: list[int] = []
    for begin in range(0, len(data), _WINDOW):
        for found in _SURROGATE.finditer(data, begin, begin + _WINDOW + 5):
            at = found.start()
            seen += 1
            if seen > MAX_SURROGATES:
                raise WireError(f"a part has more than {MAX_SURROGATES} escaped surrogates")
            if _count_backslashes(data, at) % 2:
                continue  # the escape is one of a backslash
            is_low = data[at + 3] in b"cdefCDEF"
            if high >= 0 and not (is_low and high == at - 6):
                lone.append(high)
            if is_low and (high < 0 or high != at - 6):
                lone.append(at)
            high = -1 if is_low else at
    if high >= 0:
        lone.append(high)
    mended = bytearray(data)
    for at in lone:
        mended[at : at + 6] = rb"\ufffd"
    return bytes(mended)


def _count_backslashes(data: bytes, end: int) -> int:
    """Return how many backslashes are right before ``end``."""
    size = 8
    while True:
        part = data[max(0, end - size) : end]
        count = len(part) - len(part.rstrip(b"\\"))
        if count < size:
            return count
        size *= 8


def _has_dates(value: object) -> bool:
    """Return whether each text that begins as a date is one; clients parse them, at any depth."""
    if isinstance(value, str) and _DATE.match(value):
        try:
            return bool(datetime.fromisoformat(value)) and not _ODD_DATE.search(value)
        except ValueError:
            return False
    if isinstance(value, dict | list):
        return all(map(_has_dates, value.values() if isinstance(value, dict) else value))
    return True


def _text(value: object) -> str:
    return value if isinstance(value, str) and len(value) <= 256 else ""


def split_message(parts: list[Part]) -> WireMessage:
    """Split the parts of a ZMQ message.

    :raises WireError: when they are not a Jupyter message
    """
    try:
        at = parts.index(DELIMITER, 0, MAX_IDENTITIES + 1)
    except ValueError:
        raise WireError("a message has no delimiter") from None
    if any(len(identity) > MAX_IDENTITY for identity in parts[:at]):
        raise WireError(f"a message has an identity of more than {MAX_IDENTITY} bytes")
    body = parts[at + 1 :]
    if len(body) < 5:
        raise WireError(f"a message has {len(body)} parts after its delimiter; 5 are needed")
    signature, header, parent, metadata, content = body[:5]
    return WireMessage(parts[:at], signature, header, parent, metadata, content, body[5:])


class Signer:
    """Signs and checks with one key. An empty key accepts everything, as in jupyter_client."""

    def __init__(self, key: bytes, scheme: str = "hmac-sha256") -> None:
        """:raises ValueError: when ``scheme`` is not ``hmac-`` and a digest of hashlib"""
        prefix, _, digest = scheme.partition("-")
        if prefix != "hmac" or not digest:
            raise ValueError(f"The signature scheme {scheme!r} is not of the form hmac-DIGEST.")
        self._base = hmac.new(key, digestmod=digest) if key else None

    def _sign(self, *dicts: Part) -> bytes:
        if self._base is None:
            return b""
        signing = self._base.copy()
        for part in dicts:
            signing.update(part)
        return signing.hexdigest().encode()

    def check(self, message: WireMessage) -> None:
        """Check the signature of ``message``.

        :raises WireError: when it was not signed with this key
        """
        expected = self._sign(message.header, message.parent, message.metadata, message.content)
        if expected and not hmac.compare_digest(expected, message.signature):
            raise WireError("a message has a wrong signature")

    def sign(self, message: WireMessage) -> list[Part]:
        """Return the parts of ``message``, signed with this key."""
        dicts = (message.header, message.parent, message.metadata, message.content)
        return [*message.identities, DELIMITER, self._sign(*dicts), *dicts, *message.buffers]


def new_message(kind: str, content: dict[str, Any], parent: Part, topic: bytes) -> WireMessage:
    """Make a message of the bridge for iopub. ``parent`` is the raw header of its request."""
    header = {
        "msg_id": uuid.uuid4().hex,
        "msg_type": kind,
        "username": "gvisor-kernel",
        "session": "gvisor-kernel",
        "date": datetime.now(UTC).isoformat(),
        "version": "5.4",
    }
    return WireMessage(
        [topic], b"", json.dumps(header).encode(), parent, b"{}", json.dumps(content).encode(), []
    )
