"""Answers the requests of pip, uv and npm in a sandbox, from the indexes of this machine's user.

Addresses below ``/packages/``:

- ``pypi/simple/NAME/``, ``uv/simple/NAME/``: the files of a Python project, as JSON or HTML
- ``pypi/files/NAME/TOKEN/FILE``, also with ``.metadata``: a file that such a page names
- ``npm/NAME``: the document about an npm package
- ``npm/-/files/NAME/TOKEN/FILE``: a tarball that such a document names

A sandbox cannot make this machine get any other URL. TOKEN is a keyed digest of the address that an
index gave for the file; the address itself is looked up in the page of that index. Nothing that a
sandbox sends reaches an index, except the name of a package. No page is read here: see
``page_process``.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

from gvisor_kernel.egress.environment import BASE
from gvisor_kernel.egress.fair_turns import FairTurns
from gvisor_kernel.egress.name_resolver import NameResolver
from gvisor_kernel.egress.package_cache import OpenFile, PackageCache, StoredPage, is_strong
from gvisor_kernel.egress.package_catalog import Catalog, Configuration, Failed
from gvisor_kernel.egress.package_connections import Forbidden, Unreachable, names_resolved_by
from gvisor_kernel.egress.package_downloads import (
    Downloads,
    FileDamaged,
    NotFound,
    NotStored,
    in_thread,
)
from gvisor_kernel.egress.package_index import Index
from gvisor_kernel.egress.package_pages import (
    NPM_ABBREVIATED,
    SIMPLE_HTML,
    SIMPLE_JSON,
    File,
    check_file,
    normalize_project,
)
from gvisor_kernel.egress.package_replies import (
    BINARY,
    Head,
    Reply,
    Request,
    names_html,
    prefers_json,
    send_download,
    send_open,
    send_text,
)
from gvisor_kernel.egress.package_upstream import Upstream
from gvisor_kernel.egress.page_process import JobFailed, PageProcesses
from gvisor_kernel.egress.refusals import UpstreamFailed

log = logging.getLogger(__name__)

PREFIX = "/packages/"
METADATA = ".metadata"
PAGES_AT_ONCE, PAGES_OF_ONE = 16, 4
"""Requests of all kernels, and of one, for which pages are fetched and made at once: each may need
MAX_PAGE bytes of the disk and what is made of them. A page that is ready is an open file without a
name until the sandbox has read it at its own speed."""
MAX_TYPE, MAX_TEXT = 200, 300
"""Characters of a content type, and of what is wrong with a page."""


class Packages:
    """The handler of the route. One instance serves all kernels of a process, in one event loop."""

    def __init__(
        self,
        cache: PackageCache,
        configuration: Callable[[], Configuration],
        upstream: Upstream,
    ) -> None:
        self.base = BASE
        """What addresses begin with that must be absolute."""
        self._cache = cache
        self._upstream = upstream
        self._catalog = Catalog(cache, self._upstream, configuration)
        self._downloads = Downloads(cache, self._upstream)
        self._turns = FairTurns(PAGES_AT_ONCE, PAGES_OF_ONE)
        self.processes = PageProcesses(cache.read_key())

    @classmethod
    def open(cls, environment: Mapping[str, str], threads: ThreadPoolExecutor) -> Packages:
        """Return a handler for the user's configuration and cache. Blocks. ``threads``: see
        ``Upstream``.

        :raises NotPrivate: see ``PackageCache.open``
        """
        return cls(PackageCache.open(), lambda: Configuration.read(environment), Upstream(threads))

    async def close(self) -> None:
        """Close all connections, and end the processes for pages."""
        await self._upstream.close()
        await self.processes.close()

    async def handle(
        self, request: Request, reply: Reply, kernel: Hashable, names: NameResolver
    ) -> None:
        """Answer one request of ``kernel``, whose names ``names`` resolves. Its path begins with
        PREFIX.

        :raises UpstreamFailed: what was begun cannot be completed
        """
        head = request.head
        try:
            if head.method not in ("GET", "HEAD"):
                raise Failed(405, "the route packages only answers GET and HEAD")
            with names_resolved_by(names.resolve):
                await self._answer(head, reply, kernel)
        except Failed as error:
            await send_text(reply, head, error.status, "text/plain", f"{error.text}\n", error.text)

    async def _answer(self, head: Head, reply: Reply, kernel: Hashable) -> None:
        words = _split_path(head.path)
        match words:
            case ["pypi" | "uv" as tool, "simple", name, ""]:
                as_json = prefers_json(head)
                kind = SIMPLE_JSON if as_json else SIMPLE_HTML if names_html(head) else "text/html"
                async with self._page_turn(kernel):
                    page = await self._write_simple(kernel, tool, name, as_json)
                await send_open(head, reply, os.dup(page.fd), kind)
            case ["pypi" | "uv" as tool, "files", name, token, filename]:
                async with self._page_turn(kernel):
                    found = await self._find_file(kernel, tool, name, token, filename)
                await self._send_file(kernel, head, reply, *found)
            case ["npm", "-", "files", *name, token, filename] if name:
                async with self._page_turn(kernel):
                    found = await self._find_tarball(kernel, "/".join(name), token, filename)
                await self._send_file(kernel, head, reply, *found)
            case ["npm", first, *more] if first != "-" and len(more) <= 1:
                short = NPM_ABBREVIATED.encode() in (head.find(b"accept") or b"")
                async with self._page_turn(kernel):
                    page = await self._write_packument(kernel, "/".join([first, *more]), short)
                kind = NPM_ABBREVIATED if short else "application/json"
                await send_open(head, reply, os.dup(page.fd), kind)
            case _:
                raise Failed(404, "the route packages has no such address")

    @asynccontextmanager
    async def _page_turn(self, kernel: Hashable) -> AsyncIterator[None]:
        """Wait until ``kernel`` may have pages fetched and made.

        :raises Failed: when that is not possible
        """
        try:
            async with self._turns.take(kernel):
                yield
        except JobFailed as error:
            raise Failed(502, f"the page cannot be used: {error}") from error
        except OSError as error:
            raise Failed(507, f"the page cannot be stored: {error.strerror}") from error

    # -- Python ------------------------------------------------------------------------------------

    async def _write_simple(
        self, kernel: Hashable, tool: str, name: str, as_json: bool
    ) -> OpenFile:
        """Return a file with the page of a project."""
        project = normalize_project(name)
        if project is None:
            raise Failed(404, "that is not the name of a project")
        configured = await self._catalog.find_indexes(tool)
        pages: list[tuple[Index, StoredPage]] = []
        failure: Failed | None = None
        for index in configured.indexes:
            try:
                page = await self._catalog.find_page(index, project)
            except Failed as error:
                failure = failure or error
                if not configured.merged:
                    break  # a later index must not stand in for one that is down
                continue
            if page is not None:
                pages.append((index, page))
                if not configured.merged:
                    break
        if not pages:
            raise failure or Failed(404, f"no index has {project}")
        job = {"job": "simple", "project": project, "json": as_json}
        return await self._write_page(kernel, job, pages, failure)

    async def _find_file(
        self, kernel: Hashable, tool: str, name: str, token: str, filename: str
    ) -> tuple[Index, File]:
        project = normalize_project(name)
        configured = await self._catalog.find_indexes(tool)
        job = {"npm": False, "names": [filename, filename.removesuffix(METADATA)], "token": token}
        for index in configured.indexes if project == name else ():
            try:
                page = await self._catalog.find_page(index, name, fresh=False)
            except Failed:
                continue
            file = None if page is None else await self._find_in(kernel, job, index, page)
            if file is not None:
                return index, file if file.filename == filename else _metadata_of(file)
        raise Failed(404, "no page of an index names this file")

    # -- npm ---------------------------------------------------------------------------------------

    async def _write_packument(self, kernel: Hashable, name: str, short: bool) -> OpenFile:
        """Return a file with the document about a package."""
        found = await self._catalog.find_packument(name, short=short)
        if found is None:
            raise Failed(404, f"the registry has no package {name}")
        job = {"job": "packument", "base": f"{self.base}{PREFIX}npm/-/files/{name}/"}
        return await self._write_page(kernel, job, [found])

    async def _find_tarball(
        self, kernel: Hashable, name: str, token: str, filename: str
    ) -> tuple[Index, File]:
        job = {"npm": True, "names": [filename], "token": token}
        for short in (True, False):
            found = await self._catalog.find_packument(name, short=short, fresh=False)
            file = None if found is None else await self._find_in(kernel, job, *found)
            if found is not None and file is not None:
                return found[0], file
        raise Failed(404, "no document of a registry names this file")

    # -- jobs of the process for pages -------------------------------------------------------------

    async def _write_page(
        self,
        kernel: Hashable,
        job: dict[str, Any],
        pages: Sequence[tuple[Index, StoredPage]],
        failure: Failed | None = None,
    ) -> OpenFile:
        """Return a file with what the job makes of ``pages``.

        :raises Failed: ``failure``, or what is wrong with a page, when none could be used
        """
        answer_file = await in_thread(self._cache.new_answer)
        job = {**job, "pages": [_describe(*page) for page in pages]}
        fds = [answer_file.fd, *(page.file.fd for _, page in pages)]
        answer = await self.processes.do(kernel, job, fds)
        if answer.get("written") is not True:
            raise failure or _find_fault(answer, pages)
        return answer_file

    async def _find_in(
        self, kernel: Hashable, job: dict[str, Any], index: Index, page: StoredPage
    ) -> File | None:
        """Return the file that the job looks for, if ``page`` of ``index`` names it."""
        job = {"job": "find", **job, "pages": [_describe(index, page)]}
        answer = await self.processes.do(kernel, job, [page.file.fd])
        found = answer.get("file")
        if found is None:
            return None
        file = check_file(found)
        if file is None or file.filename not in job["names"]:
            raise JobFailed("the process for pages names another file")
        return file

    # -- files -------------------------------------------------------------------------------------

    async def _send_file(
        self, kernel: Hashable, head: Head, reply: Reply, index: Index, file: File
    ) -> None:
        fd = None
        if is_strong(file.hashes):
            fd = await asyncio.to_thread(self._cache.open_file, file.hashes, file.url)
        if fd is not None:
            await send_open(head, reply, fd, BINARY)
            return
        download = self._downloads.start(index, file, kernel)
        begun = False
        try:
            await download.started()
            begun = True  # what fails from now on breaks the answer off
            await send_download(head, reply, download)
        except (Unreachable, NotFound, Forbidden, FileDamaged) as error:
            if begun:
                raise UpstreamFailed(f"{file.filename} broke off: {error}") from error
            # A file without a strong digest may have changed, so the kept one is second best.
            fd = await asyncio.to_thread(self._cache.open_file, file.hashes, file.url)
            if fd is None or not isinstance(error, Unreachable):
                if fd is not None:
                    os.close(fd)
                statuses = {NotFound: 404, NotStored: 507}
                status = statuses.get(type(error), 502)
                raise Failed(status, f"{file.filename} cannot be had: {error}") from error
            await send_open(head, reply, fd, BINARY)
        finally:
            self._downloads.leave(download, kernel)


def _describe(index: Index, page: StoredPage) -> dict[str, Any]:
    """Return what the process for pages has to know of a page."""
    return {
        "index": index.url,
        "url": page.url,
        "type": page.content_type[:MAX_TYPE],
        "size": page.size,
    }


def _find_fault(answer: Mapping[str, Any], pages: Sequence[tuple[Index, StoredPage]]) -> Failed:
    """Return why none of the pages could be used."""
    try:
        number, text = answer["faults"][0]
        host = urlsplit(pages[number][0].url).hostname
    except (LookupError, TypeError, ValueError):
        raise JobFailed("the process for pages does not say why") from None
    return Failed(502, f"what {host} answers cannot be used: {str(text)[:MAX_TEXT]}")


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
