"""The worker as the host's process sees it: one process for all kernels of this one that have
routes.

The worker parses HTTP, holds credentials and speaks to servers; this process does none of that. It
gives the worker one end of a socket pair for each run of a kernel, with the run's routes, and gets
lines for the kernels' logs back. The worker ends with this process, in whatever way that dies.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gvisor_kernel
from gvisor_kernel.egress.audit import Counters, describe_entry, describe_refusal, read_entry
from gvisor_kernel.egress.environment import JUPYTER, Door
from gvisor_kernel.egress.kinds import Route, UrlRoute, write_route
from gvisor_kernel.egress.package_index import find_configuration_variables
from gvisor_kernel.errors import LaunchError
from gvisor_kernel.host.commands import check_children
from gvisor_kernel.host.locks import PerProcess, ThreadLock
from gvisor_kernel.host.log_files import Limiter
from gvisor_kernel.strict_json import JsonError, parse_json

MAX_MESSAGE = 128 * 1024
"""Bytes of one message on the control socket: less than a socket's buffer holds."""
MAX_LINE = 2000
SEND_SECONDS = 5.0
"""How long the worker may take none of the messages that wait for it."""
SILENCE_SECONDS = 60.0
"""A worker that says nothing for so long hangs, and is killed: it gives a sign of life every
LIFE_SECONDS (worker.py)."""
END_SECONDS = 2.0
"""How long the worker has to end after the end of its control socket; then it is killed."""
KEPT = (
    *("HOME", "USER", "LOGNAME", "PATH", "LANG", "LC_ALL", "TZ", "TMPDIR"),
    *("PYTHONHOME", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("XDG_CONFIG_HOME", "XDG_CONFIG_DIRS", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    *("XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "NETRC", "VIRTUAL_ENV", "CONDA_PREFIX"),
)
KEPT_PREFIXES = ("PIP_", "UV_", "NPM_CONFIG_", "npm_config_", "PYTHON_KEYRING_")
"""Variables that the worker gets: where certificates, the keyring and the configuration of pip, uv
and npm are. What ``env:`` names comes with the routes that name it."""

Log = Callable[[str], None]
"""Writes a line into a kernel's log; called in a thread of this module."""


@dataclass(frozen=True)
class Grant:
    """A kernel that may reach something: its name for errors, its routes, and its audit."""

    identity: str
    routes: tuple[Route, ...]
    audit: Path | None
    door: Door = JUPYTER
    show_refused: Log | None = None
    """Called like a Log, with a tunnel that was refused, and why."""
    is_beside: bool = False
    """Whether it is one more socket of the kernel that writes ``audit``: the kernel's own routes
    serve it, with all that they count, while the kernel runs. Otherwise the socket ends."""


class EgressWorker(PerProcess):
    """The worker of this process. Use ``EgressWorker.instance()``. Any thread."""

    def __init__(self) -> None:
        super().__init__()
        self._sending = ThreadLock()
        self._worker: _Worker | None = None
        self._ended = False
        self.counters = Counters()
        """What went through the routes of this process's kernels."""

    @property
    def pid(self) -> int | None:
        """The pid of the worker; None while there is none."""
        worker = self._worker
        return worker.process.pid if worker is not None and worker.alive else None

    def open(self, grant: Grant, write_log: Log) -> socket.socket:
        """Return a socket whose streams ``grant`` serves, until it is closed.

        Starts the worker if it does not run; does not wait for it. If the worker dies, the socket
        ends, and the next call starts another one. Shut the socket down before it is closed: a
        forked child may have a copy of it.

        :raises LaunchError: when the worker cannot be started, or a secret's variable is not set
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with self._sending:
                self._hand_over(grant, write_log, theirs)
        except OSError as error:
            ours.close()
            raise LaunchError(
                f"The process for the kernel's routes cannot be started: {error}.",
                "check this machine with: gvisor-kernel doctor",
            ) from error
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return ours

    def _hand_over(self, grant: Grant, write_log: Log, theirs: socket.socket) -> None:
        """Send ``theirs`` to the worker, or to a new one if the last one has died."""
        if self._ended:
            raise LaunchError("The kernel's routes cannot be used: this process is exiting.")
        for is_last in (False, True):
            if self._worker is None or not self._worker.alive:
                self.stop()
                self._worker = _Worker(self.counters)
            try:
                self._worker.send(grant, write_log, theirs)
                return
            except OSError:
                self.stop(asked=False)
                if is_last:
                    raise

    def stop(self, *, asked: bool = True) -> None:
        """End the worker, and so the sockets that it serves. The next ``open`` starts another.

        :param asked: see ``_Worker.stop``
        """
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.stop(asked=asked)

    def end(self) -> None:
        """End the worker. Called when this process exits. Idempotent."""
        if self.is_inherited:
            return
        with self._sending:
            self._ended = True
            self.stop()


class _Worker:
    """One process, its control socket, and two threads that read what it says."""

    def __init__(self, counters: Counters) -> None:
        """Start it. It adds to ``counters``.

        :raises OSError: it cannot be started
        :raises LaunchError: this process does not learn how its children end
        """
        check_children()
        self._counters = counters
        self._logs: dict[int, tuple[Log, Log | None]] = {}
        """By the number of a socket: its kernel's log, and what shows a refused tunnel."""
        self._last = 0
        self._told = False
        self._telling = ThreadLock()
        self._flood = Limiter()
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        argv = [sys.executable, "-P", "-m", "gvisor_kernel.egress.worker", str(theirs.fileno())]
        try:
            self.process = subprocess.Popen(
                [*argv, str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=_make_environment(),
                cwd="/",
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        except BaseException:
            self.control.close()
            raise
        finally:
            theirs.close()
        _started.add(self)
        for work in (self._read_messages, self._read_stderr):
            threading.Thread(target=work, name="gvisor-kernel-egress", daemon=True).start()

    @property
    def alive(self) -> bool:
        """Return whether it runs."""
        return self.process.poll() is None

    def send(self, grant: Grant, write_log: Log, theirs: socket.socket) -> None:
        """Hand over a kernel's socket with its routes.

        :raises OSError: the worker does not take it
        :raises LaunchError: the routes are too many
        """
        self._last += 1
        message = json.dumps(_describe(self._last, grant)).encode()
        if len(message) > MAX_MESSAGE:
            raise LaunchError(
                f"The routes of {grant.identity} take {len(message)} bytes; "
                f"{MAX_MESSAGE} are allowed.",
                "give the kernel fewer routes, or routes with shorter lists.",
            )
        self._logs[self._last] = write_log, grant.show_refused
        self.control.settimeout(SEND_SECONDS)
        try:
            socket.send_fds(self.control, [message], [theirs.fileno()])
        except OSError:
            del self._logs[self._last]  # its kernel gets another worker
            raise

    def _read_messages(self) -> None:
        """Write the worker's lines into the kernels' logs, until its control socket ends."""
        ready = select.poll()
        try:
            ready.register(self.control.fileno(), select.POLLIN)
        except ValueError:  # closed by ``stop`` already
            return
        while True:
            try:
                if not ready.poll(SILENCE_SECONDS * 1000):
                    self._write_all(f"the process for routes was silent for {SILENCE_SECONDS:g} s")
                    self.process.kill()
                    break
                content = self.control.recv(MAX_MESSAGE)
            except OSError:  # closed by ``stop``
                return
            if not content:
                break
            try:
                message = parse_json(content, MAX_MESSAGE)
                if not message:  # a sign of life
                    continue
                kernel, line = int(message["kernel"]), message.get("line")
                entry = read_entry(message["entry"]) if "entry" in message else None
            except (JsonError, KeyError, TypeError, ValueError, AttributeError):
                self.process.kill()  # it is not itself any more
                break
            log, show = self._logs.get(kernel, (None, None))
            if entry is not None:
                self._counters.add(entry)
                self._write(log, describe_entry(entry))
                if refused := describe_refusal(entry):
                    self._write(show, refused)
            elif line is not None:
                self._write(log, str(line))
            else:
                self._logs.pop(kernel, None)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_SECONDS)
            self._tell_end()

    def _tell_end(self) -> None:
        """Log an end that was not asked for, once."""
        with self._telling:
            told, self._told = self._told, True
        if not told:
            self._write_all(f"the process for routes ended with status {self.process.returncode}")

    def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stderr:
            for line in stderr:
                text = self._flood.admit(line.decode(errors="replace").rstrip()[:MAX_LINE])
                if text is not None:
                    self._write_all(text)

    def _write_all(self, text: str) -> None:
        for log, _ in tuple(self._logs.values()):
            self._write(log, text)

    @staticmethod
    def _write(write: Log | None, text: str) -> None:
        if write is not None:
            with contextlib.suppress(Exception):  # a log that is closed
                write(text)

    def stop(self, *, asked: bool = True) -> None:
        """End it. Its control socket tells it; if that does not help, it is killed.

        :param asked: whether it took messages until now. A process that is killed closes its
            sockets before it has a status, so that it may still seem to live; its end is logged.
        """
        asked = asked and self.alive
        with self._telling:
            self._told = self._told or asked
        with contextlib.suppress(OSError):
            self.control.shutdown(socket.SHUT_RDWR)
        self.control.close()
        for last in (False, True):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(END_SECONDS)
                break
            if not last:
                self.process.kill()
        if not asked:
            self._tell_end()

    def abandon(self) -> None:
        """Forget it in a forked child: it is the parent's, and must notice the parent's end."""
        self.control.close()
        if self.process.stderr is not None:
            os.close(self.process.stderr.fileno())
        self.process.returncode = 0


def _describe(number: int, grant: Grant) -> dict[str, Any]:
    """Return the message that goes with a kernel's socket.

    It has the values of ``env:`` secrets, since the worker's environment is of an earlier time.
    """
    names = {
        route.secret.removeprefix("env:")
        for route in grant.routes
        if isinstance(route, UrlRoute) and route.secret and route.secret.startswith("env:")
    }
    return {
        "kernel": number,
        "routes": [write_route(route) for route in grant.routes],
        "giving": grant.door.giving,
        "beside": grant.is_beside,
        "audit": None if grant.audit is None else str(grant.audit),
        "environment": {name: os.environ[name] for name in names if name in os.environ},
    }


def _make_environment() -> dict[str, str]:
    environment = {
        name: value
        for name, value in os.environ.items()
        if name in KEPT or name.startswith(KEPT_PREFIXES)
    }
    environment |= find_configuration_variables(os.environ)
    # Threads take turns, so arenas of their own would only hold memory that is free.
    environment["MALLOC_ARENA_MAX"] = "1"
    # The worker's Python imports the same copy of this package.
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(Path(gvisor_kernel.__file__).parent.parent), *(path for path in sys.path if path)]
    )
    return environment


_started: weakref.WeakSet[_Worker] = weakref.WeakSet()


def _reset_after_fork() -> None:
    for worker in tuple(_started):
        with contextlib.suppress(OSError):
            worker.abandon()
    _started.clear()


os.register_at_fork(after_in_child=_reset_after_fork)
