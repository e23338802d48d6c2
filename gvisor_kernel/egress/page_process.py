"""The processes that read and write pages, as the worker sees them (``page_writer`` runs in them).

A page may have 64 MiB, and takes seconds and hundreds of MiB to be read. So that is done by another
process, which is killed when it takes too long or too much memory; only the request that it worked
for fails. There are at most PROCESSES, each with one job at a time, and at most one of a kernel, so
that one kernel's pages leave a process for the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import gvisor_kernel
from gvisor_kernel.config.validators import MIB
from gvisor_kernel.egress.fair_turns import FairTurns
from gvisor_kernel.egress.page_writer import MAX_FILES, MAX_MESSAGE, MAX_PARSED_BYTES, OUT_OF_MEMORY
from gvisor_kernel.strict_json import JsonError, parse_json

PROCESSES = 2
MAX_MEMORY = 768 * MIB
"""Bytes that one process may have. A document of npm of 63 MiB takes 300 MiB, and 490 if it has a
character beyond the first 65,536; a page of PyPI with 20,000 files 80, HTML of 30 MiB 215."""
CPU_SECONDS = 60
"""How long a job may use the CPU. A document of npm of 63 MiB takes 5 s, HTML of 30 MiB 10."""
JOB_SECONDS = 300.0
"""How long a job may take, on a busy machine as well."""
END_SECONDS = 5.0
"""How long a process that was killed, or has closed its socket, may take to end."""
KEPT = ("PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL")
"""Variables that the process gets. Those with the configuration of indexes are not among them."""


class JobFailed(Exception):
    """A job has no answer; the text says why."""


class PageProcesses:
    """Does jobs of ``page_writer``. Use it in one event loop, and ``close`` it.

    ``key``: with which addresses of files are made.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._turns = FairTurns(PROCESSES)
        self._idle: list[_Process] = []
        self._all: set[_Process] = set()
        """Also those that were killed and have not ended yet."""

    @property
    def pids(self) -> list[int]:
        """The processes that there are."""
        return [process.pid for process in self._all]

    async def do(self, kernel: Hashable, job: dict[str, Any], fds: Sequence[int]) -> dict[str, Any]:
        """Return the answer to a job of ``kernel``. ``fds`` stay open.

        :raises JobFailed: when there is none
        :raises OSError: when the page cannot be written
        """
        message = json.dumps(job).encode()
        if len(message) > MAX_MESSAGE or len(fds) > MAX_FILES:
            raise JobFailed(f"the addresses of its pages have {len(message)} bytes")
        is_large = sum(page["size"] for page in job["pages"]) > MAX_PARSED_BYTES
        async with self._turns.take(kernel):
            process = self._take()
            try:
                answer = await process.do(message, fds)
            except BaseException:
                process.kill()
                raise
            if is_large:
                process.kill()  # else it would keep the memory that the page has taken
            else:
                self._idle.append(process)
        if "failed" in answer:
            number = int(answer["failed"])
            raise OSError(number, os.strerror(number))
        return answer

    def _take(self) -> _Process:
        while self._idle:
            process = self._idle.pop()
            if process.is_alive:
                return process
        try:
            process = _Process(self._key, self._all.discard)
        except OSError as error:
            raise JobFailed(f"the process for pages cannot be started: {error}") from error
        self._all.add(process)
        return process

    async def close(self) -> None:
        """End the processes."""
        self._idle.clear()
        for process in tuple(self._all):
            process.kill()
            await process.wait_until_gone()


def _make_environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    # Nothing else is imported but the standard library.
    return {**kept, "PYTHONPATH": str(Path(gvisor_kernel.__file__).parent.parent)}


class _Process:
    """One process. It ends with the thread that makes it. ``on_end`` is called at its end."""

    def __init__(self, key: bytes, on_end: Callable[[_Process], None]) -> None:
        """Start it.

        :raises OSError: it cannot be started
        """
        self._loop = asyncio.get_running_loop()
        self._on_end = on_end
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        argv = [sys.executable, "-S", "-P", "-m", "gvisor_kernel.egress.page_writer"]
        try:
            self._process = subprocess.Popen(
                [*argv, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=_make_environment(),
                cwd="/",
                pass_fds=[theirs.fileno()],
            )
        except BaseException:
            self._socket.close()
            raise
        finally:
            theirs.close()
        self._socket.setblocking(False)
        self._ended = asyncio.Event()
        self._end = os.pidfd_open(self._process.pid)
        self._loop.add_reader(self._end, self._reap)
        with contextlib.suppress(OSError):  # then ``do`` finds that it has ended
            start = {"key": key.hex(), "memory": MAX_MEMORY, "cpu": CPU_SECONDS}
            self._socket.send(json.dumps(start).encode())

    @property
    def pid(self) -> int:
        """Its pid."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it can take a job."""
        return self._process.poll() is None

    async def do(self, message: bytes, fds: Sequence[int]) -> dict[str, Any]:
        """Send a job and return the answer. After an error the process must be killed.

        :raises JobFailed: when there is none
        """
        try:
            async with asyncio.timeout(JOB_SECONDS):
                socket.send_fds(self._socket, [message], list(fds))
                content = await self._loop.sock_recv(self._socket, MAX_MESSAGE)
        except TimeoutError:
            raise JobFailed(f"reading it takes longer than {JOB_SECONDS:g} s") from None
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                raise JobFailed(f"the process for pages failed: {error.strerror}") from error
            content = b""
        if not content:
            raise JobFailed(await self._explain_end())
        try:
            answer = parse_json(content, MAX_MESSAGE)
        except JsonError as error:
            raise JobFailed(f"the answer of the process for pages: {error}") from error
        if not isinstance(answer, dict):
            raise JobFailed("the answer of the process for pages is not an object")
        return answer

    async def _explain_end(self) -> str:
        await self.wait_until_gone()
        status = self._process.poll()
        if status == OUT_OF_MEMORY:
            return f"reading it takes more than {MAX_MEMORY // MIB} MiB of memory"
        if status == -signal.SIGXCPU:
            return f"reading it takes more than {CPU_SECONDS} s of the CPU"
        return f"the process for pages ended with status {status}"

    async def wait_until_gone(self) -> None:
        """Wait until it has ended, after ``kill`` or the end of its socket."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                await self._ended.wait()

    def kill(self) -> None:
        """End it. Idempotent."""
        self._process.kill()

    def _reap(self) -> None:
        """Take note of its end. Called by the loop."""
        self._process.wait(END_SECONDS)
        self._loop.remove_reader(self._end)
        os.close(self._end)
        self._loop.remove_reader(self._socket)
        self._socket.close()
        self._ended.set()
        self._on_end(self)
