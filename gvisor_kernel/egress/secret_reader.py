"""Reads the secrets of routes for all kernels of a worker, in threads of its own.

A keyring may be locked, and a file on a server that is gone: reading one may never return. Each
secret is read by at most one thread at a time, however many requests wait for it, and these threads
do nothing else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from gvisor_kernel.egress.secrets import read_secret
from gvisor_kernel.errors import SecretError

THREADS = 8
KEEP_SECONDS = 60.0
"""How long a secret that was read is used; then it is read again, as it may have been replaced."""
READ_SECONDS = 20.0
"""How long a request waits for its secret."""


class SecretReader:
    """One for each worker. Use it in one event loop."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, "secrets")
        self._known: dict[str, tuple[float, str]] = {}
        self._reading: dict[str, asyncio.Future[str]] = {}

    async def read(self, reference: str, environment: Mapping[str, str]) -> str:
        """Return a secret's value. ``environment`` has the values of ``env:``.

        :raises SecretError: it cannot be read
        :raises TimeoutError: it was not read within READ_SECONDS
        """
        if reference.startswith("env:"):
            return read_secret(reference, environment)
        read, value = self._known.get(reference, (0.0, ""))
        if value and time.monotonic() < read + KEEP_SECONDS:
            return value
        reading = self._reading.get(reference)
        if reading is None:
            loop = asyncio.get_running_loop()
            reading = loop.run_in_executor(self._threads, read_secret, reference, {})
            self._reading[reference] = reading
            reading.add_done_callback(lambda done: self._note(reference, done))
        async with asyncio.timeout(READ_SECONDS):
            return await asyncio.shield(reading)

    def _note(self, reference: str, done: asyncio.Future[str]) -> None:
        del self._reading[reference]
        with suppress(SecretError):
            self._known[reference] = (time.monotonic(), done.result())
