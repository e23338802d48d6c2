"""REST: what a kernel has changed in its folder, read, applied and undone.

The work is that of ``changes/``; what comes from a sandbox is answered as JSON text, or as bytes
that no browser shows as a page.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict

from tornado import web

from gvisor_kernel.changes.apply import undo_apply
from gvisor_kernel.changes.change import encode_changes
from gvisor_kernel.changes.kernel_changes import KernelChanges
from gvisor_kernel.host.workers import in_thread
from gvisor_kernel.lab.contents import refuse_autorun
from gvisor_kernel.lab.routes import CLOSED
from gvisor_kernel.server.documents import make_unkept
from gvisor_kernel.server.handlers import Handler

MAX_BODY = 8 * 1024 * 1024
"""Bytes of a request: ten thousand changes with their states."""


class ChangesHandler(Handler):
    """``GET kernels/{kernel_id}/changes``"""

    async def get(self, kernel_id: str) -> None:
        found = await KernelChanges(self.find_kernel(kernel_id)).list()
        self.answer(await in_thread(encode_changes, found))


class UnkeptHandler(Handler):
    """``GET kernels/{kernel_id}/unkept``"""

    async def get(self, kernel_id: str) -> None:
        left = await self.services.unkept.read(self.find_kernel(kernel_id))
        if left is None:
            self.answer_nothing()
        else:
            self.answer(make_unkept(left))


class ContentHandler(Handler):
    """``GET kernels/{kernel_id}/changes/content``"""

    async def get(self, kernel_id: str) -> None:
        side = self.get_query_argument("side")
        if side not in ("old", "new"):
            raise web.HTTPError(400, "side must be old or new.")
        content = await KernelChanges(self.find_kernel(kernel_id)).read(
            self.get_query_argument("path", strip=False),
            "old" if side == "old" else "new",
            self.get_query_argument("state", strip=False),
        )
        if content is None:
            raise web.HTTPError(404, "There is no such file on this side.")
        self.set_opaque()
        self.set_header("Content-Disposition", "attachment")
        self.finish(content, set_content_type="application/octet-stream")


class ApplyHandler(Handler):
    """``POST kernels/{kernel_id}/changes/apply``"""

    async def post(self, kernel_id: str) -> None:
        changes = KernelChanges(self.find_kernel(kernel_id))
        self.note_activity()
        body = await in_thread(self.read_body, MAX_BODY)
        wanted = read_wanted(body.get("changes"))
        force, named = body.get("force", False), body.get("named", [])
        if (
            wanted is None
            or not isinstance(force, bool)
            or not isinstance(named, list)
            or not all(isinstance(path, str) for path in named)
        ):
            raise web.HTTPError(400, "The body must have changes, each with path and state.")
        if self.settings.get(CLOSED):  # a person who wants that has a terminal
            for path, _ in wanted:
                refuse_autorun(path, is_folder=True)
        # Half an apply would be a surprise: it goes on when the client has left.
        # no timeout: each question to the sandbox has a limit
        applied = await asyncio.shield(changes.apply(wanted, named=named, force=force))
        self.answer(await in_thread(lambda: json.dumps(asdict(applied))))


class UndoHandler(Handler):
    """``POST kernels/{kernel_id}/changes/undo``: also after the sandbox's end."""

    async def post(self, kernel_id: str) -> None:
        self.note_activity()
        name = self.read_body(MAX_BODY).get("undo")
        if not isinstance(name, str):
            raise web.HTTPError(400, "The body must have the text undo.")
        undone = await in_thread(undo_apply, name, self.services.stopping.is_set)
        self.answer(await in_thread(lambda: json.dumps(asdict(undone))))


def read_wanted(value: object) -> list[tuple[str, str]] | None:
    """Return the paths and states of a request; None if it has something else."""
    if not isinstance(value, list):
        return None
    wanted = []
    for entry in value:
        path, state = (
            (entry.get("path"), entry.get("state")) if isinstance(entry, dict) else (None, None)
        )
        if not isinstance(path, str) or not isinstance(state, str):
            return None
        wanted.append((path, state))
    return wanted
