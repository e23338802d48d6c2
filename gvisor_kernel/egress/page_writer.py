"""The process that reads the pages of package indexes, and writes those for sandboxes.

Run as ``python -m gvisor_kernel.egress.page_writer FD PARENT`` by ``page_process``. On the socket
FD (packets) it gets one job at a time, as JSON with open files, and answers each with JSON. It gets
no credential of an index and opens nothing itself. It has a limit on its memory, and ends when that
is not enough. Standard library only, and few modules of it: the process starts in a moment.

The first message has the ``key`` and the limits: ``memory`` in bytes, and for each job ``cpu`` in
seconds. Then a job is one of

- ``simple``: files[0] becomes the page of ``project`` made of the ``pages``, whose files follow
- ``packument``: files[0] becomes the document about an npm package, made of the one page
- ``find``: the answer has the file that ``token`` names in the one page
"""

from __future__ import annotations

import hashlib
import hmac
import json
import mmap
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any
from urllib.parse import quote

from gvisor_kernel.egress.own_process import (
    describe_error,
    end_with_parent,
    limit_memory,
    limit_time,
    protect,
)
from gvisor_kernel.egress.package_pages import (
    File,
    Page,
    PageError,
    merge_pages,
    read_packument,
    read_simple,
    write_html,
    write_json,
    write_packument,
)
from gvisor_kernel.strict_json import parse_json

MAX_MESSAGE = 128 * 1024
"""Bytes of a job or its answer, below the least size of a socket's buffer."""
OUT_OF_MEMORY = 112
"""Exit status of a process that needed more memory than it may have."""
MAX_FILES = 64
"""Files that come with a job."""
MAX_ANSWER = 256 * 1024 * 1024
"""Bytes of a page that is written."""
MAX_PARSED = 16
MAX_PARSED_BYTES = 4 * 1024 * 1024
"""Parsed pages that are kept, and the bytes that they had: a parsed page takes a few times as much.
A client asks for the page and then for files of it. A larger page is parsed each time."""
NICE = 5
"""The requests of other kernels go before a page."""

Read = Callable[[memoryview | bytes], Any]


class PageWriter:
    """Does jobs, one after another."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._parsed: dict[tuple[str, ...], tuple[int, Any]] = {}
        """What was parsed last, the oldest first, and of how many bytes. Nothing changes it."""

    def do(self, job: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """Return the answer to a job."""
        match job["job"]:
            case "simple":
                return self._write_simple(job, fds[0], fds[1:])
            case "packument":
                return self._write_packument(job, fds[0], fds[1])
            case "find":
                return self._find(job, fds[0])
        raise ValueError("no such job")

    def _write_simple(self, job: dict[str, Any], to: int, fds: list[int]) -> dict[str, Any]:
        pages: list[Page] = []
        tokens: dict[str, str] = {}
        faults: list[tuple[int, str]] = []
        for number, (entry, fd) in enumerate(zip(job["pages"], fds, strict=True)):
            try:
                page = self._read_simple(entry, fd)
            except PageError as error:
                faults.append((number, str(error)))
                continue
            pages.append(page)
            for file in page.files:
                tokens.setdefault(file.filename, self._make_token(entry["index"], file))
        if pages:
            project = job["project"]

            def address(file: File) -> str:
                return f"../../files/{project}/{tokens[file.filename]}/{quote(file.filename)}"

            write = write_json if job["json"] else write_html
            _write(to, write(project, merge_pages(pages), address))
        return {"written": bool(pages), "faults": faults}

    def _write_packument(self, job: dict[str, Any], to: int, fd: int) -> dict[str, Any]:
        (entry,) = job["pages"]
        try:
            content, files = self._read_packument(entry, fd)
        except PageError as error:
            return {"written": False, "faults": [(0, str(error))]}

        def address(file: File) -> str:
            token = self._make_token(entry["index"], file)
            return f"{job['base']}{token}/{quote(file.filename)}"

        _write(to, write_packument(content, files, address))
        return {"written": True, "faults": []}

    def _find(self, job: dict[str, Any], fd: int) -> dict[str, Any]:
        (entry,) = job["pages"]
        try:
            if job["npm"]:
                files: Iterable[File] = self._read_packument(entry, fd)[1].values()
            else:
                files = self._read_simple(entry, fd).files
        except PageError as error:
            return {"file": None, "faults": [(0, str(error))]}
        wanted = job["names"]
        for file in files:
            if file.filename in wanted and self._has_token(entry["index"], file, job["token"]):
                fields = {name: getattr(file, name) for name in ("filename", "url", "hashes")}
                return {"file": {**fields, "metadata": file.metadata}, "faults": []}
        return {"file": None, "faults": []}

    def _make_token(self, index: str, file: File) -> str:
        text = f"{index}\0{file.filename}\0{file.url}"
        return hmac.new(self._key, text.encode(), "sha256").hexdigest()[:40]

    def _has_token(self, index: str, file: File, token: str) -> bool:
        return hmac.compare_digest(self._make_token(index, file).encode(), token.encode())

    # -- reading -----------------------------------------------------------------------------------

    def _read_simple(self, entry: dict[str, Any], fd: int) -> Page:
        kind, url = entry["type"], entry["url"]
        page: Page = self._read(
            ("simple", kind, url), lambda data: read_simple(data, kind, url), entry["size"], fd
        )
        return page

    def _read_packument(
        self, entry: dict[str, Any], fd: int
    ) -> tuple[dict[str, Any], dict[str, File]]:
        url = entry["url"]
        content, files = self._read(
            ("npm", url), lambda data: read_packument(data, url), entry["size"], fd
        )
        return content, files

    def _read(self, key: tuple[str, ...], read: Read, size: int, fd: int) -> Any:
        """Return what ``read`` makes of a page. It depends on nothing but the page and ``key``."""
        if size > MAX_PARSED_BYTES:
            # Mapped, a page does not count to the memory of this process.
            with mmap.mmap(fd, size, prot=mmap.PROT_READ) as mapped, memoryview(mapped) as view:
                return read(view)
        data = os.pread(fd, size, 0)
        if len(data) != size:
            raise PageError("the cache has lost a part of it")
        key = (*key, hashlib.sha256(data).hexdigest())
        known = self._parsed.pop(key, None) or (size, read(data))
        self._parsed[key] = known
        kept = sum(size for size, _ in self._parsed.values())
        while kept > MAX_PARSED_BYTES or len(self._parsed) > MAX_PARSED:
            kept -= self._parsed.pop(next(iter(self._parsed)))[0]
        return known[1]


def _write(fd: int, parts: Iterable[str]) -> None:
    with os.fdopen(fd, "w", encoding="utf-8", errors="replace", newline="", closefd=False) as file:
        file.writelines(parts)


def serve(sock: socket.socket) -> None:
    """Do jobs until the socket ends."""
    start = parse_json(sock.recv(MAX_MESSAGE), MAX_MESSAGE)
    limit_memory(start["memory"])
    writer = PageWriter(bytes.fromhex(start["key"]))
    while True:
        content, fds, _, _ = socket.recv_fds(sock, MAX_MESSAGE, MAX_FILES)
        with ExitStack() as stack:
            for fd in fds:
                stack.callback(os.close, fd)
            if not content:
                return
            limit_time(start["cpu"])
            try:
                answer = writer.do(parse_json(content, MAX_MESSAGE), fds)
            except OSError as error:
                answer = {"failed": error.errno}
            sock.send(json.dumps(answer).encode())


def _report(error: BaseException) -> None:
    text = f"reading a page failed: {describe_error(error)}"
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - it goes to the kernels' logs


def main() -> None:
    """Run the process."""
    sys.excepthook = lambda _, error, __: _report(error)
    protect()
    if not end_with_parent(int(sys.argv[2]), signal.SIGKILL):
        return
    os.nice(NICE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_ANSWER, MAX_ANSWER))
    serve(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    try:
        main()
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
