"""The pages of the configured indexes, from the network or from the cache.

A page is asked for again when the index says that it may have changed. If the index does not
answer, the page in the cache is used, however old it is. What is in a page only another process
reads (``page_reader``): a page may have 64 MiB, and takes seconds and hundreds of MiB to be read.
That process is killed when it takes too long or too much; only the request that it worked for
fails. What it has made is kept, so it is done once for each page that an index sends.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import mmap
import os
import signal
import socket
import sys
import time
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack, aclosing, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import gvisor_kernel
from gvisor_kernel.config.validators import MIB
from gvisor_kernel.egress.package_cache import Incoming, PackageCache, StoredPage, make_name
from gvisor_kernel.egress.package_index import Configuration, Index
from gvisor_kernel.egress.package_pages import (
    ACCEPT_SIMPLE,
    MAX_PAGE,
    MAX_VALUE,
    NPM_ABBREVIATED,
    File,
    find_in_table,
    is_npm_name,
)
from gvisor_kernel.egress.package_upstream import Answer, IndexClient
from gvisor_kernel.egress.page_reader import ERRNO, MAX_FILES, MAX_JOB
from gvisor_kernel.egress.refusals import NotAvailable, Refusal, UpstreamFailed
from gvisor_kernel.egress.turns import Turns

log = logging.getLogger(__name__)

MAX_AGE = 600.0
"""Seconds for which a page is used without asking the index again, if the index allows it."""
CONFIGURATION_SECONDS = 60.0
"""After this time the configuration is read again, as people change it."""
PAGE_SECONDS = 120.0
"""How long a page may take: an index may send a byte now and then."""
CHUNK = 256 * 1024
MAX_TYPE, MAX_TAG = 200, 1000
"""Characters of a content type, and of a mark of a page's version, that are kept."""

PROCESSES = 2
"""Pages that are read at once, by a process each; one of a kernel, so that one kernel's pages leave
a process for the others."""
MAX_REUSED = 4 * MIB
"""Bytes of a page after which a process ends. To start one takes 50 ms of the CPU."""
KEPT = ("PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL")
"""Variables that the process gets. Those with the configuration of indexes are not among them."""
MADE = 2
"""The form of pages that are made. Those of another version of this program are not used."""

NO_INDEX = "pip of this machine is configured to use no index (no-index)"

T = TypeVar("T")
Found = tuple[Index, StoredPage]


@dataclass(frozen=True)
class Bounds:
    """Bounds of a page, and of the process that reads it.

    ``page``: bytes. ``memory``: bytes that the process may have: a document of npm of 63 MiB takes
    300 MiB, and 490 if it has a character beyond the first 65,536; a page of PyPI with 20,000 files
    80, HTML of 30 MiB 215. ``cpu``: seconds of the CPU: a document of npm of 63 MiB takes 5, HTML
    of 30 MiB 10. ``seconds``: how long it may take, on a busy machine as well.
    """

    page: int = MAX_PAGE
    memory: int = 768 * MIB
    cpu: int = 60
    seconds: float = 300.0


BOUNDS = Bounds()


class Catalog:
    """Finds the pages of indexes. Use it in one event loop."""

    def __init__(
        self,
        cache: PackageCache,
        client: IndexClient,
        configuration: Callable[[], Configuration],
        bounds: Bounds,
    ) -> None:
        self._cache = cache
        self._client = client
        self._read_configuration = configuration
        self._bounds = bounds
        self._configured: tuple[float, Configuration] | None = None
        self._turns = Turns(PROCESSES, 1)
        self._idle: list[_Reader] = []

    async def configuration(self) -> Configuration:
        """Return the configuration; it is read again after a minute, as people change it."""
        now = time.monotonic()
        if self._configured is None or now - self._configured[0] > CONFIGURATION_SECONDS:
            self._configured = (now, await asyncio.to_thread(self._read_configuration))
        return self._configured[1]

    # -- pages for sandboxes -----------------------------------------------------------------------

    async def make_simple(self, kernel: Hashable, tool: str, project: str) -> StoredPage:
        """Return the page of a Python project, made of those of the indexes of ``tool``.

        :raises Refusal: when there is none
        """
        configured = (await self.configuration()).find_indexes(tool)
        if not configured.indexes:
            raise NotAvailable(404, NO_INDEX)
        found: list[Found] = []
        failure: Refusal | None = None
        for index in configured.indexes:
            try:
                page = await self._find_page(index, f"{index.url}{project}/", ACCEPT_SIMPLE)
            except Refusal as error:
                failure = failure or error
                if not configured.merged:
                    break  # a later index must not stand in for one that is down
                continue
            if page is not None:
                found.append((index, page))
                if not configured.merged:
                    break
        if not found:
            raise failure or NotAvailable(404, f"no index has {project}")
        return await self._make(kernel, "simple", project, "../../files/", found)

    async def make_packument(
        self, kernel: Hashable, name: str, base: str, *, short: bool
    ) -> StoredPage:
        """Return the document about an npm package. ``base``: where its files are.

        :raises Refusal: when there is none
        """
        if not is_npm_name(name):
            raise NotAvailable(404, "that is not the name of an npm package")
        index = (await self.configuration()).npm.find(name)
        accept = f"{NPM_ABBREVIATED}; q=1.0, application/json; q=0.8"
        url = f"{index.url}{quote(name, safe='@')}"
        page = await self._find_page(index, url, accept if short else "application/json")
        if page is None:
            raise NotAvailable(404, f"the registry has no package {name}")
        return await self._make(kernel, "npm", name, base, [(index, page)])

    async def find_file(self, tool: str, made: str, number: int) -> tuple[Index, File] | None:
        """Return the file with a number on the page ``made``, and its index."""
        found = await in_thread(self._find_in_table, made, number)
        indexes = (await self.configuration()).list_indexes(tool)
        index = next((each for each in indexes if found and each.url == found.index), None)
        return None if found is None or index is None else (index, found)

    def _find_in_table(self, made: str, number: int) -> File | None:
        page = self._cache.open_page(made, touch=True)
        if page is None or "parts" not in page.fields:
            return None
        begin = page.size - page.fields["parts"]["files"]
        with mmap.mmap(page.file.fd, page.size, prot=mmap.PROT_READ) as mapped:
            return find_in_table(mapped, begin, number)

    # -- pages of indexes --------------------------------------------------------------------------

    async def _find_page(self, index: Index, url: str, accept: str) -> StoredPage | None:
        """Return a page; None if the index does not have it.

        :raises Refusal: when there is none, and the index does not answer
        :raises OSError: when it cannot be stored
        """
        who = make_name(index.authorization or "")  # other credentials may see other pages
        name = make_name([url, accept, who])
        stored = await asyncio.to_thread(self._cache.open_page, name)
        if stored is not None and 0 <= time.time() - stored.checked < stored.fields["max_age"]:
            return stored
        try:
            async with asyncio.timeout(PAGE_SECONDS):
                return await self._fetch_page(index, url, accept, name, stored)
        except (UpstreamFailed, TimeoutError) as error:
            host = urlsplit(url).hostname
            fact = "was too slow" if isinstance(error, TimeoutError) else f"failed: {error.fact}"
            if stored is not None:
                log.info("%s %s; its page of %s is used.", host, fact, time.ctime(stored.checked))
                return stored
            raise UpstreamFailed(
                f"{host} {fact}, and what was asked for is not in this machine's cache"
            ) from error

    async def _fetch_page(
        self, index: Index, url: str, accept: str, name: str, stored: StoredPage | None
    ) -> StoredPage | None:
        headers = {"Accept": accept, "Accept-Encoding": "gzip"}
        if stored is not None and stored.fields["etag"]:
            headers["If-None-Match"] = stored.fields["etag"]
        elif stored is not None and stored.fields["modified"]:
            headers["If-Modified-Since"] = stored.fields["modified"]
        async with self._client.get(index, url, headers) as answer:
            if answer.status in (404, 410):
                return None
            if answer.status in (401, 403):
                fact = f"refuses this machine's credentials (status {answer.status})"
                raise NotAvailable(403, f"{urlsplit(url).hostname} {fact}")
            if answer.status == 304 and stored is not None:
                return await in_thread(lambda: self._cache.open_page(name, touch=True)) or stored
            if answer.status != 200 or len(answer.url) > MAX_VALUE:
                raise UpstreamFailed(f"it answers with status {answer.status}")
            with closing(await in_thread(self._cache.begin)) as page:
                await store(answer.body, page, self._bounds.page)
                return await in_thread(page.keep_page, name, _describe(answer, page))

    # -- the process that reads pages --------------------------------------------------------------

    async def _make(
        self,
        kernel: Hashable,
        kind: str,
        name: str,
        base: str,
        found: Sequence[Found],
    ) -> StoredPage:
        """Return the page that is made of ``found``.

        :raises Refusal: when none of them can be used
        :raises OSError: when it cannot be stored
        """
        pages = [
            {"index": index.url, **{key: page.fields[key] for key in _OF_PAGE}}
            for index, page in found
        ]
        made = make_name([MADE, kind, name, base, pages])
        kept = await asyncio.to_thread(lambda: self._cache.open_page(made, touch=True))
        if kept is not None:
            return kept
        job = {"kind": kind, "name": name, "base": f"{base}{made}/", "pages": pages}
        with closing(await in_thread(self._cache.begin)) as incoming:
            async with self._turns.take(kernel):
                await self._run(job, [incoming.fd, *(page.file.fd for _, page in found)])
            return await in_thread(incoming.keep_page, made)

    async def _find_reader(self) -> _Reader:
        while self._idle:
            reader = self._idle.pop()
            if not reader.is_ended:
                return reader
            await reader.end()
        try:
            return await _Reader.start()
        except OSError as error:
            raise _unusable(f"no process can be started: {error.strerror}") from error

    async def close(self) -> None:
        """End the processes that wait for a page."""
        while self._idle:
            await self._idle.pop().end()

    async def _run(self, job: Mapping[str, Any], fds: Sequence[int]) -> None:
        """Let a process do a job.

        :raises Refusal: it failed
        :raises OSError: the page could not be written
        """
        bounds = self._bounds
        limits = {"memory": bounds.memory, "cpu": bounds.cpu, "most": bounds.page}
        message = json.dumps({**job, **limits}).encode()
        if len(message) > MAX_JOB or len(fds) > MAX_FILES:
            raise _unusable(f"the addresses of its pages have {len(message)} bytes")
        reader = await self._find_reader()
        status = None
        try:
            async with asyncio.timeout(bounds.seconds):
                status = await reader.do(message, fds)
        except TimeoutError:
            raise _unusable(f"reading it takes longer than {bounds.seconds:g} s") from None
        finally:
            # After a large page it would keep the memory that this has taken.
            size = sum(page["size"] for page in job["pages"])
            if status is None or reader.is_ended or size > MAX_REUSED:
                await reader.end()
            else:
                self._idle.append(reader)
        if status == ERRNO:
            raise UpstreamFailed(os.pread(fds[0], MAX_TAG, 0).decode(errors="replace"))
        if status == -signal.SIGXCPU:
            raise _unusable(f"reading it takes more than {bounds.cpu} s of the CPU")
        if status == ERRNO + errno.ENOMEM:
            raise _unusable(f"reading it takes more than {bounds.memory // MIB} MiB of memory")
        if status > ERRNO:
            raise OSError(status - ERRNO, os.strerror(status - ERRNO))
        if status:
            raise _unusable(f"the process for pages ended with status {status}")


class _Reader:
    """A process that reads pages. It ends with this one."""

    def __init__(self, process: asyncio.subprocess.Process, sock: socket.socket) -> None:
        self._process = process
        self._sock = sock

    @classmethod
    async def start(cls) -> _Reader:
        """Start one.

        :raises OSError: it cannot be started
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        argv = [sys.executable, "-S", "-P", "-m", "gvisor_kernel.egress.page_reader"]
        with theirs, ExitStack() as stack:
            stack.callback(ours.close)
            process = await asyncio.create_subprocess_exec(
                *(*argv, str(theirs.fileno()), str(os.getpid())),
                stdin=DEVNULL,
                stdout=DEVNULL,
                env=_make_environment(),
                cwd="/",
                pass_fds=[theirs.fileno()],
            )
            stack.pop_all()
        return cls(process, ours)

    @property
    def is_ended(self) -> bool:
        """Return whether it can do no job any more."""
        return self._process.returncode is not None

    async def do(self, message: bytes, fds: Sequence[int]) -> int:
        """Return the answer to a job, or how the process has ended."""
        answer = b""
        with suppress(BrokenPipeError, ConnectionResetError):
            socket.send_fds(self._sock, [message], fds)
            answer = await asyncio.get_running_loop().sock_recv(self._sock, 1)
        # no timeout: the process has ended
        return answer[0] if answer else await self._process.wait()

    async def end(self) -> None:
        """End it, and wait until it has."""
        self._sock.close()
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()  # no timeout: the process has ended


_OF_PAGE = ("url", "type", "encoding", "size", "digest")


def _describe(answer: Answer, page: Incoming) -> dict[str, Any]:
    """Return what is kept with a page."""
    etag, modified = (answer.headers.get(name, "") for name in ("etag", "last-modified"))
    return {
        "url": answer.url,
        "type": answer.headers.get("content-type", "")[:MAX_TYPE],
        "encoding": answer.headers.get("content-encoding", "").lower()[:MAX_TYPE],
        "size": page.size,
        "etag": etag if len(etag) <= MAX_TAG else "",
        "modified": modified if len(modified) <= MAX_TAG else "",
        "max_age": _max_age(answer.headers),
    }


def _unusable(fact: str) -> UpstreamFailed:
    return UpstreamFailed(f"the page cannot be used: {fact}")


def _make_environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    # Nothing else is imported but the standard library.
    return {**kept, "PYTHONPATH": str(Path(gvisor_kernel.__file__).parent.parent)}


def _max_age(headers: Mapping[str, str]) -> float:
    for word in headers.get("cache-control", "").lower().split(","):
        name, _, value = word.strip().partition("=")
        if name in ("no-cache", "no-store"):
            return 0.0
        if name == "max-age" and value.isascii() and value.isdigit() and len(value) < 10:
            return min(float(value), MAX_AGE)
    return 0.0


async def in_thread(function: Callable[..., T], *arguments: object) -> T:
    """Run a function that blocks. When this is cancelled, the function still ends before it.

    Otherwise a descriptor could be closed, and become another file's, under it.
    """
    future = asyncio.get_running_loop().run_in_executor(None, function, *arguments)
    try:
        return await asyncio.shield(future)  # no timeout: a read or write of one file
    except asyncio.CancelledError:
        await asyncio.wait([future])  # no timeout: a read or write of one file
        raise


async def store(
    body: AsyncIterator[bytes],
    incoming: Incoming,
    most: int,
    note_size: Callable[[int], None] = lambda size: None,
) -> None:
    """Write a body into the cache. ``note_size`` is told how much of it is there.

    :raises UpstreamFailed: it has more than ``most`` bytes
    :raises OSError: the disk is full
    """
    async with aclosing(_gather(body)) as parts:
        async for data in parts:
            await in_thread(incoming.write, data)
            if incoming.size > most:
                raise UpstreamFailed(f"it has more than {most} bytes")
            note_size(incoming.size)


async def _gather(body: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Return the data in parts of about CHUNK, as each is written by another thread."""
    parts: list[bytes] = []
    size = 0
    async for data in body:
        parts.append(data)
        size += len(data)
        if size >= CHUNK:
            yield b"".join(parts)
            parts, size = [], 0
    if parts:
        yield b"".join(parts)
