"""A call to a sandbox's service process, from any event loop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from gvisor_kernel.bridge import Bridge
from gvisor_kernel.bridge.service import ServiceCalls
from gvisor_kernel.errors import SandboxError
from gvisor_kernel.link import RemoteProtocolError
from gvisor_kernel.link.service_messages import (
    MAX_ANSWER_CONTENT,
    MAX_CONTENT,
    ServiceMessage,
    decode_service,
)


class SandboxCall:
    """One call, until ``close``. ``SandboxedKernel.open_call`` makes it."""

    def __init__(self, bridge: Bridge, service: ServiceCalls, number: int) -> None:
        self._bridge = bridge
        self._service = service
        self._number = number

    @classmethod
    async def begin(
        cls, bridge: Bridge, service: ServiceCalls, begin: Coroutine[Any, Any, int]
    ) -> SandboxCall:
        """Begin a call. One that nobody waits for any more is stopped and closed.

        ``begin`` begins it on the bridge's loop, and returns its number. What it raises is raised.
        """
        beginning = asyncio.ensure_future(bridge.run(begin))
        try:
            # no timeout: a save or a wake before it has timeouts
            number = await asyncio.shield(beginning)
        except asyncio.CancelledError:
            beginning.add_done_callback(partial(_forget_call, bridge, service))
            raise
        return cls(bridge, service, number)

    async def receive(self) -> ServiceMessage:
        """Return the next answer. Code of the sandbox may have made it up.

        :raises SandboxError: when there is none, or it is malformed
        """
        return _decode(await self._receive())

    async def _receive(self) -> bytes:
        return await self._bridge.run(self._service.receive(self._number))

    async def receive_list(self, limit: int) -> ServiceMessage:
        """Return the last answer, with at most ``limit`` ``entries`` of this and those before it.

        The loop does other work between two of them.

        :raises SandboxError: as ``receive``, and when there is more
        """
        found: list[object] = []
        size = 0
        while True:
            part = await self._receive()
            message = _decode(part)
            is_last, entries = message.content.get("done") is True, message.content.get("entries")
            if is_last and not isinstance(entries, list):  # it has failed
                return message
            size += len(part)
            if not isinstance(entries, list) or not (entries or is_last):
                raise SandboxError("The sandbox did not answer as it should with a list.")
            found += entries
            if len(found) > limit or size > MAX_CONTENT:
                raise SandboxError("The sandbox answered with more than it was asked for.")
            if is_last:
                return message._replace(content={**message.content, "entries": found})

    async def send(self, content: Mapping[str, object]) -> None:
        """Send a further message.

        :raises SandboxError: when no kernel runs
        """

        async def send() -> None:
            self._service.send(self._number, content)

        await self._bridge.run(send())

    async def close(self) -> None:
        """Take no more answers. Idempotent."""

        async def close() -> None:
            self._service.close(self._number)

        if not self._bridge.ended:
            await self._bridge.run(close())


def _decode(part: bytes) -> ServiceMessage:
    try:
        return decode_service(part, MAX_ANSWER_CONTENT)
    except RemoteProtocolError as error:
        raise SandboxError(f"The sandbox did not answer as it should: {error}") from error


def _forget_call(bridge: Bridge, service: ServiceCalls, begun: asyncio.Future[int]) -> None:
    if begun.cancelled() or begun.exception() is not None or bridge.ended:
        return
    number = begun.result()  # no timeout: it is done

    async def close() -> None:
        with suppress(SandboxError):
            service.send(number, {"signal": int(signal.SIGKILL)})
        service.close(number)

    bridge.call(close())
