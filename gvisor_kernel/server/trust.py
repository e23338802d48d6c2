"""Finds the notebooks of a folder that this person has trusted, or saved, with this Jupyter.

The contents manager of the server lists and reads, by its own rules; its notary knows signatures.
Nothing is signed here, and no cell runs.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import OrderedDict
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jupyter_core.utils import ensure_async
from nbformat import reader
from tornado import web

from gvisor_kernel.strict_json import parse_json

MAX_NOTEBOOKS = 200
MAX_BYTES = 16 * 1024 * 1024
"""Bytes of a notebook that is read. A larger one counts as not trusted."""
MAX_VALUES = 100_000
"""Values of JSON in such a notebook, likewise. Those of many outputs have some thousands."""
SECONDS = 3.0
"""Seconds that a folder's notebooks are read. Those that were not read count as not trusted."""
MAX_KEPT = 2000
"""Signatures that are kept, of 64 characters each."""


@dataclass(frozen=True)
class Trust:
    """A notebook and whether its content is signed. ``path``: as clients of the server name it."""

    path: str
    trusted: bool


@dataclass(frozen=True)
class TrustOfFolder:
    """``more``: there are others, or some were not read."""

    notebooks: tuple[Trust, ...]
    more: bool


class Notary:
    """Asks the notary of one server. On the server's loop, one question at a time."""

    def __init__(self, contents: Any, executor: Executor) -> None:
        """``contents``: the server's contents manager."""
        self._contents = contents
        self._executor = executor
        self._turn = asyncio.Semaphore(1)
        self._signatures: OrderedDict[tuple[str, str, object], str] = OrderedDict()
        """Signatures by path, time and size. What is signed may change without the file."""

    async def read(self, path: str) -> TrustOfFolder:
        """Return the trust of the notebooks directly in a folder, or of the notebook ``path``.

        :raises HTTPError: 404 for what the contents manager does not show, or is out of its root
        """
        async with self._turn:
            return await self._read(path.strip("/"))

    async def _read(self, path: str) -> TrustOfFolder:
        await self._check(path)
        model = await ensure_async(self._contents.get(path, content=False))
        more = False
        if model["type"] == "directory":
            model = await ensure_async(self._contents.get(path, type="directory", content=True))
            found = [entry for entry in model["content"] if entry["type"] == "notebook"]
            found.sort(key=lambda entry: str(entry["path"]))
            more = len(found) > MAX_NOTEBOOKS
            found = found[:MAX_NOTEBOOKS]
        elif model["type"] == "notebook":
            found = [model]
        else:
            raise web.HTTPError(404, "This is neither a folder nor a notebook.")
        loop = asyncio.get_running_loop()
        end = loop.time() + SECONDS
        notebooks = []
        for entry in found:
            name = str(entry["path"]).strip("/")
            late = loop.time() > end
            more = more or late
            is_shown = self._is_in_root(name)
            if not is_shown and name != path:
                continue
            notebooks.append(Trust(name, not late and await self._is_trusted(name, entry)))
        return TrustOfFolder(tuple(notebooks), more)

    async def _check(self, path: str) -> None:
        is_odd = "\0" in path or ".." in path.split("/")
        if is_odd or not self._is_in_root(path):
            raise web.HTTPError(404, "There is no such folder or notebook.")
        hides = bool(path) and not self._contents.allow_hidden
        if hides and await ensure_async(self._contents.is_hidden(path)):
            raise web.HTTPError(404, "There is no such folder or notebook.")

    def _is_in_root(self, path: str) -> bool:
        """Return whether no link on the way leads out of the root; True where there are no files.

        A contents manager follows links. Whose notebook is somewhere else is not asked here.
        """
        root = getattr(self._contents, "root_dir", None)
        if not isinstance(root, str) or not root:
            return True
        real = Path(root).resolve()
        try:
            return (real / path).resolve().is_relative_to(real)
        except (OSError, RuntimeError):  # links that lead to each other
            return False

    async def _is_trusted(self, path: str, model: dict[str, Any]) -> bool:
        size = model.get("size")
        if not isinstance(size, int) or size > MAX_BYTES:
            return False
        # Made here if nobody has used it: the server's own saves need its database in the thread
        # of the loop, and the key must not be made in two.
        notary = self._contents.notary
        store, secret = notary.store, notary.secret
        key = (path, str(model.get("last_modified")), size)
        signature = self._signatures.get(key)
        try:
            if signature is None:
                file = await ensure_async(
                    self._contents.get(path, type="file", format="text", content=True)
                )
                loop, text = asyncio.get_running_loop(), file["content"]
                signature = await loop.run_in_executor(self._executor, find_signature, notary, text)
                self._signatures[key] = signature
                if len(self._signatures) > MAX_KEPT:
                    self._signatures.popitem(last=False)
            return bool(signature and secret) and bool(
                store.check_signature(signature, notary.algorithm)
            )
        except (web.HTTPError, sqlite3.Error):  # it was removed meanwhile, or is no text
            return False


def find_signature(notary: Any, text: str) -> str:
    """Return the signature that this notebook has if it is trusted; "" for one that never is.

    ``notary``: of nbformat. Takes time in proportion to the text, whatever is in it.
    """
    try:
        # Bounded before anything is made of it: each value takes some hundred bytes of memory.
        if parse_json(text, MAX_BYTES, MAX_VALUES).get("nbformat") != 4:
            return ""  # its cells get new ids each time it is read
        # Not nbformat.reads: its validation compares all items of a list with each other.
        notebook = reader.reads(text)  # type: ignore[no-untyped-call]
        return str(notary.compute_signature(notebook)) if _keeps_ids(notebook) else ""
    except Exception:  # nbformat raises many things for what is no notebook
        return ""


def _keeps_ids(notebook: Any) -> bool:
    """Return whether the contents manager makes no new ids for cells each time it reads this.

    It does for cells that have none, or that of another one.
    """
    ids = [cell.get("id") for cell in notebook.cells]
    # Only strings are compared: numbers can be chosen to have one hash.
    return notebook.nbformat_minor < 5 or (
        all(isinstance(id_, str) for id_ in ids) and len(set(ids)) == len(ids)
    )
