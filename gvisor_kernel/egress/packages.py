"""Answers the requests of pip, uv and npm in a sandbox, from the indexes of this machine's user.

Addresses below ``/packages/``:

- ``pypi/simple/NAME/``, ``uv/simple/NAME/``: the files of a Python project, as JSON or HTML
- ``pypi/files/PAGE/NUMBER/FILE``, also with ``.metadata``: a file that such a page names
- ``npm/NAME``: the document about an npm package
- ``npm/-/files/PAGE/NUMBER/FILE``: a tarball that such a document names

A sandbox cannot make this machine get any other URL: the address that an index gave for a file is
in the table of PAGE. Nothing that a sandbox sends reaches an index, except the name of a package.
No page is read here: see ``package_catalog``.

A download does not wait for who asked: it goes to the disk once for all sandboxes that ask at a
time, and each reads it from there at its own speed. The last part is not handed out before the
digests of the whole are right, so no sandbox ever has a complete file with a wrong one.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, suppress
from urllib.parse import unquote, urlsplit

from gvisor_kernel.config.validators import GIB
from gvisor_kernel.egress.addresses import NameResolver
from gvisor_kernel.egress.environment import BASE
from gvisor_kernel.egress.heads import Head
from gvisor_kernel.egress.http import Reply, Request
from gvisor_kernel.egress.package_cache import (
    HashMismatch,
    Incoming,
    OpenFile,
    PackageCache,
    StoredPage,
    is_strong,
)
from gvisor_kernel.egress.package_catalog import BOUNDS, CHUNK, Bounds, Catalog, in_thread, store
from gvisor_kernel.egress.package_index import Configuration, Index
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
_NUMBER, _PAGE = re.compile("0|[1-9][0-9]{0,7}"), re.compile("[0-9a-f]{64}")
HELD_BACK = 1024
MAX_FILE = 8 * GIB
FILE_SECONDS = 3600.0
"""How long a file may take."""
MAX_AT_ONCE, MAX_OF_ONE = 8, 4
"""Downloads of all kernels of a process, and of one. The others wait, and kernels take turns."""


class Packages:
    """The handler of the route. One instance serves all kernels of a process, in one event loop."""

    def __init__(
        self,
        cache: PackageCache,
        configuration: Callable[[], Configuration],
        client: IndexClient,
        bounds: Bounds = BOUNDS,
    ) -> None:
        self._client = client
        self._catalog = Catalog(cache, client, configuration, bounds)
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
            case ["pypi" | "uv" as tool, "files", made, number, filename]:
                await self._send_file(head, reply, kernel, (tool, made, number, filename))
            case ["npm", "-", "files", made, number, filename]:
                await self._send_file(head, reply, kernel, ("npm", made, number, filename))
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
        base = f"{BASE}{PREFIX}npm/-/files/"
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
        tool, made, number, filename = asked
        found = None
        if _PAGE.fullmatch(made) and _NUMBER.fullmatch(number):
            found = await self._catalog.find_file(tool, made, int(number))
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


# -- files ----------------------------------------------------------------------------------------


class Download:
    """One file that is there, or on its way. ``length`` is its size, if known, once ``started`` was
    awaited. ``readers``: requests that want it."""

    def __init__(self) -> None:
        self.length: int | None = None
        self.readers = 0
        self.task: asyncio.Task[None] | None = None
        self.error: Exception | None = None
        self.is_begun = self.is_ended = False
        self._file: OpenFile | None = None
        self._available = 0
        self._progress = asyncio.Event()

    def begin(self, file: OpenFile, length: int | None = None) -> None:
        """Say that data come into ``file``."""
        self._file = file
        self.length = length
        self.is_begun = True
        self._wake()

    def advance(self, size: int) -> None:
        """Say how large the file is now."""
        self._available = max(0, size - HELD_BACK)
        self._wake()

    def finish(self, error: Exception | None = None) -> None:
        """Say that all data are there and right, or why not."""
        self.error = error
        if error is None and self._file is not None:
            self._available = os.fstat(self._file.fd).st_size
        self.is_ended = True
        self._wake()

    async def started(self) -> None:
        """Wait until it has begun.

        :raises Refusal: why it did not
        """
        while not self.is_begun and not self.is_ended:
            await self._progress.wait()  # no timeout: bounded by FILE_SECONDS
        if self.error is not None:
            raise self.error

    async def read(self) -> AsyncGenerator[bytes, None]:
        """Return the data as they come. The iteration raises as ``started``."""
        at = 0
        while True:
            while self._file is not None and at < self._available:
                size = min(CHUNK, self._available - at)
                data = await in_thread(os.pread, self._file.fd, size, at)
                if not data:
                    raise UpstreamFailed("the file in the cache ended early")
                at += len(data)
                yield data
            if self.error is not None:
                raise self.error
            if self.is_ended:
                return
            await self._progress.wait()  # no timeout: bounded by FILE_SECONDS

    def _wake(self) -> None:
        progress, self._progress = self._progress, asyncio.Event()
        progress.set()


class Downloads:
    """The files of one process."""

    def __init__(self, cache: PackageCache, client: IndexClient) -> None:
        self._cache = cache
        self._client = client
        self._running: dict[tuple[str, str], Download] = {}
        self._turns = Turns(MAX_AT_ONCE, MAX_OF_ONE)

    @asynccontextmanager
    async def obtain(self, index: Index, file: File, kernel: Hashable) -> AsyncIterator[Download]:
        """Give ``file``: that of the cache, or a download, which may be that of another request.

        A request for a file that is not on its way waits for a turn of its own kernel: so a kernel
        that asks for many files does not make others wait for those that both want.
        """
        key = (index.url, file.url)
        download = await self._find(key, file)
        if download is None:
            await self._turns.acquire(kernel)
            try:
                download = await self._find(key, file)
            except BaseException:
                self._turns.release(kernel)
                raise
            if download is not None:
                self._turns.release(kernel)
            else:
                download = self._running[key] = Download()
                download.task = asyncio.create_task(self._run(download, index, file))
                download.task.add_done_callback(lambda _: self._end(key, kernel))
        download.readers += 1
        try:
            yield download
        finally:
            download.readers -= 1
            if not download.readers and download.task is not None:
                if self._running.get(key) is download:
                    del self._running[key]  # who asks now does not join what ends
                download.task.cancel()

    def _end(self, key: tuple[str, str], kernel: Hashable) -> None:
        """Take note of the end of a download."""
        self._turns.release(kernel)
        download = self._running.get(key)
        if download is not None and download.task is not None and download.task.done():
            del self._running[key]

    async def _find(self, key: tuple[str, str], file: File) -> Download | None:
        """Return a file that is there, or on its way. One without a strong digest may have changed,
        so it is not looked for in the cache."""
        if key not in self._running and is_strong(file.hashes):
            kept = Download()
            if await self._use_kept(kept, file):
                kept.finish()
                return kept
        return self._running.get(key)

    async def _use_kept(self, download: Download, file: File) -> bool:
        """Begin with a file of the cache, if there is one."""
        kept = await in_thread(self._cache.open_file, file.hashes, file.url)
        if kept is not None:
            download.begin(kept, os.fstat(kept.fd).st_size)
        return kept is not None

    async def _run(self, download: Download, index: Index, file: File) -> None:
        error: NotAvailable | UpstreamFailed | None = None
        try:
            async with asyncio.timeout(FILE_SECONDS):
                await self._fetch(download, index, file)
        except TimeoutError:
            error = UpstreamFailed(f"it takes longer than {FILE_SECONDS:g} s")
        except OSError as failed:
            error = NotAvailable(507, f"the cache cannot be written: {failed.strerror}")
        except (NotAvailable, UpstreamFailed) as failed:
            error = failed
        except Exception as failed:
            download.finish(failed)
            raise
        # Without a strong digest a kept file is second best.
        is_down = isinstance(error, UpstreamFailed) and not download.is_begun
        if error is None or (is_down and await self._use_kept(download, file)):
            download.finish()
            return
        fact = f"{file.filename} cannot be had: {error.fact}"
        download.finish(NotAvailable(error.status, fact))

    async def _fetch(self, download: Download, index: Index, file: File) -> None:
        headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
        async with self._client.get(index, file.url, headers) as answer:
            if answer.status in (404, 410):
                raise NotAvailable(404, "the host of the index does not have it")
            if answer.status != 200:
                raise UpstreamFailed(f"its host answers with status {answer.status}")
            stated = answer.headers.get("content-length", "")
            length = int(stated) if stated.isascii() and stated.isdigit() else None
            if length is not None and length > MAX_FILE:
                raise UpstreamFailed(f"it has more than {MAX_FILE} bytes")
            incoming = self._cache.begin(file.hashes)
            try:
                # Once data were passed on, a sandbox could only be told that the answer broke off.
                if length is not None and not _has_room(incoming.fd, length):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                download.begin(OpenFile(os.dup(incoming.fd)), length)
                await store(answer.body, incoming, MAX_FILE, download.advance)
                if length is not None and incoming.size != length:
                    raise UpstreamFailed("its host broke off")
                await in_thread(_keep, incoming, file.url)
            except HashMismatch as error:
                raise UpstreamFailed(str(error)) from error
            finally:
                incoming.close()


def _keep(incoming: Incoming, source: str) -> None:
    incoming.check()
    with suppress(OSError):  # then it is only not kept
        incoming.keep(source)


def _has_room(fd: int, size: int) -> bool:
    """Return whether the disk of an open file has room for ``size`` bytes more."""
    disk = os.fstatvfs(fd)
    return size <= disk.f_bavail * disk.f_frsize
