"""Routes with ``hosts``: CONNECT, and requests for a whole URL, to listed names and ports only."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress

import httpcore

from gvisor_kernel.egress.budgets import Admission
from gvisor_kernel.egress.forward import check_method, forward, request_headers
from gvisor_kernel.egress.heads import Form
from gvisor_kernel.egress.http import Reply, Request
from gvisor_kernel.egress.patterns import find_target_fault
from gvisor_kernel.egress.refusals import LimitReached, Refusal, Refused, UpstreamFailed
from gvisor_kernel.egress.streams import ByteStream, StreamReset
from gvisor_kernel.egress.upstream import Resolve, Upstream, connect, counted, find_read_size
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


async def open_tunnel(
    request: Request, reply: Reply, host: str, port: int, resolve: Resolve, meter: Meter
) -> None:
    """Answer a CONNECT, and copy bytes both ways until both sides have ended.

    :raises Refusal: the server may not be reached, or cannot be; or a limit is used up
    :raises StreamReset: the client has gone
    """
    sock = await connect(host, port, resolve)
    try:
        request.announce()
        await reply.switch()
        with counted(sock):
            async with asyncio.TaskGroup() as group:
                group.create_task(_copy_up(request.stream, sock, meter))
                group.create_task(_copy_down(sock, request.stream, meter))
    except ExceptionGroup as group:
        cause = _find_cause(group)
        if not isinstance(cause, OSError):
            raise cause from None
        request.stream.reset()  # the server has ended the connection
    finally:
        sock.close()


def _find_cause(group: ExceptionGroup[Exception]) -> Exception:
    """Return why a tunnel has ended; the group itself if that is a defect.

    The end of one direction may fail the other one, so the group may contain several errors.
    """
    errors = group.exceptions
    if all(isinstance(error, Refusal | StreamReset | OSError) for error in errors):
        for kind in (Refusal, StreamReset, OSError):
            for error in errors:
                if isinstance(error, kind):
                    return error
    return group


async def _copy_up(stream: ByteStream, sock: socket.socket, meter: Meter) -> None:
    loop = asyncio.get_running_loop()
    while data := await stream.read():  # no timeout: the limit seconds of the route ends the tunnel
        await meter.sent(len(data))
        await loop.sock_sendall(sock, data)
    with suppress(OSError):
        sock.shutdown(socket.SHUT_WR)


async def _copy_down(sock: socket.socket, stream: ByteStream, meter: Meter) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(sock, find_read_size()):
        await meter.received(len(data))
        await stream.write(data)
    stream.finish()


async def pass_on(request: Request, reply: Reply, host: str, port: int, upstream: Upstream) -> None:
    """Answer a request for a whole URL with what its server answers.

    :raises Refusal: see ``forward``
    """
    head = request.head
    assert head.form is Form.ABSOLUTE
    check_method(head.method)
    fault = find_target_fault(head.path)
    if fault is not None:
        raise Refused(
            f"the path {fault}, which servers read in different ways",
            "send a path that has one meaning; no setting allows this one.",
        )
    shown = f"[{host}]" if ":" in host else host
    scheme, usual = ("https", 443) if head.is_tls else ("http", 80)
    authority = shown if port == usual else f"{shown}:{port}"
    headers = request_headers(request, authority.encode())
    url = httpcore.URL(scheme=scheme, host=host, port=port, target=head.path)
    await forward(upstream, request, reply, url, headers)
