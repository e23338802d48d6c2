"""The process that reads the pages of package indexes, and makes those for sandboxes.

Run as ``python -m gvisor_kernel.egress.page_reader FD PARENT`` by ``package_catalog``. On the
socket FD (packets) it gets one job at a time, as JSON with open files: one to write to, and the
pages. It gets no credential of an index and opens nothing itself. It has limits of memory and time,
and answers with a byte: 0 if the page is made; ERRNO if none of its pages can be used, with the
reason in the place of the page; or ERRNO and an error's number, with which it also ends without
memory. Standard library only, and few modules of it: the process starts in a moment.

The page that is made consists of ``parts``, whose lengths are in its footer: what a sandbox gets,
in one form or two, and a table of the files that it names.
"""

from __future__ import annotations

import errno
import mmap
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from urllib.parse import quote, urlsplit

from gvisor_kernel.egress.own_process import (
    describe_error,
    end_with_parent,
    limit_memory,
    limit_time,
    protect,
)
from gvisor_kernel.egress.package_pages import (
    Buffer,
    File,
    PageError,
    make_footer,
    merge_pages,
    read_packument,
    read_simple,
    unpack,
    write_html,
    write_json,
    write_packument,
    write_table,
)
from gvisor_kernel.strict_json import parse_json

MAX_JOB = 128 * 1024
"""Bytes of a job, below the least size of a socket's buffer."""
MAX_FILES = 64
"""Files that come with a job."""
ERRNO = 64
"""Added to an error's number, it is the exit status; so ENOMEM and ENOSPC can be told apart."""
MAX_MADE = 512 * 1024 * 1024
"""Bytes of a page that is made."""
NICE = 5
"""The requests of other kernels go before a page."""

Parts = dict[str, Iterable[str]]


def make_page(job: dict[str, Any], data: list[Buffer]) -> Parts:
    """Return the page that ``job`` is about, made of ``data``.

    :raises PageError: none of its pages can be used
    """

    def address(file: File) -> str:
        return f"{job['base']}{file.number}/{quote(file.filename)}"

    pages: list[Any] = []
    faults: list[str] = []
    for entry, body in zip(job["pages"], data, strict=True):
        try:
            pages.append(_read(job, entry, unpack(body, entry["encoding"], job["most"])))
        except PageError as error:
            host = urlsplit(entry["index"]).hostname
            faults.append(f"what {host} answers cannot be used: {error}")
    if not pages:
        raise PageError(faults[0])
    if job["kind"] == "npm":
        content, by_version = pages[0]
        files = _number(by_version.values())
        by_version = dict(zip(by_version, files, strict=True))
        made = {"json": write_packument(content, by_version, address)}
    else:
        files, name = _number(merge_pages(pages)), job["name"]
        made = {"json": write_json(name, files, address), "html": write_html(name, files, address)}
    return {**made, "files": write_table(files)}


def _number(files: Iterable[File]) -> tuple[File, ...]:
    return tuple(replace(file, number=number) for number, file in enumerate(files))


def _read(job: dict[str, Any], entry: dict[str, Any], body: Buffer) -> Any:
    index = entry["index"]
    if job["kind"] == "npm":
        content, files = read_packument(body, entry["url"])
        return content, {version: replace(f, index=index) for version, f in files.items()}
    return [replace(f, index=index) for f in read_simple(body, entry["type"], entry["url"])]


def write(to: int, parts: Parts) -> None:
    """Write a page and its footer."""
    sizes = {}
    with os.fdopen(to, "wb", closefd=False) as file:
        for name, part in parts.items():
            sizes[name] = sum(file.write(text) for text in _encode(part))
        file.write(make_footer({"size": sum(sizes.values()), "parts": sizes}))


def _encode(part: Iterable[str]) -> Iterator[bytes]:
    return (text.encode("utf-8", "replace") for text in part)


def work(job: dict[str, Any], to: int, fds: list[int]) -> int:
    """Do a job; return the answer."""
    try:
        with ExitStack() as stack:
            data: list[Buffer] = []
            for fd, entry in zip(fds, job["pages"], strict=True):
                if not entry["size"]:
                    data.append(b"")
                    continue
                # Mapped, a page does not count to the memory of this process.
                mapped = stack.enter_context(mmap.mmap(fd, entry["size"], prot=mmap.PROT_READ))
                data.append(stack.enter_context(memoryview(mapped)))
            write(to, make_page(job, data))
    except PageError as error:
        os.write(to, str(error).encode())
        return ERRNO
    except OSError as error:
        return ERRNO + (error.errno or errno.EIO)
    return 0


def _report(error: BaseException) -> None:
    text = f"reading a page failed: {describe_error(error)}"
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - it goes to the kernels' logs


def serve(sock: socket.socket) -> None:
    """Do jobs until the socket ends."""
    while True:
        message, fds, _, _ = socket.recv_fds(sock, MAX_JOB, MAX_FILES)
        with ExitStack() as stack:
            for fd in fds:
                stack.callback(os.close, fd)
            if not message:
                return
            job = parse_json(message, MAX_JOB)
            limit_memory(job["memory"])
            limit_time(job["cpu"])
            sock.send(bytes([work(job, fds[0], fds[1:])]))


def main() -> None:
    """Run the process."""
    sys.excepthook = lambda _, error, __: _report(error)
    protect()
    if not end_with_parent(int(sys.argv[2]), signal.SIGKILL):
        return
    os.nice(NICE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_MADE, MAX_MADE))
    serve(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    try:
        main()
    except MemoryError:
        os._exit(ERRNO + errno.ENOMEM)
