"""A command of the shell that the service process runs for the host. Standard library, Python 3.9.

Its output is sent as it comes, and never more than WINDOW bytes ahead of what the host has taken.
"""

from __future__ import annotations

import errno
import os
import selectors
import signal
import subprocess
import threading
from contextlib import suppress
from typing import Any, Callable, Dict, List, Optional, Set

WINDOW = 256 * 1024
"""Bytes of output that the host has not taken yet. Above it the command waits."""
READ_SIZE = 64 * 1024

Send = Callable[..., None]

_background: List[threading.Thread] = []
"""Threads that read what processes in the background print after their command's end."""


class Command:
    """One command, in a session of its own, with no input.

    ``send(content, data)`` sends a message to the host.
    """

    def __init__(self, command: str, send: Send) -> None:
        self._command = command
        self._send = send
        self._room = WINDOW
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._lock = threading.Lock()
        self._signal = 0
        """The last signal: one that came before the process gets it at its start."""
        self._wake, self._wake_write = os.pipe()

    def handle(self, content: Dict[str, Any]) -> None:
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
        watched: Set[int] = set()
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

    def _pass(self, fd: int, names: Dict[int, str]) -> bool:
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
