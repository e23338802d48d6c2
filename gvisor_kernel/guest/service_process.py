"""The service process: works with files, and runs commands, for the host and as the kernel's user.

A fork of PID 1 (``service``). Each call has a thread of its own, so that a slow disk or a command
delays no other call. A call is answered by messages, of which the last has ``done``. It ends with
``error`` if it fails. Standard library, Python 3.9.
"""

from __future__ import annotations

import errno
import json
import os
import selectors
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Callable, NoReturn

from gvisor_kernel.guest import service_changes, service_files
from gvisor_kernel.link import LocalProtocolError
from gvisor_kernel.link.service_messages import (
    LENGTH,
    MAX_ANSWER_CONTENT,
    MAX_SERVICE_MESSAGE,
    decode_service,
    encode_service,
)

MAX_CALLS = 64
"""Calls at once."""
MAX_ENTRIES = MAX_ANSWER_CONTENT // 4
"""Bytes of a long list in one message, in JSON."""


WINDOW = 256 * 1024
"""Bytes of output that the host has not taken yet. Above it the command waits."""
READ_SIZE = 64 * 1024

Send = Callable[..., None]

_background: list[threading.Thread] = []
"""Threads that read what processes in the background print after their command's end."""


class Command:
    """One command of the shell, in a session of its own, with no input.

    Its output is sent as it comes, and never more than WINDOW bytes ahead of what the host has
    taken. ``send(content, data)`` sends a message to the host.
    """

    def __init__(self, command: str, send: Send) -> None:
        self._command = command
        self._send = send
        self._room = WINDOW
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._signal = 0
        """The last signal: one that came before the process gets it at its start."""
        self._wake, self._wake_write = os.pipe()

    def handle(self, content: dict[str, Any]) -> None:
        """Handle a message of the host: room for more output, or a signal."""
        with self._lock:
            self._room = min(WINDOW, self._room + int(content.get("more", 0)))
            self._tell()
        if "signal" in content:
            self.kill(int(content["signal"]))

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Signal the command and its children."""
        with self._lock:
            self._signal = signum
            if self._process is not None and self._process.returncode is None:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._process.pid, signum)

    def run(self) -> int:
        """Run the command until it exits; return its status, negative for a signal.

        Processes that it leaves in the background go on; what they print later is lost.

        :raises OSError: it cannot be started
        """
        shell = "/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh"
        try:
            with self._lock:
                self._process = process = subprocess.Popen(
                    [shell, "-c", self._command],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                )
                if self._signal:
                    os.killpg(process.pid, self._signal)
            try:
                threading.Thread(target=self._wait, args=(process,), daemon=True).start()
            except RuntimeError:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise OSError(errno.EAGAIN, "No thread can be started in the sandbox") from None
            self._pass_output(process)
            if self._signal:  # its background ignores SIGINT, and must not outlive its time
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            return int(process.wait())
        finally:
            self.close()

    def close(self) -> None:
        """Release what it has. Called at its end, or in the place of ``run``."""
        with self._lock:
            os.close(self._wake)
            os.close(self._wake_write)
            self._wake_write = -1

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        with self._lock:
            self._tell()

    def _tell(self) -> None:
        """Wake ``run``."""
        if self._wake_write >= 0:
            os.write(self._wake_write, b".")

    def _pass_output(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        names = {process.stdout.fileno(): "stdout", process.stderr.fileno(): "stderr"}
        for fd in names:
            os.set_blocking(fd, False)
        watched: set[int] = set()
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake, selectors.EVENT_READ)
            while names:
                wanted = set(names) if self._room > 0 else set()
                for fd in watched - wanted:
                    selector.unregister(fd)
                for fd in wanted - watched:
                    selector.register(fd, selectors.EVENT_READ)
                watched = wanted
                # After the end: what is in the pipes already, and nothing more.
                is_last = process.returncode is not None and bool(watched)
                ready = {key.fd for key, _ in selector.select(0 if is_last else None)}
                if self._wake in ready:
                    os.read(self._wake, 4096)
                passed = [self._pass(fd, names) for fd in ready & watched]
                if is_last and not any(passed):
                    break
        for pipe in (process.stdout, process.stderr):
            if pipe.fileno() in names:
                _read_in_background(pipe)
            else:
                pipe.close()

    def _pass(self, fd: int, names: dict[int, str]) -> bool:
        """Send what is in one pipe; return whether there was anything, or its end."""
        with self._lock:
            size = min(READ_SIZE, self._room)
        if size <= 0:
            return True
        try:
            data = os.read(fd, size)
        except BlockingIOError:
            return False
        if not data:
            del names[fd]
            return True
        with self._lock:
            self._room -= len(data)
        self._send({"stream": names[fd]}, data)
        return True


def _read_in_background(pipe: Any) -> None:
    """Read and drop what comes: without a reader its writers would be ended by SIGPIPE."""

    def read() -> None:
        os.set_blocking(pipe.fileno(), True)
        with pipe:
            while os.read(pipe.fileno(), READ_SIZE):
                pass

    thread = threading.Thread(target=read, daemon=True)
    _background[:] = [other for other in _background if other.is_alive()]
    try:
        thread.start()
    except RuntimeError:
        pipe.close()
    else:
        _background.append(thread)


def wait_for_background() -> None:
    """Wait until no process in the background prints any more."""
    for thread in _background:
        thread.join()


def serve(link: int) -> NoReturn:
    """Serve calls on the socket ``link`` until its other end is closed, then end all commands."""
    _Server(socket.socket(fileno=link)).run()


class _Server:
    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._sending = threading.Lock()
        self._lock = threading.Lock()
        self._calls: dict[int, Any] = {}
        """Work that runs, by call: its Command or Move, or None."""

    def run(self) -> NoReturn:
        """Serve calls. Never returns."""
        service_files.remove_parts()
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

    def _answer(self, call: int, content: dict[str, Any], data: bytes) -> None:
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

    def _prepare(self, call: int, content: dict[str, Any]) -> Any:
        """Return what can be signalled of a call; None if nothing can.

        :raises OSError: it cannot be done
        """
        if content["do"] == "run":
            return Command(content["command"], lambda *sent: self._send(call, *sent))
        if content["do"] == "move":
            return service_files.Move(content["path"], content["target"])
        return None

    def _do(
        self, call: int, content: dict[str, Any], data: bytes
    ) -> tuple[dict[str, object], bytes]:
        what = content["do"]
        with self._lock:
            prepared = self._calls[call]
        if isinstance(prepared, Command):
            return {"status": prepared.run()}, b""
        if isinstance(prepared, service_files.Move):
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
            return service_files.rename(content["path"], content["target"]), b""
        return service_files.change(what, content["path"]), b""

    def _send(self, call: int, content: dict[str, Any], data: bytes = b"") -> None:
        part = encode_service(call, content, data, MAX_ANSWER_CONTENT)
        with self._sending, suppress(OSError):  # PID 1 has closed its end
            self._link.sendall(LENGTH.pack(len(part)) + part)


def split_list(reply: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the contents of the messages of an answer: one, or several with some ``entries`` each.
    The last has all that is no entry."""
    entries: list[object] = []
    size = 0
    for entry in reply.get("entries", ()):
        length = len(json.dumps(entry)) + 2
        if entries and size + length > MAX_ENTRIES:
            yield {"entries": entries}
            entries, size = [], 0
        entries.append(entry)
        size += length
    yield {**reply, "entries": entries} if "entries" in reply else reply
