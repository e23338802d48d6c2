"""Finds a route's credential where a server sends it back, and replaces it in bodies. Pure.

A server may quote the key in an error message. It is replaced by as many asterisks, so that a
length that was announced stays true.
"""

from __future__ import annotations

MASK = b"*"
MIN_SECRET = 8
"""Bytes. A shorter one is in too much that has nothing to do with it."""


def is_quoted(secret: bytes, text: bytes) -> bool:
    """Return whether ``text``, a part of an answer's head, contains ``secret``, which may be empty.

    Names of headers lose their case on the way, and a value may be folded over lines: so neither
    case nor spaces and tabs count.
    """
    return bool(secret) and _squeeze(secret) in _squeeze(text)


def _squeeze(text: bytes) -> bytes:
    return text.translate(None, b" \t").lower()


class Masking:
    """The body of one answer, in parts of any size.

    ``secret``: one shorter than MIN_SECRET masks nothing. A part's end is held back only while it
    may be the beginning of the secret, so that events of a stream are not delayed.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret if len(secret) >= MIN_SECRET else b""
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Return what can be passed on after ``data`` has come; it may be empty."""
        secret = self._secret
        if not secret:
            return data
        if self._held:
            data = self._held + data
            self._held = b""
        data = data.replace(secret, MASK * len(secret))
        size = self._find_beginning(data)
        if size:
            self._held = data[-size:]
            data = data[:-size]
        return data

    def finish(self) -> bytes:
        """Return what is left: the answer has ended."""
        held, self._held = self._held, b""
        return held

    def _find_beginning(self, data: bytes) -> int:
        """Return how many bytes at the end of ``data`` may be the beginning of the secret."""
        secret = self._secret
        at = max(0, len(data) - len(secret) + 1)
        while (at := data.find(secret[:1], at)) != -1:
            if secret.startswith(data[at:]):
                return len(data) - at
            at += 1
        return 0
