"""Whose fault it was: the two errors of the link. Nothing else lives here."""

from __future__ import annotations


class LinkError(Exception):
    """The rules of the link were broken."""


class LocalProtocolError(LinkError):
    """This side asked its own connection for something the rules forbid: a bug here."""


class RemoteProtocolError(LinkError):
    """The other side sent bytes that the rules forbid. The connection is unusable from now on."""
