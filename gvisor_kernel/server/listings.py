"""Notices which folder with notebooks a client has gone to, whatever front end that is.

JupyterLab with our extension names the folder itself. Others list it, or open a notebook in it,
and the server's contents manager tells that as an event.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

SCHEMA = "https://events.jupyter.org/jupyter_server/contents_service/v1"
VISIT_SECONDS = 120.0
"""A folder that was listed within this time was not gone to: pages list theirs again and again."""
MAX_FOLDERS = 1000
"""Folders whose last listing is remembered."""
MAX_ENTRIES = 2000
"""Names in a folder that are looked at for a notebook."""


class Listings:
    """Calls ``visit(folder)`` for each folder with notebooks that a client goes to.

    On the server's loop, until ``end``. ``root``: the folder that the server shows.
    """

    def __init__(
        self, logger: Any, root: str, executor: Executor, visit: Callable[[str], Awaitable[None]]
    ) -> None:
        """``logger``: the server's event logger."""
        self._logger = logger
        self._root = root
        self._executor = executor
        self._visit = visit
        self._seen: dict[str, float] = {}
        """The time at which each folder was listed last."""
        self._next: str | None = None
        self._working: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to listen."""
        self._logger.add_listener(schema_id=SCHEMA, listener=self._on_event)

    async def _on_event(self, logger: Any, schema_id: str, data: dict[str, Any]) -> None:
        path = data.get("path")
        if data.get("action") == "get" and isinstance(path, str):
            self.note(path)

    def note(self, path: str) -> None:
        """Note that a client has got the folder or file ``path``."""
        folder = path.strip("/")
        if folder.endswith(".ipynb"):
            folder = folder.rpartition("/")[0]
        loop = asyncio.get_running_loop()
        now = loop.time()
        last = self._seen.pop(folder, None)
        self._seen[folder] = now
        if len(self._seen) > MAX_FOLDERS:
            del self._seen[next(iter(self._seen))]
        if last is not None and now - last < VISIT_SECONDS:
            return
        self._next = folder
        if self._working is None:
            self._working = loop.create_task(self._work())

    async def _work(self) -> None:
        try:
            while self._next is not None:  # the last of those that came meanwhile
                folder, self._next = self._next, None
                look = asyncio.get_running_loop().run_in_executor(
                    self._executor, has_notebooks, self._root, folder
                )
                if await look:  # no timeout: MAX_ENTRIES names of a folder
                    await self._visit(folder)
        except Exception:
            log.exception("Nothing is made ready for a folder that was listed")
        finally:
            self._working = None

    def end(self) -> None:
        """Listen no more. Idempotent."""
        with suppress(Exception):
            self._logger.remove_listener(listener=self._on_event)
        self._next = None
        if self._working is not None:
            self._working.cancel()


def has_notebooks(root: str, folder: str) -> bool:
    """Return whether a notebook lies directly in a folder of the server. Blocks."""
    path = Path(root, folder)
    if ".." in path.parts or "\0" in folder:
        return False
    with suppress(OSError), os.scandir(path) as found:
        for count, entry in enumerate(found):
            if count >= MAX_ENTRIES:
                break
            if entry.name.endswith(".ipynb") and not entry.name.startswith("."):
                return True
    return False
