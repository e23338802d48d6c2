"""Requests of package managers and the answers to them, as HTTP: what is accepted, what is sent.

What an address means is in ``packages.py``.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from typing import Protocol

from gvisor_kernel.egress.package_downloads import CHUNK, Download, FileDamaged, in_thread
from gvisor_kernel.egress.package_pages import SIMPLE_HTML, SIMPLE_JSON

BINARY = "application/octet-stream"
"""The content type of files."""

Headers = Iterable[tuple[bytes, bytes]]


class Head(Protocol):
    """What is needed of a request's head."""

    @property
    def method(self) -> str:
        """The method, in upper case."""

    @property
    def path(self) -> bytes:
        """The path with the query."""

    def find(self, name: bytes) -> bytes | None:
        """Return the first value of a header."""


class Request(Protocol):
    """What is needed of a request."""

    @property
    def head(self) -> Head:
        """Its head."""


class Reply(Protocol):
    """Writes the answer."""

    async def start(self, status: int, headers: Headers, reason: str = "") -> None:
        """Send the head."""

    async def body(self, data: bytes) -> None:
        """Send a part of the body."""

    async def end(self) -> None:
        """End the answer."""


def prefers_json(head: Head) -> bool:
    """Whether the client wants JSON rather than HTML, by the types that it accepts."""
    best = {"json": 0.0, "html": 0.0}
    for entry in (head.find(b"accept") or b"").decode("latin-1").lower().split(",")[:32]:
        kind, *parameters = (word.strip() for word in entry.split(";"))
        weight = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    weight = float(parameter[2:])
                except ValueError:
                    weight = 0.0
        if kind in (SIMPLE_JSON, SIMPLE_JSON.replace("v1", "latest")):
            best["json"] = max(best["json"], weight)
        elif kind in (SIMPLE_HTML, "text/html"):
            best["html"] = max(best["html"], weight)
    return best["json"] > 0 and best["json"] >= best["html"]


def names_html(head: Head) -> bool:
    """Whether the client names the type of HTML pages of an index (PEP 691)."""
    return SIMPLE_HTML.encode() in (head.find(b"accept") or b"").lower()


async def send_text(
    reply: Reply, head: Head, status: int, kind: str, content: str, reason: str = ""
) -> None:
    """Send a text. ``reason``: put into the status line, for clients that show only that."""
    data = content.encode()
    await reply.start(
        status,
        [
            (b"Content-Type", kind.encode()),
            (b"Content-Length", b"%d" % len(data)),
            (b"Vary", b"Accept"),
        ],
        f"gvisor-kernel: {reason}"[:200] if reason else "",
    )
    if head.method != "HEAD":
        for at in range(0, len(data), CHUNK):
            await reply.body(data[at : at + CHUNK])
    await reply.end()


async def send_open(head: Head, reply: Reply, fd: int, kind: str) -> None:
    """Send an open file as content of the type ``kind``, and close it."""
    try:
        size = os.fstat(fd).st_size
        headers = [
            (b"Content-Type", kind.encode()),
            (b"Content-Length", b"%d" % size),
            (b"Vary", b"Accept"),
        ]
        await reply.start(200, headers)
        if head.method != "HEAD":
            async for data in _read_open(fd, size):
                await reply.body(data)
        await reply.end()
    finally:
        os.close(fd)


async def _read_open(fd: int, size: int) -> AsyncIterator[bytes]:
    at = 0
    while at < size:
        data = await in_thread(os.pread, fd, CHUNK, at)
        if not data:
            raise FileDamaged("it ended early")
        at += len(data)
        yield data


async def send_download(head: Head, reply: Reply, download: Download) -> None:
    """Send what a download brings, as it comes."""
    headers = [(b"Content-Type", BINARY.encode())]
    if download.length is not None:
        headers.append((b"Content-Length", b"%d" % download.length))
    await reply.start(200, headers)
    if head.method != "HEAD":
        async with aclosing(download.read()) as parts:
            async for data in parts:
                await reply.body(data)
    await reply.end()
