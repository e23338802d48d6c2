"""Runs ``gvisor-kernel doctor`` for a client: in a process of its own, one at a time."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.shown_text import printable
from gvisor_kernel.strict_json import JsonError, parse_json

DOCTOR = ("-P", "-m", "gvisor_kernel", "doctor", "--json")
MAX_SECONDS = 300.0
"""More than all checks together may take."""
KEEP_SECONDS = 10.0
"""Seconds that findings are used again: doctor starts a kernel."""
END_SECONDS = 5.0
MAX_ANSWER = 1024 * 1024


class DoctorFailed(GvisorKernelError):
    """Doctor did not answer."""


class Doctor:
    """Runs doctor. On the server's loop."""

    def __init__(self, arguments: Sequence[str] = DOCTOR) -> None:
        self._arguments = arguments
        self._running: asyncio.Task[Any] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._ended = False
        self._known: Any = None
        self._known_at: float | None = None

    async def read(self) -> Any:
        """Return doctor's findings as ``doctor --json`` prints them; up to KEEP_SECONDS old.

        :raises DoctorFailed: when it does not answer
        """
        now = asyncio.get_running_loop().time()
        if self._known_at is not None and now - self._known_at < KEEP_SECONDS:
            return self._known
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await asyncio.shield(self._running)  # no timeout: bounded by MAX_SECONDS

    async def _run(self) -> Any:
        try:
            process = self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *self._arguments,
                stdin=DEVNULL,
                stdout=PIPE,
                stderr=DEVNULL,
                limit=MAX_ANSWER,
            )
            if self._ended:
                self._kill()
            try:
                async with asyncio.timeout(MAX_SECONDS):
                    output, _ = await process.communicate()
            finally:
                self._kill()
            self._known = _clean(parse_json(output, MAX_ANSWER))
            self._known_at = asyncio.get_running_loop().time()
            return self._known
        except asyncio.CancelledError:
            raise DoctorFailed("The server stops.") from None
        except (OSError, TimeoutError, JsonError) as error:
            raise DoctorFailed(f"gvisor-kernel doctor did not answer: {error}") from error
        finally:
            self._running = self._process = None

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def end(self) -> None:
        """End a doctor that runs. Waits for it up to END_SECONDS."""
        self._ended = True
        self._kill()
        if self._running is not None:
            await asyncio.wait({self._running}, timeout=END_SECONDS)
        if self._running is not None:
            self._running.cancel()


def _clean(value: Any) -> Any:
    """Return a JSON value whose texts have no control characters: they may quote programs."""
    if isinstance(value, dict):
        return {name: _clean(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_clean(item) for item in value]
    return printable(value) if isinstance(value, str) else value
