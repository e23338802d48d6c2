"""Streams on which nothing is admitted have a price: a kernel that floods is not read meanwhile."""

from __future__ import annotations

import asyncio
import socket

import pytest

from gvisor_kernel.egress.streams import ByteStream, StreamLink
from gvisor_kernel.host.log_files import Allowance

from .peer import Peer

TURNS = 50


@pytest.mark.parametrize("is_useful", [False, True])
def test_a_kernel_that_floods_with_refused_requests_is_not_read(
    is_useful: bool,
) -> None:
    """And is read again when its allowance has grown; useful streams cost nothing of it."""
    allowance = Allowance(2, 1e-9)
    served: list[int] = []

    async def serve(stream: ByteStream) -> None:
        stream.is_useful = is_useful
        served.append(stream.number)
        stream.finish()

    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        link, peer = StreamLink(ours, serve, lambda reason: None, allowance), Peer(theirs)
        for _ in range(5):
            peer.open(b"x", finish=True)
            for _ in range(TURNS):
                await asyncio.sleep(0)
        assert len(served) == (5 if is_useful else 2)
        allowance.spend(-100)
        while len(served) < 5:
            await asyncio.sleep(0.001)
        link.end("")
        peer.close()

    asyncio.run(scenario())
