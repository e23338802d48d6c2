"""Counts the bytes of one request against the limits of its route, before they are passed on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gvisor_kernel.egress.budgets import Admission
from gvisor_kernel.egress.refusals import LimitReached, UpstreamFailed
from gvisor_kernel.errors import EgressError, EgressRefused


class Meter:
    """``up``: bytes of the request's body; ``down``: bytes of the answer's. A tunnel's likewise."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    @property
    def up(self) -> int:
        """Bytes that the sandbox has sent."""
        return self._admission.up

    @property
    def down(self) -> int:
        """Bytes that the sandbox has got."""
        return self._admission.down

    def check_length(self, size: int) -> None:
        """Check the announced size of a request's body.

        :raises LimitReached: it is too large
        """
        route = self._admission.route
        most = route.limits.request_bytes
        if size > most:
            raise LimitReached(
                f"the route {route.name} allows a request of {most} bytes",
                f"an administrator may raise "
                f'c.GVisorEgress.routes["{route.name}"]["limits"]["request_bytes"].',
                413,
            )

    async def sent(self, size: int) -> None:
        """Count bytes that the sandbox sends.

        :raises Refusal: a limit is reached; they must not be passed on
        """
        await self._count(self._admission.sent, size, 413)

    async def received(self, size: int) -> None:
        """Count bytes that the sandbox gets; otherwise as ``sent``."""
        await self._count(self._admission.received, size, 502)

    async def _count(self, count: Callable[[int], None], size: int, status: int) -> None:
        try:
            if self._admission.may_block(size):
                await asyncio.get_running_loop().run_in_executor(None, count, size)
            else:
                count(size)
        except EgressRefused as error:
            raise LimitReached(error.fact, error.hint, status) from error
        except EgressError as error:
            raise UpstreamFailed("the budget of the route cannot be counted") from error
