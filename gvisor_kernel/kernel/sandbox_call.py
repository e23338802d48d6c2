"""A call to a sandbox's service process, from any event loop."""

from __future__ import annotations

from collections.abc import Mapping

from gvisor_kernel.bridge import Bridge
from gvisor_kernel.bridge.service import ServiceCalls
from gvisor_kernel.errors import SandboxError
from gvisor_kernel.link import RemoteProtocolError
from gvisor_kernel.link.service_messages import ServiceMessage, decode_service


class SandboxCall:
    """One call, until ``close``. ``SandboxedKernel.open_call`` makes it."""

    def __init__(self, bridge: Bridge, service: ServiceCalls, number: int) -> None:
        self._bridge = bridge
        self._service = service
        self._number = number

    async def receive(self) -> ServiceMessage:
        """Return the next answer. Code of the sandbox may have made it up.

        :raises SandboxError: when there is none, or it is malformed
        """
        part = await self._bridge.run(self._service.receive(self._number))
        try:
            return decode_service(part)
        except RemoteProtocolError as error:
            raise SandboxError(f"The sandbox did not answer as it should: {error}") from error

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
