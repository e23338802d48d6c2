"""The worker: a process of its own that speaks HTTP for the kernels of one Jupyter process.

Run as ``python -m gvisor_kernel.egress.worker FD PARENT``. On the control socket FD (packets) it
gets, for each run of a kernel, one end of a socket pair and a JSON object with the kernel's routes;
it answers with lines for the kernels' logs. It ends with the control socket, and with the process
PARENT. Nothing here prints the message of an error, which may quote a header with a credential:
only its kind and place.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import os
import resource
import socket
import sys
import threading
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gvisor_kernel.egress import http
from gvisor_kernel.egress.gate import Gate, Services, Shared
from gvisor_kernel.egress.kinds import read_route
from gvisor_kernel.egress.own_process import (
    describe_error,
    end_if_out_of_memory,
    limit_memory,
    protect,
)
from gvisor_kernel.egress.streams import ByteStream, StreamLink

if TYPE_CHECKING:
    from gvisor_kernel.egress.packages import Packages

MAX_MESSAGE = 128 * 1024
"""Bytes of one message on the control socket, below the least size of a socket's buffer."""
LIFE_SECONDS = 15.0
"""Between two signs of life: empty messages to the host."""
THREADS = 8
"""Threads for files: budgets and the cache of packages, for all kernels."""
MAX_MEMORY = 512 * 1024 * 1024
"""Bytes that this process may have: its heap takes 22 MiB, and 10 to 20 for each kernel that has
200 streams open. Without memory it ends (``own_process``)."""
STACK_SIZE = 512 * 1024
"""Bytes of a thread's stack, which count from the beginning. The usual 8 MiB would take most."""


class Worker:
    """The kernels of one control socket, until it ends."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._kernels: dict[int, StreamLink] = {}
        self._gates: dict[str, Gate] = {}
        """By the record that the gate writes: those of runs that go on."""
        self._shared = Shared()
        self._packages: Packages | None = None
        self._opening = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()
        self.ended = asyncio.Event()
        control.setblocking(False)
        asyncio.get_running_loop().add_reader(control.fileno(), self._receive)
        self._show_life()

    def _receive(self) -> None:
        try:
            content, fds, _, _ = socket.recv_fds(self._control, MAX_MESSAGE, 1)
        except BlockingIOError:
            return
        except OSError:
            content, fds = b"", []
        if not content:
            asyncio.get_running_loop().remove_reader(self._control.fileno())
            self.ended.set()
            return
        self._add(json.loads(content), socket.socket(fileno=fds[0]))

    def _add(self, message: dict[str, Any], sock: socket.socket) -> None:
        """Serve the streams of one run of a kernel, or more of them by its gate."""
        number, record = message["kernel"], message["audit"]
        gate = self._gates.get(record) if message["beside"] else self._open_gate(message)
        if gate is None:  # the kernel has just ended
            sock.close()
            self._send({"kernel": number})
            return

        async def serve(stream: ByteStream) -> None:
            await http.serve(stream, gate.handle)

        def end(reason: str) -> None:
            self._kernels.pop(number, None)
            if reason:
                self._send({"kernel": number, "line": reason})
            self._send({"kernel": number})
            if message["beside"]:
                return
            if self._gates.get(record) is gate:
                del self._gates[record]
            task = asyncio.get_running_loop().create_task(gate.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

        self._kernels[number] = StreamLink(sock, serve, end)

    def _open_gate(self, message: dict[str, Any]) -> Gate:
        number = message["kernel"]
        services = Services(
            None if message["audit"] is None else Path(message["audit"]),
            message["environment"],
            self._shared,
            lambda line: self._send({"kernel": number, "line": line}),
            lambda entry: self._send({"kernel": number, "entry": asdict(entry)}),
        )
        routes = [read_route(route) for route in message["routes"]]
        answer_packages = partial(self._answer_packages, number, services)
        gate = Gate(routes, services, answer_packages, message["giving"])
        if message["audit"] is not None:
            self._gates[message["audit"]] = gate
        return gate

    async def _answer_packages(
        self, kernel: int, services: Services, request: http.Request, reply: http.Reply
    ) -> None:
        """Answer for the route ``packages``. All kernels share its connections."""
        async with self._opening:
            if self._packages is None:
                self._packages = await asyncio.to_thread(_open_packages, self._shared)
        request.announce()
        await self._packages.handle(request, reply, kernel, services.names)

    def _show_life(self) -> None:
        self._send({})
        asyncio.get_running_loop().call_later(LIFE_SECONDS, self._show_life)

    def _send(self, message: dict[str, Any]) -> None:
        """Tell the host. A line is lost while the host does not read."""
        with suppress(OSError):
            self._control.send(json.dumps(message).encode()[:MAX_MESSAGE])


async def work(control: socket.socket, parent: int) -> None:
    """Serve kernels until ``control`` ends, or the process ``parent`` does."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(THREADS))
    loop.set_exception_handler(lambda _, context: _report(context.get("exception")))
    worker = Worker(control)
    # A forked child of the parent may have a copy of the control socket for a moment.
    with suppress(ProcessLookupError):
        loop.add_reader(os.pidfd_open(parent), worker.ended.set)
        if os.getppid() == parent:
            await worker.ended.wait()  # no timeout: its owner's end ends it


def _open_packages(shared: Shared) -> Packages:
    # Most kernels have no such route, and these modules take some MiB.
    from gvisor_kernel.egress.packages import Packages

    # by path: below a private store of this user
    return Packages.open(os.environ, shared.name_threads)


def _report(error: BaseException | None) -> None:
    end_if_out_of_memory(error)
    print(describe_error(error), file=sys.stderr, flush=True)  # noqa: T201 - its log is stderr


def _set_limits() -> None:
    protect()
    threading.stack_size(STACK_SIZE)
    limit_memory(MAX_MEMORY)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main() -> None:
    """Run the worker; ``os._exit`` follows, as a thread may still resolve a name."""
    sys.excepthook = lambda _, error, __: _report(error)
    sys.unraisablehook = lambda failed: _report(failed.exc_value)
    threading.excepthook = lambda failed: _report(failed.exc_value)
    _set_limits()
    control = socket.socket(fileno=int(sys.argv[1]))
    asyncio.new_event_loop().run_until_complete(work(control, int(sys.argv[2])))


if __name__ == "__main__":
    main()
    os._exit(0)
