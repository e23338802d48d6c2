"""The network of a server's pages: tickets, storages, threads, and their routes.

Each page has a grant of its own, so that limits count for it and its requests are recorded under
its place. The process is the one that kernels of this server have; without a request there is none.
A socket that nobody uses is closed after IDLE_SECONDS.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gvisor_kernel.artifacts.item import Artifact
from gvisor_kernel.artifacts.page import Tickets, open_record
from gvisor_kernel.artifacts.storage import Storage, open_personal, open_shared
from gvisor_kernel.egress.destinations import Destination, find_route, read_destination
from gvisor_kernel.egress.kinds import Route, UrlRoute
from gvisor_kernel.egress.process import EgressWorker, Grant
from gvisor_kernel.errors import EgressError, GvisorKernelError, SettingError
from gvisor_kernel.host.log_files import clean_lines
from gvisor_kernel.jupyter.plan_factory import find_routes
from gvisor_kernel.kernel.kept_data import KeptData

if TYPE_CHECKING:
    from gvisor_kernel.egress.streams import StreamLink

THREADS = 4
PAGE_REQUESTS = 8
"""Requests of one page that may be open."""
SERVER_REQUESTS = 32
"""Requests of all pages that may be open."""
IDLE_SECONDS = 120.0
"""Seconds until an unused socket is closed: more than the minute in which requests are counted, so
that a page cannot begin its minute anew."""
RENEW_SECONDS = 1.0
"""Seconds from the death of the process until it is started again: it may die at once each time."""


class TooMany(EgressError):
    """More requests are open than may be."""


class Line:
    """A socket to the process for routes."""

    def __init__(
        self, sock: socket.socket, on_end: Callable[[bool], None] = lambda has_died: None
    ) -> None:
        """``on_end`` is called once; with True when the process has ended the socket."""
        # Most servers have no route, and do not need this.
        from gvisor_kernel.egress.streams import StreamLink

        self._socket = sock
        self._closing = False
        self.link: StreamLink = StreamLink(sock, None, lambda _: on_end(not self._closing))

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._closing = True
        if not self.link.ended:
            with suppress(OSError):  # a forked child may have a copy of it
                self._socket.shutdown(socket.SHUT_RDWR)
            self.link.end("")


class PageNetwork:
    """``config``: the server's. ``executor``: for what blocks. Use it on the server's loop."""

    def __init__(self, config: Any, log: Any, executor: Executor) -> None:
        self._config = config
        self._log = log
        self._executor = executor
        self._server = secrets.token_hex(8)
        self._found: tuple[Route, ...] | None = None
        self._open: Counter[str] = Counter()
        self._lines: dict[str, Line] = {}
        self._idle: dict[str, asyncio.TimerHandle] = {}
        self._opening = asyncio.Lock()
        self._renewed = 0.0
        """The time from which the process may be started, on the loop's clock."""

    def find(self, url: str) -> tuple[Destination, UrlRoute, str]:
        """Return where a URL leads, its route, and the target below the route's address.

        :raises EgressRefused: it is no URL, or there is no route
        :raises EgressError: the configuration of routes is wrong; the server's log says how
        """
        wanted = read_destination(url)
        return (wanted, *find_route(wanted, self._routes()))

    def _routes(self) -> tuple[Route, ...]:
        if self._found is None:
            try:
                routes = find_routes(self._config).values()
            except SettingError as error:
                self._log.error("gvisor-kernel: pages have no routes: %s", error)
                raise EgressError(
                    "The configuration of routes is wrong.", "the log of the server says how."
                ) from error
            self._found = tuple(r for r in routes if isinstance(r, UrlRoute) and r.artifacts)
        return self._found

    @asynccontextmanager
    async def opened(self, artifact: Artifact) -> AsyncIterator[StreamLink]:
        """Count a request of a page while it is open, and give the page's link.

        :raises TooMany: too many are open
        :raises EgressError: the process for routes cannot be used
        """
        page = artifact.id
        if self._open[page] >= PAGE_REQUESTS:
            raise TooMany(
                f"This page has {PAGE_REQUESTS} requests open, which is the most.",
                "wait until one has ended.",
            )
        if self._open.total() >= SERVER_REQUESTS:
            raise TooMany(
                f"Pages of this server have {SERVER_REQUESTS} requests open, which is the most.",
                "try again later, or stop another page.",
            )
        self._open[page] += 1
        if (waiting := self._idle.pop(page, None)) is not None:
            waiting.cancel()
        try:
            yield await self._find_link(artifact)
        finally:
            self._open[page] -= 1
            if not self._open[page]:
                del self._open[page]
                loop = asyncio.get_running_loop()
                self._idle[page] = loop.call_later(IDLE_SECONDS, self._close, page)

    async def _find_link(self, artifact: Artifact) -> StreamLink:
        async with self._opening:
            line = self._lines.get(artifact.id)
            if line is None:
                loop = asyncio.get_running_loop()
                await asyncio.sleep(self._renewed - loop.time())
                try:
                    sock = await loop.run_in_executor(
                        self._executor, partial(self._connect, artifact)
                    )
                except GvisorKernelError as error:
                    self._log.error("gvisor-kernel: a page's request cannot be sent: %s", error)
                    raise EgressError(
                        "The process for routes, or its record, cannot be used.",
                        "the log of the server says why.",
                    ) from error
                line = Line(sock, partial(self._forget, artifact.id))
                self._lines[artifact.id] = line
            return line.link

    def _connect(self, artifact: Artifact) -> socket.socket:
        """Return a socket of a page's own to the process for routes. Blocks.

        :raises GvisorKernelError: it cannot be had
        """
        name = " ".join(clean_lines(artifact.path))
        grant = Grant(name, self._routes(), open_record(artifact, self._server))
        # by path: a socket, not a file
        return EgressWorker.instance().open(grant, partial(self._write_log, name))

    def _write_log(self, name: str, line: str) -> None:
        """Called in a thread of the process for routes."""
        for text in clean_lines(line):
            self._log.info("gvisor-kernel: page %s: %s", name, text)

    def _forget(self, page: str, has_died: bool) -> None:
        self._lines.pop(page, None)
        if has_died:
            self._renewed = asyncio.get_running_loop().time() + RENEW_SECONDS

    def _close(self, page: str) -> None:
        self._idle.pop(page, None)
        if page in self._lines:
            self._lines[page].close()

    def end(self) -> None:
        """Close all sockets; what is under way fails."""
        for waiting in self._idle.values():
            waiting.cancel()
        self._idle.clear()
        for line in tuple(self._lines.values()):
            line.close()


class Artifacts:
    """``root``: the server's root folder. ``shared``: an administrator's folder for data that
    people share, or an empty text. ``config`` and ``log``: the server's."""

    def __init__(self, root: str, shared: str, config: Any, log: Any) -> None:
        self.root = Path(root)
        self.tickets = Tickets()
        self.executor = ThreadPoolExecutor(THREADS, thread_name_prefix="gvisor-kernel-artifacts")
        self.network = PageNetwork(config, log, self.executor)
        self._shared = KeptData.instance().shared = Path(shared) if shared else None

    def open_storage(self, *, shared: bool) -> Storage:
        """Return the storage of this user, or the one that people share. Blocks.

        :raises StorageError: when it cannot be used
        """
        return open_shared(self._shared) if shared else open_personal()

    def end(self) -> None:
        """End the threads, without waiting for what they do, and the requests of pages."""
        self.network.end()
        self.executor.shutdown(wait=False, cancel_futures=True)


def find_owner(provider: Any, user: Any) -> str:
    """Return whose keys a request is about, as the server's identity provider says.

    Jupyter's own providers know no names: each browser is somebody else to them, and all are the
    person whose server this is.
    """
    if type(provider).__module__.startswith("jupyter_server."):
        return "me"
    return str(user.username)
