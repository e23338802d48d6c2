"""The errors of the link: one for each side's fault. Nothing else lives here."""

from __future__ import annotations


class LinkError(Exception):
    """The protocol was violated."""


class LocalProtocolError(LinkError):
    """This side asked its own connection for something that the protocol forbids: a bug here."""


class RemoteProtocolError(LinkError):
    """The other side sent bytes that the protocol forbids. The connection cannot be used again."""
