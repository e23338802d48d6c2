"""Answers the requests of pip, uv and npm in a sandbox, from the indexes of this machine's user.

Addresses below ``/packages/``:

- ``pypi/simple/NAME/``, ``uv/simple/NAME/``: the files of a Python project, as JSON or HTML
- ``pypi/files/PAGE/TOKEN/FILE``, also with ``.metadata``: a file that such a page names
- ``npm/NAME``: the document about an npm package
- ``npm/-/files/PAGE/TOKEN/FILE``: a tarball that such a document names

A sandbox cannot make this machine get any other URL. TOKEN is a keyed digest of the address that an
index gave for the file; the address itself is looked up in the table of PAGE. Nothing that a
sandbox sends reaches an index, except the name of a package. No page is read here: see
``package_catalog``.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from urllib.parse import unquote, urlsplit

from gvisor_kernel.egress.addresses import NameResolver
from gvisor_kernel.egress.environment import BASE
from gvisor_kernel.egress.heads import Head
from gvisor_kernel.egress.http import Reply, Request
from gvisor_kernel.egress.package_cache import PackageCache, StoredPage
from gvisor_kernel.egress.package_catalog import CHUNK, Catalog, in_thread
from gvisor_kernel.egress.package_downloads import Downloads
from gvisor_kernel.egress.package_index import Configuration
from gvisor_kernel.egress.package_pages import (
    NPM_ABBREVIATED,
    SIMPLE_HTML,
    SIMPLE_JSON,
    File,
    normalize_project,
)
from gvisor_kernel.egress.package_upstream import NAMES, IndexClient
from gvisor_kernel.egress.refusals import NotAvailable, Refusal, UpstreamFailed
from gvisor_kernel.egress.turns import Turns

PREFIX = "/packages/"
METADATA = ".metadata"
PAGES_AT_ONCE, PAGES_OF_ONE = 16, 4
"""Requests of all kernels, and of one, for which pages are fetched and made at once: each may need
MAX_PAGE bytes of the disk and what is made of them. A page that is ready is an open file that the
sandbox reads at its own speed."""
_TOKEN, _PAGE = re.compile("[0-9a-f]{40}"), re.compile("[0-9a-f]{64}")


class Packages:
    """The handler of the route. One instance serves all kernels of a process, in one event loop."""

    def __init__(
        self,
        cache: PackageCache,
        configuration: Callable[[], Configuration],
        client: IndexClient,
    ) -> None:
        self.base = BASE
        """What addresses begin with that must be absolute."""
        self._client = client
        self._catalog = Catalog(cache, client, configuration)
        self._downloads = Downloads(cache, client)
        self._turns = Turns(PAGES_AT_ONCE, PAGES_OF_ONE)

    @classmethod
    def open(cls, environment: Mapping[str, str], threads: ThreadPoolExecutor) -> Packages:
        """Return a handler for the user's configuration and cache. Blocks. ``threads``: see
        ``IndexClient``.

        :raises NotPrivate: see ``PackageCache.open``
        """
        configuration = lambda: Configuration.read(environment)  # noqa: E731 - short
        # by path: below a private store of this user
        return cls(PackageCache.open(), configuration, IndexClient(threads))

    async def close(self) -> None:
        """Close all connections, and end the processes that read pages."""
        await self._client.close()
        await self._catalog.close()

    async def handle(
        self, request: Request, reply: Reply, kernel: Hashable, names: NameResolver
    ) -> None:
        """Answer one request of ``kernel``, whose names ``names`` resolves. Its path begins with
        PREFIX.

        :raises Refusal: what was begun cannot be completed
        """
        NAMES.set(names)
        try:
            await self._answer(request.head, reply, kernel)
        except (NotAvailable, UpstreamFailed) as error:
            if reply.status:
                raise
            # Not as a refusal, after which the connection would end.
            text = f"{error.fact}\n".encode()
            await _start(reply, "text/plain", len(text), error)
            if request.head.method != "HEAD":
                await reply.body(text)
            await reply.end()

    async def _answer(self, head: Head, reply: Reply, kernel: Hashable) -> None:
        if head.method not in ("GET", "HEAD"):
            raise NotAvailable(405, "the route packages only answers GET and HEAD")
        match _split_path(head.path):
            case ["pypi" | "uv" as tool, "simple", name, ""]:
                await self._send_simple(head, reply, kernel, tool, name)
            case ["pypi" | "uv" as tool, "files", made, token, filename]:
                await self._send_file(head, reply, kernel, (tool, made, token, filename))
            case ["npm", "-", "files", made, token, filename]:
                await self._send_file(head, reply, kernel, ("npm", made, token, filename))
            case ["npm", first, *more] if first != "-" and len(more) <= 1:
                await self._send_packument(head, reply, kernel, "/".join([first, *more]))
            case _:
                raise NotAvailable(404, "the route packages has no such address")

    async def _send_simple(
        self, head: Head, reply: Reply, kernel: Hashable, tool: str, name: str
    ) -> None:
        project = normalize_project(name)
        if project is None:
            raise NotAvailable(404, "that is not the name of a project")
        async with self._page_turn(kernel):
            page = await self._catalog.make_simple(kernel, tool, project)
        accept = (head.find(b"accept") or b"").decode("latin-1").lower()
        if SIMPLE_JSON in accept:  # whoever names it can read nothing better
            await _send_page(head, reply, page, "json", SIMPLE_JSON)
        else:
            kind = SIMPLE_HTML if SIMPLE_HTML in accept else "text/html"
            await _send_page(head, reply, page, "html", kind)

    async def _send_packument(self, head: Head, reply: Reply, kernel: Hashable, name: str) -> None:
        short = NPM_ABBREVIATED.encode() in (head.find(b"accept") or b"")
        base = f"{self.base}{PREFIX}npm/-/files/"
        async with self._page_turn(kernel):
            page = await self._catalog.make_packument(kernel, name, base, short=short)
        kind = NPM_ABBREVIATED if short else "application/json"
        await _send_page(head, reply, page, "json", kind)

    @asynccontextmanager
    async def _page_turn(self, kernel: Hashable) -> AsyncIterator[None]:
        """Wait until ``kernel`` may have pages fetched and made.

        :raises Refusal: when that is not possible
        """
        try:
            async with self._turns.take(kernel):
                yield
        except OSError as error:
            fact = f"the page cannot be stored: {error.strerror}"
            raise NotAvailable(507, fact) from error

    async def _send_file(
        self, head: Head, reply: Reply, kernel: Hashable, asked: tuple[str, str, str, str]
    ) -> None:
        tool, made, token, filename = asked
        found = None
        if _PAGE.fullmatch(made) and _TOKEN.fullmatch(token):
            found = await self._catalog.find_file(tool, made, token)
        if found is None or found[1].filename not in (filename, filename.removesuffix(METADATA)):
            raise NotAvailable(404, "no page of an index names this file")
        index, file = found
        if file.filename != filename:
            file = _metadata_of(file)
        async with self._downloads.obtain(index, file, kernel) as download:
            await download.started()
            await _start(reply, "application/octet-stream", download.length)
            if head.method != "HEAD":
                async with aclosing(download.read()) as parts:
                    async for data in parts:
                        await reply.body(data)
            await reply.end()


async def _start(reply: Reply, kind: str, size: int | None, error: Refusal | None = None) -> None:
    headers = [(b"Content-Type", kind.encode()), (b"Vary", b"Accept")]
    if size is not None:
        headers.append((b"Content-Length", b"%d" % size))
    await reply.start(error.status if error else 200, headers, error.reason if error else "")


async def _send_page(head: Head, reply: Reply, page: StoredPage, part: str, kind: str) -> None:
    """Send a part of a page that was made."""
    at, size = 0, 0
    for name, size in page.fields["parts"].items():
        if name == part:
            break
        at += size
    await _start(reply, kind, size)
    end = at + size if head.method != "HEAD" else at
    while at < end:
        data = await in_thread(os.pread, page.file.fd, min(CHUNK, end - at), at)
        if not data:
            raise UpstreamFailed("the page in the cache ended early")
        at += len(data)
        await reply.body(data)
    await reply.end()


def _split_path(path: bytes) -> list[str]:
    """Return the parts of a path below PREFIX. A part with an escape, but those of npm, is not one
    of any address, so nothing can have two meanings."""
    text = path.partition(b"?")[0].decode("latin-1")
    if not text.startswith(PREFIX):
        return []
    text = text[len(PREFIX) :]
    if text.startswith("npm/"):
        for escape in ("%2f", "%2F"):
            text = text.replace(escape, "/", 1)
        text = text.replace("%40", "@", 1)
    words = [unquote(word) if "%2" in word else word for word in text.split("/")]
    odd = any("/" in word or "\\" in word or word in (".", "..") for word in words)
    return [] if odd or "" in words[:-1] else words


def _metadata_of(file: File) -> File:
    """Return the metadata of a file as a file (PEP 658)."""
    if file.metadata is None:
        raise NotAvailable(404, "the index has no metadata of this file")
    parts = urlsplit(file.url)
    url = parts._replace(path=parts.path + METADATA).geturl()
    return File(file.filename + METADATA, url, file.metadata)
