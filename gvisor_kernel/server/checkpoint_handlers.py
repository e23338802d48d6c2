"""The REST API of checkpoints: list, make, remove, and go back to one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tornado import web

from gvisor_kernel.changes.apply import find_applies, undo_applies
from gvisor_kernel.changes.change import Undone
from gvisor_kernel.host.workers import in_thread
from gvisor_kernel.kernel.checkpoints import NAME, Checkpoints
from gvisor_kernel.kernel.noted_outputs import MAX_TOLD
from gvisor_kernel.server.handlers import MAX_BODY, Handler
from gvisor_kernel.shown_text import printable, printable_name

CHECKPOINT = r"(?P<name>[A-Za-z0-9._-]{1,64})"


class _Handler(Handler):
    def read_name(self, default: str | None = None) -> str | None:
        """Return the name in the body.

        :raises HTTPError: 400 when it has none, and there is no default, or it is no name
        """
        name = self.read_body(MAX_BODY).get("name", default)
        if name is not None and not (isinstance(name, str) and NAME.fullmatch(name)):
            raise web.HTTPError(
                400, "A name has at most 64 letters, digits, '.', '_' and '-', and no space."
            )
        return name


class CheckpointsHandler(_Handler):
    """``GET`` and ``POST kernels/{kernel_id}/checkpoints``"""

    async def get(self, kernel_id: str) -> None:
        checkpoints = self.find_kernel(kernel_id).checkpoints
        directory = self.services.sandboxes.find_directory(kernel_id)
        found, disk = await checkpoints.list(), await checkpoints.measure()
        shown = [{**asdict(one), "what": printable(one.what)} for one in found]
        applied: list[dict[str, Any]] = [
            {**asdict(one), "count": len(one.paths), "paths": name_all(one.paths[:MAX_TOLD])}
            for one in await in_thread(find_applies, directory)
        ]
        self.answer({"checkpoints": shown, "disk": disk, "applied": applied})

    async def post(self, kernel_id: str) -> None:
        self.note_activity()
        checkpoints, name = self.find_kernel(kernel_id).checkpoints, self.read_name()
        self.answer({"name": await checkpoints.make(name)})


class CheckpointHandler(_Handler):
    """``DELETE kernels/{kernel_id}/checkpoints/{name}``"""

    async def delete(self, kernel_id: str, name: str) -> None:
        self.note_activity()
        await self.find_kernel(kernel_id).checkpoints.remove(name)
        self.answer_nothing()


class RewindHandler(_Handler):
    """``POST kernels/{kernel_id}/rewind``"""

    async def post(self, kernel_id: str) -> None:
        self.note_activity()
        checkpoints, name = self.find_kernel(kernel_id).checkpoints, self.read_name("")
        body = self.read_body(MAX_BODY)
        asked, made = body.get("undo", []), body.get("time")
        if not name:
            raise web.HTTPError(400, "The body must have the name of a checkpoint.")
        if not isinstance(asked, list):
            raise web.HTTPError(400, "undo must be a list of what was applied.")
        if not isinstance(made, int | float | None):
            raise web.HTTPError(400, "time must be that of the checkpoint, as it was listed.")
        directory = self.services.sandboxes.find_directory(kernel_id)
        # Half a rewind would be a surprise: it goes on when the client has left.
        # no timeout: its steps have timeouts
        self.answer(await asyncio.shield(self.rewind(checkpoints, name, made, directory, asked)))

    async def rewind(
        self,
        checkpoints: Checkpoints,
        name: str,
        made: float | None,
        directory: Path | None,
        asked: list[object],
    ) -> dict[str, Any]:
        """Go back to a checkpoint, and then undo the applies that were ``asked`` for; return the
        answer."""
        outputs: dict[str, Any] = asdict(await checkpoints.rewind(name, made))
        for kind in ("added", "changed", "removed"):
            outputs[kind] = name_all(outputs[kind])

        def undo() -> Undone:
            applies = [one for one in find_applies(directory) if one.undo in asked]
            return undo_applies(applies, self.services.stopping.is_set)

        done = await in_thread(undo)
        refused = [{"path": printable_name(it.path), "reason": it.reason} for it in done.refused]
        return {"outputs": outputs, "undone": name_all(done.undone), "refused": refused}


def name_all(paths: Sequence[str]) -> list[str]:
    """Return names that a sandbox has chosen as they are shown."""
    return [printable_name(path) for path in paths]
