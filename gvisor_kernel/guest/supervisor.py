"""PID 1's loop: link on one side, the kernel's process and sockets on the other.

One thread and one poll. Everything that waits is in the poll, so an idle supervisor uses no CPU.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections import deque
from typing import Any, Deque, Dict, List, Optional, Tuple

from gvisor_kernel.guest import process
from gvisor_kernel.guest.connection_file import write_connection_file
from gvisor_kernel.guest.process import KernelProcess, StartError
from gvisor_kernel.link import (
    Channel,
    Connection,
    Exited,
    LinkError,
    LocalProtocolError,
    LogSource,
    Message,
    Ping,
    Signal,
    Start,
    Started,
    Stats,
    Stop,
)

READ_SIZE = 256 * 1024
WAIT_MS = 10_000
MISSED_WAITS = 6
"""So many waits in a row without a byte from the host (which pings every 5 s), and it is gone.
Counted in waits, not in time: a machine that slept was not silent."""
STOP_ABOVE = 64 * 1024 * 1024
RESUME_BELOW = 16 * 1024 * 1024
"""Output that waits for the host: above the one the kernel is stopped, below the other resumed.
So a slow client slows its kernel and loses nothing."""
SIGNAL_GRACE = 0.5
"""Seconds that a kernel may run after a signal though its output waits: to notice it."""
DRAIN_SECONDS = 3.0
"""How long the last messages of a dead kernel may take to leave, before its exit is told."""
LOG_BURST = 256 * 1024
LOG_PER_SECOND = 32 * 1024
"""Of what the kernel writes to stdout and stderr outside of Jupyter, this much is forwarded."""
CANNOT_START = 127
"""The status of a kernel whose program could not be started, as a shell gives it."""


class HostGone(Exception):
    """The link ended, broke, fell silent, or said stop: end the sandbox."""


class LogBudget:
    """How many bytes of log may pass now: a bucket that fills with time."""

    def __init__(self) -> None:
        self._left = float(LOG_BURST)
        self._at = time.monotonic()
        self.dropped = 0

    def take(self, size: int) -> bool:
        now = time.monotonic()
        self._left = min(float(LOG_BURST), self._left + (now - self._at) * LOG_PER_SECOND)
        self._at = now
        if self._left < size:
            self.dropped += size
            return False
        self._left -= size
        return True


class Supervisor:
    """Serves one link until the host is gone. ``link_in`` and ``link_out`` are descriptors."""

    def __init__(self, connection: Connection, link_in: int, link_out: int) -> None:
        self.connection = connection
        self.link_in = link_in
        self.link_out = link_out
        self.kernel: Optional[KernelProcess] = None
        self.relay: Any = None
        self._context: Any = None
        self._pending = memoryview(b"")
        self._held: Deque[Message] = deque()
        self._stopped = False
        self._runs_until = 0.0
        self._drain_until: Optional[float] = None
        self._budget = LogBudget()
        os.set_blocking(link_out, False)
        self._wake, wake_write = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def run(self) -> None:
        """Serve until HostGone is raised."""
        heard = time.monotonic()
        missed = 0
        while True:
            self._flush()
            ready = self._wait()
            now = time.monotonic()
            if self.link_in in ready:
                heard, missed = now, 0
            elif now - heard >= WAIT_MS / 1000:
                # However long it was: a machine that slept missed one wait.
                heard, missed = now, missed + 1
            if missed >= MISSED_WAITS:
                raise HostGone("the host has been silent")
            if self.link_in in ready:
                self._read_link()
            if self._wake in ready:
                os.read(self._wake, 4096)
                self._reap()
            if self.kernel is not None:
                self._pass_output(ready)
            if self.relay is not None:
                self._pass_messages()
            self._finish_exit()

    # -- waiting ---------------------------------------------------------------------------------

    def _wait(self) -> Dict[Any, int]:
        """What is ready; empty after WAIT_MS of nothing."""
        wanted: List[Tuple[Any, int]] = [(self.link_in, select.POLLIN), (self._wake, select.POLLIN)]
        if self._pending:
            wanted.append((self.link_out, select.POLLOUT))
        if self.kernel is not None:
            wanted.extend((fd, select.POLLIN) for fd in self.kernel.output)
        timeout = WAIT_MS if self._drain_until is None else 50
        if self.relay is None:
            poller = select.poll()
            for fd, events in wanted:
                poller.register(fd, events)
            return dict(poller.poll(timeout))
        import zmq

        zmq_poller = zmq.Poller()
        for fd, events in wanted:
            zmq_poller.register(fd, zmq.POLLIN if events == select.POLLIN else zmq.POLLOUT)
        for socket in (*self.relay.sockets.values(), *self.relay.monitors.values()):
            zmq_poller.register(socket, zmq.POLLIN)
        return dict(zmq_poller.poll(timeout))

    # -- the link --------------------------------------------------------------------------------

    def _flush(self) -> None:
        """Write what may be written without waiting."""
        while True:
            if not self._pending:
                self._pending = memoryview(self.connection.data_to_send(READ_SIZE))
                if not self._pending:
                    return
            try:
                written = os.write(self.link_out, self._pending)
            except BlockingIOError:
                return
            except OSError as error:
                raise HostGone(f"the link cannot be written: {error}") from error
            self._pending = self._pending[written:]

    def _read_link(self) -> None:
        data = os.read(self.link_in, READ_SIZE)
        if not data:
            raise HostGone("the link has ended")
        try:
            self.connection.receive_data(data)
        except LinkError as error:
            raise HostGone(f"the host broke the rules of the link: {error}") from error
        while True:
            event = self.connection.next_event()
            if event is None:
                return
            if isinstance(event, Message):
                self._held.append(event)
            elif isinstance(event, Start):
                self._start(event)
            elif isinstance(event, Signal):
                self._signal(event.signum)
            elif isinstance(event, Ping):
                self.connection.send(count_processes())
            elif isinstance(event, Stop):
                raise HostGone("the host said stop")

    # -- the kernel ------------------------------------------------------------------------------

    def _start(self, start: Start) -> None:
        self._drop_held()
        try:
            path = write_connection_file(start.run, start.key, start.signature_scheme)
            argv = [word.replace("{connection_file}", path) for word in start.argv]
            self.kernel = process.start_kernel(argv, dict(start.environment), start.cwd)
            # pyzmq is imported only now: the kernel's interpreter starts meanwhile.
            import zmq

            from gvisor_kernel.guest.relay import Relay

            self._context = self._context or zmq.Context()
            self.relay = Relay(self._context, start.run)
        except (OSError, ImportError, StartError) as error:
            self._log(f"{error}\n")
            if self.kernel is not None:
                self.kernel.signal_group(signal.SIGKILL)
                return
            self.connection.send(Exited(start.run, CANNOT_START))
            return
        self.connection.send(Started(start.run))

    def _signal(self, signum: int) -> None:
        if self.kernel is None:
            return
        if signum == signal.SIGKILL:
            process.kill_everything()
            return
        self.kernel.signal_group(signum)
        self._runs_until = time.monotonic() + SIGNAL_GRACE
        if self._stopped:  # it has to run to notice; it is stopped again if it goes on printing
            self._resume()

    def _reap(self) -> None:
        if process.reap(self.kernel) and self._drain_until is None:
            process.kill_everything()
            self._drain_until = time.monotonic() + DRAIN_SECONDS

    def _finish_exit(self) -> None:
        """Tell a kernel's exit once its last messages are out, or had time enough."""
        if self._drain_until is None or self.kernel is None:
            return
        drained = (
            (self.relay is None or self.relay.finished)
            and not self.kernel.output
            and not self.connection.queued()
        )
        if not drained and time.monotonic() < self._drain_until:
            return
        assert self.connection.run is not None
        assert self.kernel.status is not None
        self.connection.send(Exited(self.connection.run, self.kernel.status))
        for fd in tuple(self.kernel.output):
            self.kernel.close_output(fd)
        if self.relay is not None:
            self.relay.close()
        self.kernel = self.relay = self._drain_until = None
        self._stopped = False
        self._drop_held()

    def _drop_held(self) -> None:
        """Messages that no kernel will take."""
        while self._held:
            self.connection.consumed(self._held.popleft())

    # -- what the kernel says --------------------------------------------------------------------

    def _pass_messages(self) -> None:
        self.relay.poll_monitors()
        if self.relay.listening:
            while self._held:
                message = self._held.popleft()
                if not self.relay.send(message.channel, message.parts):
                    self._complain(f"The kernel does not speak on {message.channel.name}.\n")
                self.connection.consumed(message)
        for channel, parts in self.relay.receive():
            try:
                self.connection.send_message(channel, parts)
            except LocalProtocolError as error:
                self._complain(f"A message on {channel.name.lower()} was dropped. {error}\n")
        waiting = self.connection.queued(Channel.IOPUB)
        if self.kernel is not None and waiting > STOP_ABOVE and not self._stopped:
            if time.monotonic() >= self._runs_until:
                self.kernel.signal_group(signal.SIGSTOP)
                self._stopped = True
        elif self._stopped and waiting < RESUME_BELOW:
            self._resume()

    def _resume(self) -> None:
        if self.kernel is not None:
            self.kernel.signal_group(signal.SIGCONT)
        self._stopped = False

    def _pass_output(self, ready: Dict[Any, int]) -> None:
        """Forward what the kernel wrote to its stdout and stderr, within the budget."""
        assert self.kernel is not None
        for fd, source in tuple(self.kernel.output.items()):
            if fd not in ready:
                continue
            try:
                data = os.read(fd, 16 * 1024)
            except BlockingIOError:
                continue
            if not data:
                self.kernel.close_output(fd)
            elif self._budget.take(len(data)):
                if self._budget.dropped:
                    self._log(f"{self._budget.dropped} bytes of output were not logged.\n")
                    self._budget.dropped = 0
                self.connection.send_log(source, data.decode("utf-8", "replace"))

    def _complain(self, text: str) -> None:
        """Of what a kernel causes, no more than of what it writes itself."""
        if self._budget.take(len(text)):
            self._log(text)

    def _log(self, text: str) -> None:
        self.connection.send_log(LogSource.GUEST, text)


def count_processes() -> Stats:
    """Processes, threads and resident bytes of the sandbox, PID 1 included."""
    processes = threads = pages = 0
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
            threads += int(fields[17])
            pages += int(fields[21])
        except (OSError, IndexError, ValueError):
            continue  # it ended meanwhile
        processes += 1
    return Stats(processes, threads, pages * os.sysconf("SC_PAGE_SIZE"))
