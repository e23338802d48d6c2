"""A request that a restored kernel runs before any message of a client; clients do not see it.

The answer also shows that the kernel is alive and that its key is the right one. The code comes
from ``snapshots/reseed.py``.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from gvisor_kernel.bridge.wire import WireError, WireMessage, new_message, parse_object
from gvisor_kernel.link import Channel


class RenewalRequest:
    """One request to run ``code``. The future ``done`` gets WireError if the code fails."""

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

    def consumes(self, channel: Channel, message: WireMessage) -> bool:
        """Return whether ``message`` belongs to this request, so that no client gets it.

        :raises WireError: when the message cannot be parsed
        """
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
                self.done.set_exception(WireError("its code for new random numbers failed"))
        return True
