"""A running server: its sandboxes, its clients, and what brings their requests.

The SDK is imported here, in a thread, while the first sandbox starts.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import ModuleType

from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.mcp.clients import Clients
from gvisor_kernel.mcp.greeting import Greeting
from gvisor_kernel.mcp.limits import ServerSettings
from gvisor_kernel.mcp.sessions import Sandboxes

SIGNALS = (signal.SIGINT, signal.SIGTERM)


async def load(name: str) -> ModuleType:
    """Import a module of this package that needs the SDK.

    :raises GvisorKernelError: the SDK is not installed
    """
    # The SDK builds thousands of schemas; the collector would look at all of them, again and again.
    gc.disable()
    try:
        return await asyncio.to_thread(importlib.import_module, f"gvisor_kernel.mcp.{name}")
    except ImportError as error:
        raise GvisorKernelError(
            f"The MCP server needs a package that is not installed: {error.name}.",
            "run: pip install 'gvisor-kernel[mcp]'",
        ) from error
    finally:
        gc.enable()


@asynccontextmanager
async def open_clients(settings: ServerSettings) -> AsyncIterator[Clients]:
    """Start the first sandbox, and serve clients; at the end, end all sandboxes."""
    sandboxes = Sandboxes(settings)
    clients = Clients(sandboxes)
    sandboxes.start_first()
    clients.start()
    try:
        yield clients
    finally:
        await clients.close()


async def serve_stdio(settings: ServerSettings, greeting: Greeting) -> None:
    """Serve the client of ``greeting`` until it leaves, or a signal comes.

    :raises GvisorKernelError: the SDK is not installed
    """
    with caught_signals() as stop:
        async with open_clients(settings) as clients:
            server, stdio = await load("server"), await load("stdio")
            lowlevel = server.McpServer(clients).server
            async with stdio.stdio_streams(greeting, stop) as streams:
                await lowlevel.run(*streams, lowlevel.create_initialization_options())


@contextmanager
def caught_signals() -> Iterator[asyncio.Event]:
    """Give an event that SIGINT or SIGTERM sets, instead of ending this process."""
    loop, event = asyncio.get_running_loop(), asyncio.Event()
    for number in SIGNALS:
        loop.add_signal_handler(number, event.set)
    try:
        yield event
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)


async def serve_http(
    settings: ServerSettings,
    listener: socket.socket,
    token: str,
    hosts: tuple[str, ...],
    announce: Callable[[], None],
) -> None:
    """Serve clients over Streamable HTTP until a signal comes.

    ``listener`` is bound. ``hosts``: the names and ports by which clients may call this server.
    ``announce`` is called when requests are answered.

    :raises GvisorKernelError: the SDK is not installed
    """
    with caught_signals() as stop:
        async with open_clients(settings) as clients:
            server, http = await load("server"), await load("http")
            gate = http.make_gate(server.McpServer(clients), clients, token, hosts)
            announce()
            await http.serve(gate, listener, stop)
