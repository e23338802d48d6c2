"""Downloads files of packages into the cache, once for all sandboxes that ask at a time.

A download does not wait for who asked: it goes to the disk, and each sandbox reads it from there
at its own speed. The last part is not handed out before the digests of the whole are right, so no
sandbox ever has a complete file with a wrong one.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncGenerator, AsyncIterator, Hashable
from contextlib import aclosing, asynccontextmanager, suppress

from gvisor_kernel.config.validators import GIB
from gvisor_kernel.egress.package_cache import (
    HashMismatch,
    Incoming,
    OpenFile,
    PackageCache,
    is_strong,
)
from gvisor_kernel.egress.package_catalog import CHUNK, gather, in_thread
from gvisor_kernel.egress.package_index import Index
from gvisor_kernel.egress.package_pages import File
from gvisor_kernel.egress.package_upstream import IndexClient
from gvisor_kernel.egress.refusals import NotAvailable, UpstreamFailed
from gvisor_kernel.egress.turns import Turns

HELD_BACK = 1024
MAX_FILE = 8 * GIB
FILE_SECONDS = 3600.0
"""How long a file may take."""
MAX_AT_ONCE, MAX_OF_ONE = 8, 4
"""Downloads of all kernels of a process, and of one. The others wait, and kernels take turns."""


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
                async with aclosing(gather(answer.body)) as parts:
                    async for data in parts:
                        await in_thread(incoming.write, data)
                        if incoming.size > MAX_FILE:
                            raise UpstreamFailed(f"it has more than {MAX_FILE} bytes")
                        download.advance(incoming.size)
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
