"""The REST API of checkpoints: list, make, remove, and go back to one."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

from tornado import web

from gvisor_kernel.kernel.checkpoints import NAME, Checkpoints
from gvisor_kernel.server.handlers import MAX_BODY, Handler
from gvisor_kernel.shown_text import printable, printable_name

CHECKPOINT = r"(?P<name>[A-Za-z0-9._-]{1,64})"


class _Handler(Handler):
    def find(self, kernel_id: str) -> Checkpoints:
        """Return the kernel's; see ``find_kernel``."""
        return self.find_kernel(kernel_id).hibernation.checkpoints

    def read_name(self, default: str | None = None) -> str | None:
        """Return the name in the body.

        :raises HTTPError: 400 when it has none, and there is no default, or it is no name
        """
        name = self.read_body(MAX_BODY).get("name", default)
        if name is not None and not (isinstance(name, str) and NAME.fullmatch(name)):
            raise web.HTTPError(400, "The body must have a name: letters, digits, '.', '_' or '-'.")
        return name


class CheckpointsHandler(_Handler):
    """``GET`` and ``POST kernels/{kernel_id}/checkpoints``"""

    async def get(self, kernel_id: str) -> None:
        checkpoints = self.find(kernel_id)
        found, disk = await checkpoints.list(), await checkpoints.measure()
        shown = [{**asdict(one), "what": printable(one.what)} for one in found]
        self.answer({"checkpoints": shown, "disk": disk})

    async def post(self, kernel_id: str) -> None:
        self.note_activity()
        checkpoints, name = self.find(kernel_id), self.read_name()
        self.answer({"name": await checkpoints.make(name)})


class CheckpointHandler(_Handler):
    """``DELETE kernels/{kernel_id}/checkpoints/{name}``"""

    async def delete(self, kernel_id: str, name: str) -> None:
        self.note_activity()
        await self.find(kernel_id).remove(name)
        self.set_status(204)
        self.finish()


class RewindHandler(_Handler):
    """``POST kernels/{kernel_id}/rewind``"""

    async def post(self, kernel_id: str) -> None:
        self.note_activity()
        checkpoints, name = self.find(kernel_id), self.read_name("")
        if not name:
            raise web.HTTPError(400, "The body must have the name of a checkpoint.")
        # Half a rewind would be a surprise: it goes on when the client has left.
        # no timeout: its steps have timeouts
        outputs = await asyncio.shield(checkpoints.rewind(name))
        shown: dict[str, Any] = asdict(outputs)
        for kind in ("added", "changed", "removed"):
            shown[kind] = [printable_name(path) for path in shown[kind]]
        self.answer({"outputs": shown})
