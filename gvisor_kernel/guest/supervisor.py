"""PID 1's event loop: the link on one side, the kernel's process and sockets on the other.

One thread and one poll. Everything that is waited for is polled, so an idle supervisor uses no CPU.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections import deque
from dataclasses import replace
from typing import Deque, Dict, List, Optional, Tuple

from gvisor_kernel.guest import process
from gvisor_kernel.guest.carried_link import CarriedLink
from gvisor_kernel.guest.connection_file import prepare_connection, unix_addresses
from gvisor_kernel.guest.counts import count_processes
from gvisor_kernel.guest.crowd import Crowd
from gvisor_kernel.guest.egress import Egress
from gvisor_kernel.guest.forked_kernel import find_forked_argv
from gvisor_kernel.guest.guest_log import GuestLog
from gvisor_kernel.guest.identity import as_init, as_kernel
from gvisor_kernel.guest.notice import explain_drop, make_replacement
from gvisor_kernel.guest.pace import Pace
from gvisor_kernel.guest.passage import Passage
from gvisor_kernel.guest.process import LINK_FD, KernelProcess, StartError
from gvisor_kernel.guest.questions import Questions
from gvisor_kernel.guest.relay import Relay
from gvisor_kernel.guest.service import Service
from gvisor_kernel.guest.workspace import (
    OUTPUTS,
    refresh_workspace,
    show_outputs,
    without_outputs,
)
from gvisor_kernel.link import (
    Channel,
    Connection,
    Diverted,
    Exited,
    IdleQuery,
    IdleReply,
    LocalProtocolError,
    Message,
    Ping,
    RemoteProtocolError,
    Resume,
    Resumed,
    Signal,
    Start,
    Started,
    Stop,
    StreamFrames,
    StreamsEnded,
)
from gvisor_kernel.link.service_messages import FIRST_QUESTION, decode_call

READ_SIZE = 256 * 1024
WAIT_MS = 10_000
"""Milliseconds of a wait for the host."""
MISSED_WAITS = 6
"""Number of waits in a row without a byte from the host after which it is considered dead; the
host sends a PING every 5 s. Waits are counted, not time: a machine that slept was not silent."""
DRAIN_SECONDS = 3.0
"""Seconds without a byte written after which a dead kernel's last messages are given up. The host
reads slowly while other kernels are busy."""
MAX_DRAIN_SECONDS = 30.0
"""Seconds after which they are given up in any case: answers to heartbeats are written as well."""
DRAIN_MS = 50
"""Milliseconds between checks whether those messages have left."""
LINK_PLACEHOLDER = "{link}"
"""Placeholder in the argv of a START: the descriptor of the socket on which to speak frames."""
CANNOT_START = 127
"""Exit status of a kernel whose program could not be started, as in a shell."""


class HostGone(Exception):
    """The link ended, failed or fell silent, or the host sent STOP: end the sandbox."""


class Supervisor:
    """Serves one link until the host is gone. ``link_in`` and ``link_out`` are descriptors.

    ``carried``: what is between the link and these descriptors, where they may lose bytes.
    """

    def __init__(
        self,
        connection: Connection,
        link_in: int,
        link_out: int,
        carried: Optional[CarriedLink] = None,
    ) -> None:
        self.connection = connection
        self.link_in = link_in
        self.link_out = link_out
        self._carried = carried
        self.kernel: Optional[KernelProcess] = None
        self.relay: Optional[Relay] = None
        self.passage: Optional[Passage] = None
        """While there is a kernel, one of both: the relay for ZMQ, the passage for frames."""
        self.imported = False
        """Whether this process has imported what a kernel needs, so that a fork can be a kernel."""
        self._signing: Optional[Tuple[str, str]] = None
        """Key and scheme of the kernel's signatures. Those of a relayed kernel never change."""
        self._pending = memoryview(b"")
        self._held: Deque[Message] = deque()
        self._pace: Optional[Pace] = None
        self._drain_until: Optional[float] = None
        self._drain_end = 0.0
        self._crowd = Crowd()
        self._log = GuestLog(connection)
        self._egress = Egress(connection, self._log)
        self._service = Service(connection, self._log)
        self._questions = Questions(connection, self._log)
        os.set_blocking(link_out, False)
        with as_init():  # what a kernel's uid makes in PID 1, a kernel may open
            self._wake, wake_write = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def send_hello(self) -> None:
        """Send the HELLO. Called before anything that takes time."""
        self._flush()

    def run(self) -> None:
        """Serve the link.

        :raises HostGone: when the sandbox must end
        """
        heard = time.monotonic()
        missed = 0
        while True:
            self._flush()
            ready = self._wait()
            now = time.monotonic()
            if self.link_in in ready:
                heard, missed = now, 0
            elif now - heard >= WAIT_MS / 1000:
                # Count one wait, however long it was: a machine that slept missed only one.
                heard, missed = now, missed + 1
            if missed >= MISSED_WAITS:
                raise HostGone(f"no bytes from the host in {MISSED_WAITS} waits of 10 s")
            if self.link_in in ready:
                self._read_link()
            if self._wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake, 4096)
                self._reap()
            if self.kernel is not None:
                self._pass_output(ready)
            if self.relay is not None:
                self._pass_messages(ready)
            elif self.passage is not None:
                self._pass_frames(ready)
            self._egress.turn(ready)
            self._service.turn(ready)
            self._questions.turn(ready)
            self._crowd.update()
            self._finish_exit()

    # -- waiting ---------------------------------------------------------------------------------

    def _wait(self) -> Dict[int, int]:
        """Return the descriptors that are ready; empty after WAIT_MS without any."""
        wanted: List[Tuple[int, int]] = [(self.link_in, select.POLLIN), (self._wake, select.POLLIN)]
        if self._pending if self._carried is None else self._carried.wants_to_write:
            wanted.append((self.link_out, select.POLLOUT))
        if self.kernel is not None:
            wanted.extend((fd, select.POLLIN) for fd in self.kernel.output)
        timeout = WAIT_MS if self._drain_until is None else DRAIN_MS
        if self.passage is not None and self.passage.events:
            wanted.append((self.passage.fileno(), self.passage.events))
        if self.relay is not None:
            wanted.extend(self.relay.poll_events())
        wanted.extend((fd, select.POLLIN) for fd in self._egress.descriptors)
        wanted.extend(self._service.polled)
        wanted.extend(self._questions.polled)
        for part in (self.passage, self.relay, self._crowd, self._egress, self._questions):
            if part is not None and part.wait_ms is not None:
                timeout = min(timeout, part.wait_ms)
        poller = select.poll()
        events_of: Dict[int, int] = {}
        for fd, events in wanted:
            events_of[fd] = events_of.get(fd, 0) | events
        for fd, events in events_of.items():
            poller.register(fd, events)
        return dict(poller.poll(timeout))

    # -- the link --------------------------------------------------------------------------------

    def _flush(self) -> None:
        """Write what the descriptor accepts without blocking."""
        carried = self._carried
        while True:
            if not self._pending:
                self._egress.pump()
                self._pending = memoryview(self.connection.data_to_send(READ_SIZE))
                if not self._pending:
                    self._flush_carried()
                    return
            try:
                if carried is None:
                    written = os.write(self.link_out, self._pending)
                else:
                    written = carried.write(self._pending)
            except BlockingIOError:
                return
            except OSError as error:
                raise HostGone(f"cannot write to the link: {error}") from error
            self._pending = self._pending[written:]
            if self._drain_until is not None:
                self._drain_until = min(time.monotonic() + DRAIN_SECONDS, self._drain_end)

    def _flush_carried(self) -> None:
        """Write what the carrier has: confirmations, and what is sent again after a cut."""
        if self._carried is not None:
            try:
                self._carried.flush()
            except OSError as error:
                raise HostGone(f"cannot write to the link: {error}") from error

    def _has_unsent(self) -> bool:
        """Return whether frames wait for the host that the connection does not count."""
        return bool(self._pending) or self._egress.busy

    def _read_link(self) -> None:
        data = self._receive()
        if data is None:
            return
        if not data:
            raise HostGone("the host closed the link")
        try:
            self.connection.receive_data(data)
            self._handle_events()
        except RemoteProtocolError as error:
            raise HostGone(f"the host violated the link protocol: {error}") from error

    def _receive(self) -> Optional[bytes]:
        """Read bytes of the link; None if there are none yet."""
        if self._carried is None:
            return os.read(self.link_in, READ_SIZE)
        try:
            return self._carried.read()
        except (RemoteProtocolError, OSError) as error:
            raise HostGone(f"the link's connection cannot be used: {error}") from error

    def _handle_events(self) -> None:
        while True:
            event = self.connection.next_event()
            if event is None:
                return
            if isinstance(event, Message):
                if event.channel is not Channel.SERVICE:
                    self._held.append(event)
                elif decode_call(event.parts[0]) >= FIRST_QUESTION:
                    self._questions.receive(event)
                else:
                    self._service.receive(event)
            elif isinstance(event, Diverted):
                if self.passage is not None:
                    self.passage.put(event.frame)
            elif isinstance(event, StreamFrames):
                self._egress.receive(event.frames)
            elif isinstance(event, StreamsEnded):
                self._egress.end_streams()
            elif isinstance(event, Start):
                self._start_kernel(event)
            elif isinstance(event, Resume):
                self._resume_kernel(event)
            elif isinstance(event, Signal):
                self._send_signal(event)
            elif isinstance(event, Ping):
                self.connection.send(count_processes())
            elif isinstance(event, IdleQuery):
                self._answer_idle_query(event)
            elif isinstance(event, Stop):
                raise HostGone("the host sent STOP")

    # -- the kernel ------------------------------------------------------------------------------

    def _start_kernel(self, start: Start) -> None:
        self._drop_held()
        self._egress.start(start.egress)
        self._questions.begin()
        self._service.stop()
        environment = self._show_outputs(dict(start.environment))
        self._service.begin(environment, start.cwd)
        self._signing = start.key, start.signature_scheme
        argv = list(start.argv)
        own_end = kernel_end = None
        if LINK_PLACEHOLDER in argv:
            own_end, kernel_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            argv = [str(LINK_FD) if word == LINK_PLACEHOLDER else word for word in argv]
        self.connection.diverts = kernel_end is not None
        try:
            argv, addresses = prepare_connection(argv, start.run, start.key, start.signature_scheme)
            self.kernel = process.start_kernel(
                argv,
                environment,
                start.cwd,
                kernel_end.fileno() if kernel_end is not None else None,
                find_forked_argv(argv, environment) if self.imported else None,
            )
            self._pace = Pace(self.kernel)
            if own_end is not None:
                self.passage = Passage(
                    own_end, self.kernel, self.connection, self._log, self._has_unsent
                )
            else:
                self.relay = Relay(addresses)
        except (OSError, StartError) as error:
            self._log.write(f"{error}\n")
            if self.kernel is not None:
                self.kernel.signal_group(signal.SIGKILL)
                return
            self._egress.stop()
            self._questions.stop()
            self._service.stop()
            self.connection.send(Exited(start.run, CANNOT_START))
            return
        finally:
            if kernel_end is not None:
                kernel_end.close()
        self.connection.send(Started(start.run))

    def _resume_kernel(self, resume: Resume) -> None:
        """Handle a restore from a snapshot: the host and the mounted directories are new ones."""
        self._drop_held()
        self._egress.start(resume.egress)
        self._questions.begin()
        self._service.stop()
        with as_kernel():
            refresh_workspace()
        environment = self._show_outputs(dict(resume.environment))
        self._service.resume(environment, resume.cwd)
        resume = replace(resume, environment=tuple(environment.items()))
        if self.passage is not None:
            self.passage.resume(resume)
        else:
            self.connection.send(Resumed(resume.run, False))

    def _show_outputs(self, environment: Dict[str, str]) -> Dict[str, str]:
        """Return the environment of the kernel; it knows where the outputs are."""
        with as_kernel():
            failure = show_outputs(environment)
        if not failure:
            return environment
        self._log.write(f"{failure}; what is kept is written to {OUTPUTS}\n")
        return without_outputs(environment)

    def _send_signal(self, event: Signal) -> None:
        if self.kernel is None:
            return
        if event.signum == signal.SIGKILL:
            process.kill_everything()
            return
        if event.signum == signal.SIGINT:
            self._crowd.pause_others(self.kernel)
        self.kernel.signal_group(event.signum)
        if self.passage is not None:
            self.passage.forward_signal(event)
        if self._pace is not None:
            self._pace.run_for_signal()

    def _reap(self) -> None:
        if process.reap(self.kernel) and self._drain_until is None:
            process.kill_everything()
            self._service.stop()
            self._service.tell_left()
            self._drain_until = time.monotonic() + DRAIN_SECONDS
            self._drain_end = time.monotonic() + MAX_DRAIN_SECONDS

    def _finish_exit(self) -> None:
        """Send EXIT once the kernel's last messages are sent, or have taken too long."""
        if self._drain_until is None or self.kernel is None:
            return
        drained = (
            (self.relay is None or self.relay.finished)
            and (self.passage is None or self.passage.finished)
            and not self.kernel.output
            and not self.connection.queued()
        )
        if not drained and time.monotonic() < self._drain_until:
            return
        assert self.connection.run is not None
        assert self.kernel.status is not None
        self._egress.stop()
        self._questions.stop()
        self._service.stop()
        self.connection.send(Exited(self.connection.run, self.kernel.status))
        for fd in tuple(self.kernel.output):
            self.kernel.close_output(fd)
        for way in (self.relay, self.passage):
            if way is not None:
                way.close()
        self.kernel = self.relay = self.passage = self._pace = self._drain_until = None
        self._drop_held()

    def _drop_held(self) -> None:
        """Drop messages that no kernel will receive."""
        while self._held:
            self.connection.consumed(self._held.popleft())

    # -- frames of a kernel that speaks frames itself ----------------------------------------------

    def _pass_frames(self, ready: Dict[int, int]) -> None:
        passage = self.passage
        assert passage is not None
        if ready.get(passage.fileno(), 0) & ~select.POLLOUT:
            passage.read()
            self._crowd.note_output()
        direct = passage.find_mode()
        if direct is False:
            self._use_relay(passage)
            return
        if direct:
            self._answer_heartbeats()
            if self._drain_until is None:
                passage.kill_if_closed()
        passage.flush()

    def _use_relay(self, passage: Passage) -> None:
        """Switch to ZMQ, beginning with the first message for the kernel."""
        assert self.connection.run is not None
        passage.close()
        self.passage = None
        self.relay = Relay(unix_addresses(self.connection.run))
        self.connection.diverts = False
        for frame in passage.early:
            self.connection.receive_data(frame)
        self._handle_events()

    def _answer_idle_query(self, query: IdleQuery) -> None:
        if self.passage is not None:
            self.passage.answer_idle_query(query)
        else:
            # A relayed kernel may always have a timer.
            waits = self.connection.queued() or self._has_unsent() or self._held
            silent = self.relay is not None and self.relay.silent and not waits
            self.connection.send(IdleReply(query.run, False, unknown=silent))

    def _answer_heartbeats(self) -> None:
        """Answer heartbeats for the kernel: they say that its process exists."""
        while self._held:
            message = self._held.popleft()
            self.connection.send_message(message.channel, message.parts)
            self.connection.consumed(message)

    # -- messages and output of the kernel -------------------------------------------------------

    def _pass_messages(self, ready: Dict[int, int]) -> None:
        assert self.relay is not None
        self.relay.update()
        if self.relay.listening:
            while self._held:
                message = self._held.popleft()
                if not self.relay.send(message.channel, message.parts):
                    self._log.write_limited(
                        f"Dropped a message on {message.channel.name.lower()}:"
                        " the kernel violated the ZMTP protocol there.\n"
                    )
                self.connection.consumed(message)
        for channel, parts in self.relay.receive(ready):
            self._crowd.note_output()
            try:
                self.connection.send_message(channel, parts)
            except LocalProtocolError as error:
                self._report_drop(channel, parts, explain_drop(channel, error))
        for channel, reason in self.relay.take_failures():
            self._log.write_limited(
                f"Killed the kernel: it violated the ZMTP protocol on {channel.name.lower()}:"
                f" {reason}.\n"
            )
            if self.kernel is not None:
                self.kernel.signal_group(signal.SIGKILL)
        if self._pace is not None:
            self._pace.update(self.connection.queued(Channel.IOPUB))

    def _report_drop(self, channel: Channel, parts: List[bytes], words: str) -> None:
        self._log.write_limited(words)
        replacement = (
            make_replacement(channel, parts, *self._signing, words) if self._signing else None
        )
        if replacement is not None:
            self.connection.send_message(channel, replacement)

    def _pass_output(self, ready: Dict[int, int]) -> None:
        """Forward what the kernel wrote to stdout and stderr, within its budget."""
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
            else:
                self._log.forward_output(source, data)
