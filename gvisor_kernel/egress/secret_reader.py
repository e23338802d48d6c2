"""Reads the secrets of routes in threads, when they are needed, and keeps them for a while."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from gvisor_kernel.errors import SecretError
from gvisor_kernel.host.secrets import read_secret

THREADS = 8
KEEP_SECONDS = 60.0
"""How long a secret that was read is used; then it is read again, as it may have been replaced."""
READ_SECONDS = 20.0
"""How long a request waits for its secret: a keyring may ask a person for its password."""


class SecretReader:
    """Reads secrets in threads. One for each worker. Use it in one event loop."""

    def __init__(
        self,
        read: Callable[[str, Mapping[str, str]], str] = read_secret,
        seconds: float = READ_SECONDS,
    ) -> None:
        """``read`` blocks; ``seconds``: how long a request waits for it."""
        self._read = read
        self._seconds = seconds
        self._threads = ThreadPoolExecutor(THREADS, "secrets")
        self._known: dict[str, tuple[float, str]] = {}
        self._reading: dict[str, asyncio.Future[str]] = {}

    async def read(self, reference: str, environment: Mapping[str, str]) -> str:
        """Return a secret's value. ``environment`` has the values of ``env:``.

        :raises SecretError: it cannot be read
        :raises TimeoutError: it was not read in time
        """
        if reference.startswith("env:"):
            return read_secret(reference, environment)
        read, value = self._known.get(reference, (0.0, ""))
        if value and time.monotonic() < read + KEEP_SECONDS:
            return value
        reading = self._reading.get(reference)
        if reading is None:
            loop = asyncio.get_running_loop()
            reading = loop.run_in_executor(self._threads, self._read, reference, {})
            self._reading[reference] = reading
            reading.add_done_callback(lambda done: self._note(reference, done))
        async with asyncio.timeout(self._seconds):
            return await asyncio.shield(reading)

    def _note(self, reference: str, done: asyncio.Future[str]) -> None:
        del self._reading[reference]
        with suppress(SecretError):
            self._known[reference] = (time.monotonic(), done.result())  # no timeout: it is done
