"""What the configured indexes say: their pages, from the network or from the cache.

A page is asked for again when the index says that it may have changed. If the index does not
answer, the page in the cache is used, however old it is. A page is a file here; what is in it, only
``page_writer`` knows.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from gvisor_kernel.egress.package_cache import PackageCache, StoredPage
from gvisor_kernel.egress.package_connections import Forbidden, Unreachable
from gvisor_kernel.egress.package_downloads import CHUNK, gather, in_thread
from gvisor_kernel.egress.package_index import (
    Index,
    Indexes,
    Registries,
    read_npm,
    read_pip,
    read_uv,
)
from gvisor_kernel.egress.package_pages import ACCEPT_SIMPLE, MAX_PAGE, NPM_ABBREVIATED, is_npm_name
from gvisor_kernel.egress.package_upstream import Answer, Upstream

Write = Callable[[bytes], None]
"""Appends to the file; called in a thread. It may raise OSError."""


async def save_body(answer: Answer, write: Write, most: int) -> None:
    """Write the whole body.

    :raises Unreachable: when it is larger than ``most`` bytes, or not what its header says
    :raises OSError: when it cannot be written
    """
    host = urlsplit(answer.url).hostname
    body = _Body(write, most, answer.headers.get("content-encoding", "").lower() == "gzip")
    try:
        async with aclosing(gather(answer.body)) as parts:
            async for data in parts:
                await in_thread(body.add, data)
        await in_thread(body.end)
    except _TooLarge as error:
        raise Unreachable(f"{host} sends more than {most} bytes") from error
    except zlib.error as error:
        raise Unreachable(f"{host} sends damaged data") from error
    except EOFError as error:
        raise Unreachable(f"{host} broke off") from error


class _TooLarge(Exception):
    """A body is larger than it may be."""


class _Body:
    """``add`` and ``end`` block: a small part may decompress to all that is allowed."""

    def __init__(self, write: Write, most: int, gzip: bool) -> None:
        self._write = write
        self._most = most
        self._unpack = zlib.decompressobj(31) if gzip else None
        self._received = self._written = 0

    def add(self, data: bytes) -> None:
        """Write a part of the body."""
        self._received += len(data)
        if self._received > self._most:
            raise _TooLarge
        if self._unpack is None:
            self._put(data)
            return
        while data and not self._unpack.eof:
            self._put(self._unpack.decompress(data, CHUNK))
            data = self._unpack.unconsumed_tail

    def end(self) -> None:
        """Write what is left.

        :raises EOFError: when it is not complete
        """
        if self._unpack is None:
            return
        while part := self._unpack.decompress(b"", CHUNK):
            self._put(part)
        if not self._unpack.eof:
            raise EOFError

    def _put(self, data: bytes) -> None:
        self._written += len(data)
        if self._written > self._most:
            raise _TooLarge
        self._write(data)


log = logging.getLogger(__name__)

MAX_AGE = 600.0
"""Seconds for which a page is used without asking the index again, if the index allows it."""
CONFIGURATION_SECONDS = 60.0
"""After this time the configuration is read again, as people change it."""
PAGE_SECONDS = 120.0
"""How long a page may take: an index may send a byte now and then."""

_FIELDS = ("url", "content_type", "etag", "modified")


NO_INDEX = "pip of this machine is configured to use no index (no-index)"


class Failed(Exception):
    """A request that is answered with ``status`` and a text."""

    def __init__(self, status: int, text: str) -> None:
        self.status = status
        self.text = text
        super().__init__(text)


@dataclass(frozen=True)
class Configuration:
    """The indexes of each tool."""

    pip: Indexes
    uv: Indexes
    npm: Registries

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Configuration:
        """Read the configuration of this user's tools. Blocks."""
        pip = read_pip(environment)
        return cls(pip, read_uv(environment, pip), read_npm(environment))


@dataclass
class _Fetch:
    """A page that is fetched, and the number of requests that wait for it."""

    task: asyncio.Task[StoredPage | None]
    waiting: int = 0


class Catalog:
    """Finds the pages of indexes. Use it in one event loop."""

    def __init__(
        self, cache: PackageCache, upstream: Upstream, configuration: Callable[[], Configuration]
    ) -> None:
        self._cache = cache
        self._upstream = upstream
        self._read_configuration = configuration
        self._configured: tuple[float, Configuration] | None = None
        self._fetching: dict[str, _Fetch] = {}

    async def _find_configuration(self) -> Configuration:
        """Return the configuration; it is read again after a minute, as people change it."""
        now = time.monotonic()
        if self._configured is None or now - self._configured[0] > CONFIGURATION_SECONDS:
            self._configured = (now, await asyncio.to_thread(self._read_configuration))
        return self._configured[1]

    async def find_indexes(self, tool: str) -> Indexes:
        configuration = await self._find_configuration()
        found = configuration.pip if tool == "pypi" else configuration.uv
        if not found.indexes:
            raise Failed(404, NO_INDEX)
        return found

    async def find_page(
        self, index: Index, project: str, *, fresh: bool = True
    ) -> StoredPage | None:
        """Return the page of a Python project; None if the index does not have it.

        ``fresh``: ask the index whether a kept page still holds.

        :raises Failed: when there is none, and the index does not answer
        :raises OSError: when it cannot be stored
        """
        url = f"{index.url}{project}/"
        return await self._find_stored(index, url, ACCEPT_SIMPLE, fresh=fresh)

    async def find_packument(
        self, name: str, *, short: bool, fresh: bool = True
    ) -> tuple[Index, StoredPage] | None:
        """Return the document about an npm package, and its registry; else as ``find_page``."""
        if not is_npm_name(name):
            raise Failed(404, "that is not the name of an npm package")
        index = (await self._find_configuration()).npm.find(name)
        url = f"{index.url}{quote(name, safe='@')}"
        accept = (
            f"{NPM_ABBREVIATED}; q=1.0, application/json; q=0.8" if short else "application/json"
        )
        stored = await self._find_stored(index, url, accept, fresh=fresh)
        return None if stored is None else (index, stored)

    async def _find_stored(
        self, index: Index, url: str, accept: str, *, fresh: bool
    ) -> StoredPage | None:
        """Return a page, asked for once at a time: see ``find_page``."""
        who = hashlib.sha256((index.authorization or "").encode()).hexdigest()
        key = json.dumps([url, accept, who])  # other credentials may see other pages
        stored = await asyncio.to_thread(self._cache.open_page, key)
        now = time.time()
        if stored is not None and (not fresh or 0 <= now - stored.fetched < stored.max_age):
            return stored
        fetch = self._fetching.get(key)
        if fetch is None:
            task = asyncio.create_task(self._fetch_page(index, url, accept, key, stored))
            fetch = self._fetching[key] = _Fetch(task)
        fetch.waiting += 1
        try:
            return await asyncio.shield(fetch.task)
        except (Unreachable, TimeoutError) as error:
            if isinstance(error, TimeoutError):
                error = Unreachable(f"{urlsplit(url).hostname} was too slow")
            if stored is not None:
                log.info("%s; its page of %s is used.", error, time.ctime(stored.fetched))
                return stored
            raise Failed(
                502, f"{error}, and what was asked for is not in this machine's cache"
            ) from error
        except Forbidden as error:
            raise Failed(502, f"the index cannot be used: {error}") from error
        finally:
            await self._leave(key, fetch)

    async def _leave(self, key: str, fetch: _Fetch) -> None:
        """End a fetch for which nobody waits any more, and wait for its end.

        Its place among those at once is only then free.
        """
        fetch.waiting -= 1
        if fetch.waiting:
            return
        if self._fetching.get(key) is fetch:
            del self._fetching[key]  # who asks now does not join what ends
        fetch.task.cancel()
        await asyncio.wait([fetch.task])
        if not fetch.task.cancelled():
            fetch.task.exception()  # it is no error that nobody has seen it

    async def _fetch_page(
        self, index: Index, url: str, accept: str, key: str, stored: StoredPage | None
    ) -> StoredPage | None:
        headers = {"Accept": accept, "Accept-Encoding": "gzip"}
        if stored is not None and stored.etag:
            headers["If-None-Match"] = stored.etag
        elif stored is not None and stored.modified:
            headers["If-Modified-Since"] = stored.modified
        async with (
            asyncio.timeout(PAGE_SECONDS),
            self._upstream.get(index, url, headers) as answer,
        ):
            if answer.status in (404, 410):
                return None
            host = urlsplit(url).hostname
            if answer.status in (401, 403):
                raise Failed(
                    403, f"{host} refuses this machine's credentials (status {answer.status})"
                )
            if answer.status not in (200, 304) or (answer.status == 304 and stored is None):
                raise Unreachable(f"{host} answers with status {answer.status}")
            page = await in_thread(self._cache.new_page)
            try:
                if answer.status == 304 and stored is not None:
                    await in_thread(page.copy, stored)
                    fields = {name: getattr(stored, name) for name in _FIELDS}
                else:
                    await save_body(answer, page.write, MAX_PAGE)
                    fields = {
                        "url": answer.url,
                        "content_type": answer.headers.get("content-type", ""),
                        "etag": answer.headers.get("etag"),
                        "modified": answer.headers.get("last-modified"),
                    }
                fields |= {"fetched": time.time(), "max_age": _max_age(answer.headers)}
                return await in_thread(lambda: page.keep(key, **fields))
            finally:
                page.close()


def _max_age(headers: Mapping[str, str]) -> float:
    for word in headers.get("cache-control", "").lower().split(","):
        name, _, value = word.strip().partition("=")
        if name in ("no-cache", "no-store"):
            return 0.0
        if name == "max-age" and value.isascii() and value.isdigit() and len(value) < 10:
            return min(float(value), MAX_AGE)
    return 0.0
