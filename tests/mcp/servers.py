"""Real servers for the tests: ``gvisor-kernel mcp`` over stdio and over HTTP."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult

from ..patience import scale_seconds

COMMAND = [sys.executable, "-m", "gvisor_kernel", "mcp"]
MEMORY = ("--memory", "1G")
QUICK = (*MEMORY, "--set", "snapshot=off")
"""Without it each server would begin to make a snapshot, which takes longer than most tests."""


@asynccontextmanager
async def stdio_session(*options: str) -> AsyncIterator[ClientSession]:
    """A session of the SDK's client with a server of its own over stdio."""
    server = StdioServerParameters(
        command=COMMAND[0], args=[*COMMAND[1:], *QUICK, *options], env=dict(os.environ)
    )
    async with stdio_client(server) as streams, ClientSession(*streams) as session:
        await session.initialize()
        yield session


@contextmanager
def raw_server(*options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server over stdio whose pipes a test uses itself."""
    with subprocess.Popen(
        [*COMMAND, *QUICK, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as process:
        try:
            yield process
        finally:
            assert process.stdin is not None
            if not process.stdin.closed:
                process.stdin.close()
            try:
                assert process.wait(scale_seconds(30)) == 0
            finally:
                process.kill()


@dataclass(frozen=True)
class HttpServer:
    """A server over HTTP. ``url`` ends with its path."""

    url: str
    token: str
    process: subprocess.Popen[str]

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


@contextmanager
def http_server(*options: str) -> Iterator[HttpServer]:
    """A server over HTTP at a free port; at the end it is told to end by SIGTERM."""
    with subprocess.Popen(
        [*COMMAND, *QUICK, "--http", "127.0.0.1:0", *options], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            token = process.stdout.readline().split()[-1]
            yield HttpServer(url, token, process)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                assert process.wait(scale_seconds(30)) == 0
            finally:
                process.kill()


@asynccontextmanager
async def http_session(server: HttpServer) -> AsyncIterator[ClientSession]:
    """A session of the SDK's client, of a protocol with a handshake."""
    async with (
        httpx2.AsyncClient(headers=server.headers, timeout=scale_seconds(60)) as http,
        streamable_http_client(server.url, http_client=http) as streams,
        ClientSession(*streams[:2]) as session,
    ):
        await session.initialize()
        yield session


async def call(session: ClientSession, tool: str, /, **arguments: Any) -> dict[str, Any]:
    """Call a tool that must succeed; return its structure."""
    result = await session.call_tool(f"sandbox_{tool}", arguments)
    assert not result.is_error, text_of(result)
    assert isinstance(result.structured_content, dict)
    return result.structured_content


async def fail(session: ClientSession, tool: str, /, **arguments: Any) -> str:
    """Call a tool that must fail; return its text."""
    result = await session.call_tool(f"sandbox_{tool}", arguments)
    assert result.is_error, text_of(result)
    return text_of(result)


def text_of(result: CallToolResult) -> str:
    return "\n".join(item.text for item in result.content if item.type == "text")
