"""The control socket of a kernel: other programs of the same user ask about its changes.

The link of a sandbox belongs to the process that has started it. So that process listens on a
socket in the sandbox's private directory, where ``gvisor-kernel changes`` finds it. One question
and one answer a connection, each a line of JSON. Whoever asks must be the user of this process, or
root: the folder and the socket allow no other, and the kernel of the host says who it is.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import struct
import threading
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gvisor_kernel.bridge import Bridge
from gvisor_kernel.changes.change import MAX_CHANGES, ChangesError, encode_changes, is_path
from gvisor_kernel.changes.kernel_changes import KernelChanges
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.kernel.session import SandboxedKernel
from gvisor_kernel.strict_json import JsonError, parse_json

log = logging.getLogger(__name__)

SOCKET = "control.sock"
MAX_QUESTION = 16 * 1024 * 1024
MAX_ANSWER = 32 * 1024 * 1024
MAX_VALUES = 4 * MAX_CHANGES + 100
QUESTION_SECONDS = 10.0
ANSWER_SECONDS = 60.0
"""Seconds that an answer may wait to be taken."""
WORK_SECONDS = 600.0
"""Seconds that an answer may take: an apply writes to the user's disk."""
MAX_CLIENTS = 4
DIFFS = 200
"""Changes whose diffs are in one answer, and characters of all of them."""
MAX_DIFFS = 4 * 1024 * 1024


class ControlSocket:
    """Answers questions about one kernel, beside the bridge's loop, from ``open`` to ``close``."""

    def __init__(self, kernel: SandboxedKernel) -> None:
        self._kernel = kernel
        self._changes = KernelChanges(kernel)
        self._bridge = Bridge.instance()
        self._server: asyncio.Server | None = None
        self._directory: Path | None = None
        self._clients: set[asyncio.Task[Any]] = set()

    async def open(self) -> None:
        """Listen in the directory of the kernel's present sandbox.

        :raises OSError: when that fails; the kernel works without
        """
        sandbox = self._kernel.sandbox
        if sandbox is None or sandbox.directory == self._directory:
            return
        await self.close()
        await self._bridge.run(self._listen(sandbox.directory))

    async def close(self) -> None:
        """Answer nothing any more. Idempotent."""
        if self._server is not None and not self._bridge.ended:
            await self._bridge.run(self._end())
        self._server = self._directory = None

    async def _listen(self, directory: Path) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # by path: below the state directory, whose parents only this user can change
            folder = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                with suppress(FileNotFoundError):
                    os.unlink(SOCKET, dir_fd=folder)
                # By descriptor, as the path of a socket has at most 107 bytes.
                listener.bind(f"/proc/self/fd/{folder}/{SOCKET}")
                os.chmod(SOCKET, 0o600, dir_fd=folder)
            finally:
                os.close(folder)
            listener.setblocking(False)
            self._server = await asyncio.start_unix_server(
                self._serve, sock=listener, limit=MAX_QUESTION, backlog=MAX_CLIENTS
            )
        except BaseException:
            listener.close()
            raise
        self._directory = directory

    async def _end(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._clients:
            task.cancel()
        if self._clients:
            await asyncio.wait(self._clients, timeout=1)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            if len(self._clients) > MAX_CLIENTS or not _is_own(writer):
                return
            line = await asyncio.wait_for(reader.readline(), QUESTION_SECONDS)
            answer = await asyncio.wait_for(_run_beside(self._answer(line)), WORK_SECONDS)
            writer.write(answer)
            await asyncio.wait_for(writer.drain(), ANSWER_SECONDS)
        except (OSError, ValueError, TimeoutError, asyncio.CancelledError):
            pass  # who asked too much, or went away, gets no answer
        finally:
            self._clients.discard(task)
            writer.close()

    async def _answer(self, line: bytes) -> bytes:
        try:
            text = await self._do(parse_json(line, MAX_QUESTION, MAX_VALUES))
        except GvisorKernelError as error:
            text = json.dumps({"error": error.fact, "hint": error.hint})
        except (JsonError, KeyError, TypeError, ValueError):
            text = json.dumps({"error": "The question is malformed.", "hint": ""})
        if len(text) > MAX_ANSWER:
            text = json.dumps({"error": "The answer is too large.", "hint": ""})
        return text.encode() + b"\n"

    async def _do(self, question: dict[str, Any]) -> str:
        what = question["do"]
        if what == "list":
            under = question.get("under", [])
            if not isinstance(under, list) or not all(map(is_path, under)):
                raise ValueError("under")
            found = await self._changes.list(under)
            more: dict[str, object] = {}
            if question.get("diff") is True:
                more["diffs"] = diffs = {}
                more["whole"] = whole = []
                size = 0
                for change in found.changes[:DIFFS]:
                    shown = await self._changes.diff(change)
                    size += len(shown.text)
                    if size > MAX_DIFFS:
                        break
                    diffs[change.path] = shown.text
                    if shown.is_whole:
                        whole.append(change.path)
            return encode_changes(found, more)
        if what == "apply":
            wanted = [(path, state) for path, state in question["changes"]]
            if not all(is_path(path) and isinstance(state, str) for path, state in wanted):
                raise ChangesError("The paths of the question are malformed.")
            force, named = question.get("force") is True, question.get("named", [])
            if not isinstance(named, list) or not all(map(is_path, named)):
                raise ValueError("named")
            return json.dumps(asdict(await self._changes.apply(wanted, named=named, force=force)))
        raise ValueError(what)


async def _run_beside(work: Coroutine[Any, Any, bytes]) -> bytes:
    """Run ``work`` in a loop and thread of its own: an answer has megabytes of JSON, and the
    bridge's loop serves all kernels. A thread that nobody awaits any more ends by its own bounds.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[bytes] = loop.create_future()

    def tell(result: bytes | None) -> None:
        if not done.done():
            if result is None:
                done.set_exception(ValueError("there is no answer"))
            else:
                done.set_result(result)

    def run() -> None:
        result = None
        try:
            result = asyncio.run(work)
        except Exception:
            log.warning("A question about changes has failed", exc_info=True)
            work.close()  # there may have been no descriptor for a loop
        with suppress(RuntimeError):  # the loop was closed: this process is exiting
            loop.call_soon_threadsafe(tell, result)

    threading.Thread(target=run, name="gvisor-kernel-control", daemon=True).start()
    return await done  # no timeout: bounded by WORK_SECONDS, where it is called


def _is_own(writer: asyncio.StreamWriter) -> bool:
    """Return whether the other end is this user or root."""
    other = writer.get_extra_info("socket")
    size = struct.calcsize("3i")
    credentials = other.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    _, uid, _ = struct.unpack("3i", credentials)
    return uid in (0, os.geteuid())
