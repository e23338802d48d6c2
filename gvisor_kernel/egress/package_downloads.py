"""Downloads files of packages into the cache, once for all sandboxes that ask at a time.

A download does not wait for who asked: it goes to the disk, and each sandbox reads it from there
at its own speed. The last part is not handed out before the digests of the whole are right, so no
sandbox ever has a complete file with a wrong one.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Hashable
from contextlib import aclosing, suppress
from typing import TypeVar

from gvisor_kernel.config.validators import GIB
from gvisor_kernel.egress.fair_turns import FairTurns
from gvisor_kernel.egress.package_cache import HashMismatch, Incoming, PackageCache
from gvisor_kernel.egress.package_connections import Unreachable
from gvisor_kernel.egress.package_index import Index
from gvisor_kernel.egress.package_pages import File
from gvisor_kernel.egress.package_upstream import Upstream

CHUNK = 256 * 1024
HELD_BACK = 1024
MAX_FILE = 8 * GIB
FILE_SECONDS = 3600.0
"""How long a file may take, a wait for other downloads included."""
MAX_AT_ONCE, MAX_OF_ONE = 8, 4
"""Downloads of all kernels of a process, and of one. The others wait, and kernels take turns."""

T = TypeVar("T")


class NotFound(Exception):
    """The index names a file that its host does not have."""


class FileDamaged(Exception):
    """What came is not the file that the index describes."""


class NotStored(Unreachable):
    """The disk of the cache does not take the file."""


class Download:
    """One file on its way. ``length`` is its size, if known, once ``started`` was awaited.

    ``readers`` has the requests of each kernel. While it waits for a turn, ``tasks`` has one for
    each of these kernels; then only that whose turn came first.
    """

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.length: int | None = None
        self.error: Exception | None = None
        self.readers: Counter[Hashable] = Counter()
        self.tasks: dict[Hashable, asyncio.Task[None]] = {}
        self.has_turn = False
        self._incoming: Incoming | None = None
        self._available = 0
        self._begun = False
        self._ended = False
        self._progress = asyncio.Event()

    def begin(self, incoming: Incoming, length: int | None) -> None:
        """Say that data come."""
        self._incoming = incoming
        self.length = length
        self._begun = True
        self._wake()

    def advance(self) -> None:
        """Say that there are more data."""
        assert self._incoming is not None
        self._available = max(0, self._incoming.size - HELD_BACK)
        self._wake()

    def finish(self, error: Exception | None = None) -> None:
        """Say that all data are there and right, or why not."""
        self.error = error
        if error is None and self._incoming is not None:
            self._available = self._incoming.size
        self._ended = True
        self._wake()

    def close(self) -> None:
        """Release the file. Called when nobody reads any more."""
        if self._incoming is not None:
            self._incoming.close()
            self._incoming = None

    async def started(self) -> None:
        """Wait until it has begun.

        :raises Exception: why it did not: see ``Downloads.start``
        """
        while not self._begun and not self._ended:
            await self._progress_made()
        if self.error is not None:
            raise self.error

    async def read(self) -> AsyncGenerator[bytes, None]:
        """Return the data as they come. The iteration raises what ``Downloads.start`` lists."""
        at = 0
        while True:
            while at < self._available:
                assert self._incoming is not None
                size = min(CHUNK, self._available - at)
                data = await in_thread(os.pread, self._incoming.fd, size, at)
                at += len(data)
                yield data
            if self._ended:
                if self.error is not None:
                    raise self.error
                if at >= self._available:
                    return
                continue
            await self._progress_made()

    @property
    def is_ended(self) -> bool:
        """Whether ``finish`` was called."""
        return self._ended

    async def _progress_made(self) -> None:
        await self._progress.wait()

    def _wake(self) -> None:
        progress, self._progress = self._progress, asyncio.Event()
        progress.set()


class Downloads:
    """The downloads of one process."""

    def __init__(self, cache: PackageCache, upstream: Upstream) -> None:
        self._cache = cache
        self._upstream = upstream
        self._running: dict[tuple[str, str], Download] = {}
        self._turns = FairTurns(MAX_AT_ONCE, MAX_OF_ONE)

    def start(self, index: Index, file: File, kernel: Hashable) -> Download:
        """Return the download of ``file`` for ``kernel``; join one that runs. Call ``leave`` at the
        end.

        It fails with Unreachable, Forbidden, NotFound or FileDamaged.
        """
        key = (index.url, file.url)
        download = self._running.get(key)
        if download is None:
            deadline = asyncio.get_running_loop().time() + FILE_SECONDS
            download = self._running[key] = Download(deadline)
        download.readers[kernel] += 1
        if not download.has_turn and kernel not in download.tasks:
            running = self._run(key, download, index, file, kernel)
            download.tasks[kernel] = asyncio.create_task(running)
        return download

    def leave(self, download: Download, kernel: Hashable) -> None:
        """Say that one request of ``kernel`` does not need it any more; without any, it is broken
        off.
        """
        download.readers[kernel] -= 1
        if not download.readers[kernel]:
            del download.readers[kernel]
            if not download.has_turn and kernel in download.tasks:
                download.tasks.pop(kernel).cancel()
        if not download.readers:
            if download.is_ended:
                download.close()
            self._running = {k: d for k, d in self._running.items() if d is not download}
            for task in download.tasks.values():
                task.cancel()

    async def _run(
        self,
        key: tuple[str, str],
        download: Download,
        index: Index,
        file: File,
        kernel: Hashable,
    ) -> None:
        """Download when it is the turn of ``kernel``, unless that of another one came first."""
        error: Exception | None = None
        try:
            async with asyncio.timeout_at(download.deadline), self._turns.take(kernel):
                _give_turn(download, kernel)
                await self._fetch(download, index, file)
        except asyncio.CancelledError:
            error = Unreachable("nobody waits for it any more")
        except TimeoutError:
            error = Unreachable(f"it takes longer than {FILE_SECONDS:g} s")
        except OSError as failed:
            error = NotStored(f"the cache cannot be written: {failed.strerror}")
        except Exception as failed:
            error = failed
        if download.tasks.get(kernel) is not asyncio.current_task():
            return  # the turn of another kernel came first, or this one has left
        del download.tasks[kernel]
        download.finish(error)
        if self._running.get(key) is download:
            del self._running[key]
        if not download.readers:
            download.close()

    async def _fetch(self, download: Download, index: Index, file: File) -> None:
        headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
        async with self._upstream.get(index, file.url, headers) as answer:
            if answer.status in (404, 410):
                raise NotFound("the host of the index does not have it")
            if answer.status != 200:
                raise Unreachable(f"its host answers with status {answer.status}")
            stated = answer.headers.get("content-length", "")
            length = int(stated) if stated.isascii() and stated.isdigit() else None
            if length is not None and length > MAX_FILE:
                raise FileDamaged(f"it has more than {MAX_FILE} bytes")
            incoming = self._cache.new_file(file.hashes)
            # Once data were passed on, a sandbox could only be told that the answer broke off.
            if length is not None and not has_room(incoming.fd, length):
                incoming.close()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            download.begin(incoming, length)
            async with aclosing(gather(answer.body)) as parts:
                async for data in parts:
                    await in_thread(incoming.write, data)
                    if incoming.size > MAX_FILE:
                        raise FileDamaged(f"it has more than {MAX_FILE} bytes")
                    download.advance()
        if length is not None and incoming.size != length:
            raise Unreachable("its host broke off")
        try:
            await in_thread(self._keep, incoming, file)
        except HashMismatch as error:
            raise FileDamaged(str(error)) from error

    @staticmethod
    def _keep(incoming: Incoming, file: File) -> None:
        incoming.check()
        with suppress(OSError):  # then it is only not kept
            incoming.keep(file.url)


def _give_turn(download: Download, kernel: Hashable) -> None:
    """Let the task of ``kernel`` download, and no other."""
    download.has_turn = True
    others = [other for other in download.tasks if other != kernel]
    for other in others:
        download.tasks.pop(other).cancel()


def has_room(fd: int, size: int) -> bool:
    """Whether the disk of an open file has room for ``size`` bytes more."""
    disk = os.fstatvfs(fd)
    return size <= disk.f_bavail * disk.f_frsize


async def in_thread(function: Callable[..., T], *arguments: object) -> T:
    """Run a function that blocks. When this is cancelled, the function still ends before it.

    Otherwise a descriptor could be closed, and become another file's, under it.
    """
    future = asyncio.get_running_loop().run_in_executor(None, function, *arguments)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise


async def gather(body: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
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
