"""Answers the requests of pip, uv and npm in a sandbox, from the indexes of this machine's user.

Addresses below ``/packages/``:

- ``pypi/simple/NAME/``, ``uv/simple/NAME/``: the files of a Python project, as JSON or HTML
- ``pypi/files/NAME/TOKEN/FILE``, also with ``.metadata``: a file that such a page names
- ``npm/NAME``: the document about an npm package
- ``npm/-/files/NAME/TOKEN/FILE``: a tarball that such a document names

A sandbox cannot make this machine get any other URL. TOKEN is a keyed digest of the address that an
index gave for the file; the address itself is looked up in the page of that index. Nothing that a
sandbox sends reaches an index, except the name of a package.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import aclosing
from typing import IO, Protocol
from urllib.parse import quote, unquote, urlsplit

from gvisor_kernel.egress.environment import BASE
from gvisor_kernel.egress.package_cache import PackageCache, is_strong
from gvisor_kernel.egress.package_catalog import Catalog, Configuration, Failed
from gvisor_kernel.egress.package_downloads import (
    CHUNK,
    Download,
    Downloads,
    FileDamaged,
    NotFound,
    in_thread,
)
from gvisor_kernel.egress.package_index import Index
from gvisor_kernel.egress.package_pages import (
    NPM_ABBREVIATED,
    SIMPLE_HTML,
    SIMPLE_JSON,
    File,
    Page,
    merge_pages,
    normalize_project,
    write_html,
    write_json,
    write_packument,
)
from gvisor_kernel.egress.package_upstream import Forbidden, Unreachable, Upstream
from gvisor_kernel.egress.refusals import UpstreamFailed

log = logging.getLogger(__name__)

PREFIX = "/packages/"
METADATA = ".metadata"
MAX_PAGES_AT_ONCE = 4
"""Pages of indexes that are in memory at once, of up to MAX_PAGE bytes each and what is made of
them. A page that is ready waits on the disk until the sandbox has read it at its own speed."""
_WHEEL = "application/octet-stream"

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


class Packages:
    """The handler of the route. One instance serves all kernels of a process, in one event loop."""

    def __init__(
        self,
        cache: PackageCache,
        configuration: Callable[[], Configuration],
        upstream: Upstream | None = None,
    ) -> None:
        self.base = BASE
        """What addresses begin with that must be absolute."""
        self._cache = cache
        self._upstream = upstream or Upstream()
        self._catalog = Catalog(cache, self._upstream, configuration)
        self._downloads = Downloads(cache, self._upstream)
        self._key = cache.read_key()
        self._pages = asyncio.Semaphore(MAX_PAGES_AT_ONCE)

    @classmethod
    def open(cls, environment: Mapping[str, str]) -> Packages:
        """Return a handler for the user's configuration and cache. Blocks.

        :raises NotPrivate: see ``PackageCache.open``
        """
        return cls(PackageCache.open(), lambda: Configuration.read(environment))

    async def close(self) -> None:
        """Close all connections."""
        await self._upstream.close()

    async def handle(self, request: Request, reply: Reply) -> None:
        """Answer one request whose path begins with PREFIX.

        :raises UpstreamFailed: what was begun cannot be completed
        """
        head = request.head
        try:
            if head.method not in ("GET", "HEAD"):
                raise Failed(405, "the route packages only answers GET and HEAD")
            await self._answer(head, reply)
        except Failed as error:
            await _send(reply, head, error.status, "text/plain", f"{error.text}\n", error.text)

    async def _answer(self, head: Head, reply: Reply) -> None:
        words = _split_path(head.path)
        match words:
            case ["pypi" | "uv" as tool, "simple", name, ""]:
                await self._answer_simple(head, reply, tool, name)
            case ["pypi" | "uv" as tool, "files", name, token, filename]:
                await self._answer_file(head, reply, tool, name, token, filename)
            case ["npm", "-", "files", *name, token, filename] if name:
                await self._answer_tarball(head, reply, "/".join(name), token, filename)
            case ["npm", first, *more] if first != "-" and len(more) <= 1:
                await self._answer_packument(head, reply, "/".join([first, *more]))
            case _:
                raise Failed(404, "the route packages has no such address")

    # -- Python ------------------------------------------------------------------------------------

    async def _answer_simple(self, head: Head, reply: Reply, tool: str, name: str) -> None:
        json_wanted = _prefers_json(head.find(b"accept") or b"")
        kind = SIMPLE_JSON if json_wanted else SIMPLE_HTML if _names_html(head) else "text/html"
        with await self._spool(self._write_simple(tool, name, json_wanted)) as file:
            await _send_open(head, reply, os.dup(file.fileno()), kind)

    async def _write_simple(self, tool: str, name: str, json_wanted: bool) -> bytes:
        """Return the page of a project."""
        project = normalize_project(name)
        if project is None:
            raise Failed(404, "that is not the name of a project")
        configured = await self._catalog.find_indexes(tool)
        pages: list[Page] = []
        tokens: dict[str, str] = {}
        failure: Failed | None = None
        for index in configured.indexes:
            try:
                page = await self._catalog.find_page(index, project)
            except Failed as error:
                failure = failure or error
                if not configured.merged:
                    break  # a later index must not stand in for one that is down
                continue
            if page is None:
                continue
            pages.append(page)
            for file in page.files:
                tokens.setdefault(file.filename, self._make_token(index, file))
            if not configured.merged:
                break
        if not pages:
            raise failure or Failed(404, f"no index has {project}")
        page = await asyncio.to_thread(merge_pages, pages)

        def address(file: File) -> str:
            return f"../../files/{project}/{tokens[file.filename]}/{quote(file.filename)}"

        write = write_json if json_wanted else write_html
        return await asyncio.to_thread(write, project, page, address)

    async def _answer_file(
        self, head: Head, reply: Reply, tool: str, name: str, token: str, filename: str
    ) -> None:
        async with self._pages:
            index, file = await self._find_file(tool, name, token, filename)
        await self._send_file(head, reply, index, file)

    async def _find_file(
        self, tool: str, name: str, token: str, filename: str
    ) -> tuple[Index, File]:
        project = normalize_project(name)
        configured = await self._catalog.find_indexes(tool)
        wanted = {filename, filename.removesuffix(METADATA)}
        for index in configured.indexes if project == name else ():
            try:
                page = await self._catalog.find_page(index, name, fresh=False)
            except Failed:
                continue
            for file in page.files if page is not None else ():
                if file.filename in wanted and self._has_token(index, file, token):
                    return index, file if file.filename == filename else _metadata_of(file)
        raise Failed(404, "no page of an index names this file")

    # -- npm ---------------------------------------------------------------------------------------

    async def _answer_packument(self, head: Head, reply: Reply, name: str) -> None:
        short = NPM_ABBREVIATED.encode() in (head.find(b"accept") or b"")
        kind = NPM_ABBREVIATED if short else "application/json"
        with await self._spool(self._write_packument(name, short)) as file:
            await _send_open(head, reply, os.dup(file.fileno()), kind)

    async def _write_packument(self, name: str, short: bool) -> bytes:
        """Return the document about a package."""
        found = await self._catalog.find_packument(name, short=short)
        if found is None:
            raise Failed(404, f"the registry has no package {name}")
        index, content, files = found

        def address(file: File) -> str:
            token = self._make_token(index, file)
            return f"{self.base}{PREFIX}npm/-/files/{name}/{token}/{quote(file.filename)}"

        return await asyncio.to_thread(write_packument, content, files, address)

    async def _answer_tarball(
        self, head: Head, reply: Reply, name: str, token: str, filename: str
    ) -> None:
        async with self._pages:
            index, file = await self._find_tarball(name, token, filename)
        await self._send_file(head, reply, index, file)

    async def _find_tarball(self, name: str, token: str, filename: str) -> tuple[Index, File]:
        for short in (True, False):
            found = await self._catalog.find_packument(name, short=short, fresh=False)
            for file in found[2].values() if found is not None else ():
                if (
                    found is not None
                    and file.filename == filename
                    and self._has_token(found[0], file, token)
                ):
                    return found[0], file
        raise Failed(404, "no document of a registry names this file")

    async def _spool(self, writing: Coroutine[None, None, bytes]) -> IO[bytes]:
        """Return an open file with a page, which is written while few others are.

        :raises Failed: when it cannot be had, or the disk of the cache is full
        """
        try:
            async with self._pages:
                return await asyncio.to_thread(self._cache.spool, await writing)
        except OSError as error:
            raise Failed(507, f"the page cannot be stored: {error.strerror}") from error
        finally:
            writing.close()

    # -- files -------------------------------------------------------------------------------------

    def _make_token(self, index: Index, file: File) -> str:
        text = f"{index.url}\0{file.filename}\0{file.url}"
        return hmac.new(self._key, text.encode(), "sha256").hexdigest()[:40]

    def _has_token(self, index: Index, file: File, token: str) -> bool:
        return hmac.compare_digest(self._make_token(index, file).encode(), token.encode())

    async def _send_file(self, head: Head, reply: Reply, index: Index, file: File) -> None:
        fd = None
        if is_strong(file.hashes):
            fd = await asyncio.to_thread(self._cache.open_file, file.hashes, file.url)
        if fd is not None:
            await _send_open(head, reply, fd, _WHEEL)
            return
        download = self._downloads.start(index, file)
        begun = False
        try:
            await download.started()
            begun = True  # what fails from now on breaks the answer off
            await self._send_download(head, reply, download)
        except (Unreachable, NotFound, Forbidden, FileDamaged) as error:
            if begun:
                raise UpstreamFailed(f"{file.filename} broke off: {error}") from error
            # A file without a strong digest may have changed, so the kept one is second best.
            fd = await asyncio.to_thread(self._cache.open_file, file.hashes, file.url)
            if fd is None or not isinstance(error, Unreachable):
                if fd is not None:
                    os.close(fd)
                status = 404 if isinstance(error, NotFound) else 502
                raise Failed(status, f"{file.filename} cannot be had: {error}") from error
            await _send_open(head, reply, fd, _WHEEL)
        finally:
            self._downloads.leave(download)

    @staticmethod
    async def _send_download(head: Head, reply: Reply, download: Download) -> None:
        headers = [(b"Content-Type", _WHEEL.encode())]
        if download.length is not None:
            headers.append((b"Content-Length", b"%d" % download.length))
        await reply.start(200, headers)
        if head.method != "HEAD":
            async with aclosing(download.read()) as parts:
                async for data in parts:
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
        raise Failed(404, "the index has no metadata of this file")
    parts = urlsplit(file.url)
    url = parts._replace(path=parts.path + METADATA).geturl()
    return File(file.filename + METADATA, url, file.metadata)


def _prefers_json(accept: bytes) -> bool:
    """Whether a client that accepts these types wants JSON rather than HTML."""
    best = {"json": 0.0, "html": 0.0}
    for entry in accept.decode("latin-1").lower().split(",")[:32]:
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


def _names_html(head: Head) -> bool:
    return SIMPLE_HTML.encode() in (head.find(b"accept") or b"").lower()


async def _send(
    reply: Reply, head: Head, status: int, kind: str, content: str, reason: str = ""
) -> None:
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


async def _send_open(head: Head, reply: Reply, fd: int, kind: str) -> None:
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
