"""Code that a restored kernel runs before anything of a client's reaches it, and unseen by clients.

Its answer also shows that the kernel lives, and that the key is the right one. Which code that is,
the image's makers say.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from gvisor_kernel.bridge.wire import WireError, WireMessage, new_message, parse_object
from gvisor_kernel.link import Channel


class Settling:
    """One request to run ``code``. ``done``: once it has run; its error, if it failed."""

    def __init__(self, code: str, done: asyncio.Future[None]) -> None:
        content = {
            "code": code,
            "silent": True,
            "store_history": False,
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": False,
        }
        request = new_message("execute_request", content, b"{}", b"")
        self.request = replace(request, identities=[])
        self.done = done
        self._status = ""
        self._idle = False

    def takes(self, channel: Channel, message: WireMessage) -> bool:
        """Whether ``message`` belongs to the request, and is for nobody else. Raises WireError."""
        if message.parent_id != self.request.id:
            return False
        if channel is Channel.SHELL:
            status = parse_object(message.content, "content").get("status")
            self._status = status if isinstance(status, str) else "none"
        elif channel is Channel.IOPUB and message.kind == "status":
            content = parse_object(message.content, "content")
            self._idle |= content.get("execution_state") == "idle"
        if self._status and self._idle and not self.done.done():
            if self._status == "ok":
                self.done.set_result(None)
            else:
                self.done.set_exception(WireError("its kernel could not renew itself"))
        return True
