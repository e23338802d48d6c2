"""Resolves names for all kernels of a worker, in threads of its own.

The system's resolver cannot be told to stop: a name whose server does not answer keeps a thread for
half a minute, after the request has given up. So each kernel has at most NAMES_AT_ONCE of them.
"""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor

THREADS = 32
NAMES_AT_ONCE = 4


class NameResolver:
    """The resolver of one kernel. ``threads`` are those of the worker (``make_threads``)."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self._threads = threads
        self._turn = asyncio.Semaphore(NAMES_AT_ONCE)

    async def resolve(self, host: str, port: int) -> list[str]:
        """Return the addresses of ``host``, as the host's programs find them.

        :raises OSError: when the name has no address
        """
        await self._turn.acquire()
        loop = asyncio.get_running_loop()
        resolving = loop.run_in_executor(self._threads, _find_addresses, host, port)
        resolving.add_done_callback(self._end_turn)
        return await asyncio.shield(resolving)

    def _end_turn(self, resolving: asyncio.Future[list[str]]) -> None:
        """Let the next name be resolved: the thread has ended, whether or not anyone waits."""
        self._turn.release()
        resolving.exception()  # it is no error that nobody has seen it


def make_threads() -> ThreadPoolExecutor:
    """Return the threads in which names are resolved, for all kernels of a worker."""
    return ThreadPoolExecutor(THREADS, "names")


def _find_addresses(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]
