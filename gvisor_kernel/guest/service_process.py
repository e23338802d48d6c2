"""The service process: works with files, and runs commands, for the host and as the kernel's user.

A fork of PID 1 (``service``). Each call has a thread of its own, so that a slow disk or a command
delays no other call. A call is answered by messages, of which the last has ``done``. It ends with
``error`` if it fails. Standard library, Python 3.9.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from contextlib import suppress
from typing import Any, Dict, Iterator, List, NoReturn, Tuple

from gvisor_kernel.guest import service_changes, service_files, service_move
from gvisor_kernel.guest.service import LENGTH
from gvisor_kernel.guest.service_command import Command, wait_for_background
from gvisor_kernel.link import LocalProtocolError
from gvisor_kernel.link.service_messages import (
    MAX_ANSWER_CONTENT,
    MAX_SERVICE_MESSAGE,
    decode_service,
    encode_service,
)

MAX_CALLS = 64
"""Calls at once."""
MAX_ENTRIES = MAX_ANSWER_CONTENT // 4
"""Bytes of a long list in one message, in JSON."""


def serve(link: int) -> NoReturn:
    """Serve calls on the socket ``link`` until its other end is closed, then end all commands."""
    _Server(socket.socket(fileno=link)).run()


class _Server:
    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._sending = threading.Lock()
        self._lock = threading.Lock()
        self._calls: Dict[int, Any] = {}
        """Work that runs, by call: its Command or Move, or None."""

    def run(self) -> NoReturn:
        """Serve calls. Never returns."""
        service_move.remove_parts()
        try:
            while True:
                (length,) = LENGTH.unpack(self._receive(LENGTH.size))
                if length > MAX_SERVICE_MESSAGE:
                    break
                self._handle(self._receive(length))
        except (EOFError, OSError):
            pass
        finally:
            with self._lock:
                commands = [command for command in self._calls.values() if command is not None]
            for command in commands:
                command.kill()
            wait_for_background()
            os._exit(0)

    def _receive(self, size: int) -> bytes:
        parts = []
        while size:
            data = self._link.recv(min(size, 256 * 1024))
            if not data:
                raise EOFError
            parts.append(data)
            size -= len(data)
        return b"".join(parts)

    def _handle(self, part: bytes) -> None:
        call, content, data = decode_service(part)
        with self._lock:
            known = call in self._calls
            command = self._calls.get(call)
            if not known and len(self._calls) < MAX_CALLS and "do" in content:
                try:
                    # A signal for it may be the next message.
                    self._calls[call] = self._prepare(call, content)
                    threading.Thread(target=self._answer, args=(call, content, data)).start()
                    return
                except RuntimeError:  # no more processes are allowed
                    prepared = self._calls.pop(call)
                    if isinstance(prepared, Command):
                        prepared.close()
                    full = "No thread can be started in the sandbox"
                except OSError as error:
                    full = error.strerror or str(error)
            else:
                full = f"{MAX_CALLS} calls are under way"
        if known and command is not None:
            command.handle(content)
        elif "do" in content:
            self._send(call, {"error": full, "done": True})

    def _answer(self, call: int, content: Dict[str, Any], data: bytes) -> None:
        try:
            reply, out = self._do(call, content, data)
        except OSError as error:
            reply, out = {"error": error.strerror or str(error)}, b""
        except Exception as error:
            reply, out = {"error": f"{type(error).__name__}: {error}"}, b""
        with self._lock:
            del self._calls[call]
        try:
            for content in split_list({**reply, "done": True}):
                self._send(call, content, out)
        except LocalProtocolError:
            self._send(call, {"error": "The answer is too large", "done": True})

    def _prepare(self, call: int, content: Dict[str, Any]) -> Any:
        """Return what can be signalled of a call; None if nothing can.

        :raises OSError: it cannot be done
        """
        if content["do"] == "run":
            return Command(content["command"], lambda *sent: self._send(call, *sent))
        if content["do"] == "move":
            return service_move.Move(content["path"], content["target"])
        return None

    def _do(
        self, call: int, content: Dict[str, Any], data: bytes
    ) -> Tuple[Dict[str, object], bytes]:
        what = content["do"]
        with self._lock:
            prepared = self._calls[call]
        if isinstance(prepared, Command):
            return {"status": prepared.run()}, b""
        if isinstance(prepared, service_move.Move):
            return prepared.run(), b""
        if what == "read":
            return service_files.read(content["path"], content["offset"], content["size"])
        if what == "write":
            return service_files.write(content["path"], data, content["first"]), b""
        if what == "list":
            return service_files.list_folder(content["path"], content["limit"]), b""
        if what == "changes":
            asked = content["limit"], content["seconds"], content["digests"]
            more = {name: content[name] for name in ("only_written", "hashed") if name in content}
            return service_changes.find_changes(*asked, under=content["under"], **more), b""
        if what == "rename":
            return service_move.rename(content["path"], content["target"]), b""
        return service_files.change(what, content["path"]), b""

    def _send(self, call: int, content: Dict[str, Any], data: bytes = b"") -> None:
        part = encode_service(call, content, data, MAX_ANSWER_CONTENT)
        with self._sending, suppress(OSError):  # PID 1 has closed its end
            self._link.sendall(LENGTH.pack(len(part)) + part)


def split_list(reply: Dict[str, Any]) -> Iterator[Dict[str, Any]]:
    """Yield the contents of the messages of an answer: one, or several with some ``entries`` each.
    The last has all that is no entry."""
    entries: List[object] = []
    size = 0
    for entry in reply.get("entries", ()):
        length = len(json.dumps(entry)) + 2
        if entries and size + length > MAX_ENTRIES:
            yield {"entries": entries}
            entries, size = [], 0
        entries.append(entry)
        size += length
    yield {**reply, "entries": entries} if "entries" in reply else reply
