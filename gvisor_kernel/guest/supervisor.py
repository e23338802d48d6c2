"""PID 1's event loop: the link on one side, the kernel's process and sockets on the other.

``host_link.py`` has the bytes of the link, ``passage.py`` and ``relay.py`` have what passes
between it and the kernel. One thread and one poll. Everything that is waited for is polled, so an
idle supervisor uses no CPU.
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

from gvisor_kernel.guest import process, workspace
from gvisor_kernel.guest.connection_file import SocketAddress, prepare_connection, unix_addresses
from gvisor_kernel.guest.egress_listener import EgressListener
from gvisor_kernel.guest.forked_kernel import find_forked_argv
from gvisor_kernel.guest.guest_log import GuestLog
from gvisor_kernel.guest.host_link import WAIT_MS, CarriedLink, HostGone, HostLink, Silence
from gvisor_kernel.guest.identity import as_init, as_kernel
from gvisor_kernel.guest.passage import Passage
from gvisor_kernel.guest.process import LINK_FD, KernelProcess, StartError
from gvisor_kernel.guest.processes import OtherProcesses, Pace, count_processes
from gvisor_kernel.guest.questions import Questions
from gvisor_kernel.guest.refusals import find_status
from gvisor_kernel.guest.relay import ZmqPassage
from gvisor_kernel.guest.service import Service
from gvisor_kernel.link import (
    ADOPT,
    Channel,
    Connection,
    Diverted,
    Exited,
    IdleQuery,
    IdleReply,
    Message,
    Ping,
    RemoteProtocolError,
    Resume,
    Resumed,
    Signal,
    Start,
    Started,
    StreamFrames,
    StreamsEnded,
    Trim,
)
from gvisor_kernel.link.service_messages import FIRST_QUESTION, decode_call

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


class Supervisor:
    """Serves one link until the host is gone. ``link_in`` and ``link_out`` are descriptors.

    ``carried``: what is between the link and these descriptors, where they may lose bytes.
    """

    def __init__(
        self,
        connection: Connection,
        link_in: int,
        link_out: int,
        carried: CarriedLink | None = None,
    ) -> None:
        self.connection = connection
        self.kernel: KernelProcess | None = None
        self.passage: Passage | None = None
        self.zmq_passage: ZmqPassage | None = None
        """One of both is set while there is a kernel: for frames or for ZMQ."""
        self.imported = False
        """True once this process has imported what a kernel needs: a fork can be a kernel."""
        self._signing = ("", "")
        """Key and scheme of the kernel's signatures. Those of a relayed kernel never change."""
        self._held: deque[Message] = deque()
        self._pace: Pace | None = None
        self._drain_until: float | None = None
        self._drain_end = 0.0
        self._others = OtherProcesses()
        self._log = GuestLog(connection)
        self._egress = EgressListener(connection, self._log)
        self._link = HostLink(connection, link_in, link_out, carried, self._egress.pump)
        self._service = Service(connection, self._log)
        self._questions = Questions(connection, self._log)
        with as_init():  # what a kernel's uid makes in PID 1, a kernel may open
            self._wake, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def send_hello(self) -> None:
        """Send the HELLO. Called before anything that takes time."""
        self._flush()

    def run(self) -> None:
        """Serve the link; after the end of the host that of the next one, if the kernel was saved.

        :raises HostGone: when the sandbox must end
        """
        while True:
            try:
                self._serve()
            except HostGone:
                if self.kernel is None or not self._link.wait_for_another():
                    raise
                self.connection.forget_half()

    def _serve(self) -> None:
        silence = Silence()
        while True:
            self._flush()
            ready = self._wait()
            has_heard = self._link.fileno() in ready
            silence.note_wait(has_heard)
            if has_heard:
                self._read_link()
            if self._wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake, 4096)
                self._reap()
            if self.kernel is not None:
                for source, data in self.kernel.read_output(ready):
                    self._log.forward_output(source, data)
            if self.zmq_passage is not None:
                self._pass_messages(self.zmq_passage, ready)
            elif self.passage is not None:
                self._pass_frames(self.passage, ready)
            self._egress.turn(ready)
            self._service.turn(ready)
            self._questions.turn(ready)
            self._others.update()
            self._finish_exit()

    # -- waiting ---------------------------------------------------------------------------------

    def _wait(self) -> dict[int, int]:
        """Return the descriptors that are ready; empty after WAIT_MS without any."""
        wanted = [*self._link.polled, (self._wake, select.POLLIN)]
        if self.kernel is not None:
            wanted.extend((fd, select.POLLIN) for fd in self.kernel.output)
        timeout = WAIT_MS if self._drain_until is None else DRAIN_MS
        if self.passage is not None and self.passage.events:
            wanted.append((self.passage.fileno(), self.passage.events))
        relay = self.zmq_passage.relay if self.zmq_passage is not None else None
        if relay is not None:
            wanted.extend(relay.poll_events())
        wanted.extend((fd, select.POLLIN) for fd in self._egress.descriptors)
        wanted.extend(self._service.polled)
        wanted.extend(self._questions.polled)
        for part in (self.passage, relay, self._others, self._egress, self._questions):
            if part is not None and part.wait_ms is not None:
                timeout = min(timeout, part.wait_ms)
        poller = select.poll()
        events_of: dict[int, int] = {}
        for fd, events in wanted:
            events_of[fd] = events_of.get(fd, 0) | events
        for fd, events in events_of.items():
            poller.register(fd, events)
        return dict(poller.poll(timeout))

    # -- the link --------------------------------------------------------------------------------

    def _flush(self) -> None:
        if self._link.flush() and self._drain_until is not None:
            self._drain_until = min(time.monotonic() + DRAIN_SECONDS, self._drain_end)

    def _has_unsent(self) -> bool:
        """Return whether frames wait for the host that the connection does not count."""
        return self._link.has_unsent or self._egress.busy

    def _read_link(self) -> None:
        data = self._link.read()
        if data is None:
            return
        try:
            self.connection.receive_data(data)
            self._handle_events()
        except RemoteProtocolError as error:
            raise HostGone(f"the host violated the link protocol: {error}") from error

    def _handle_events(self) -> None:
        while (event := self.connection.next_event()) is not None:
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
            elif isinstance(event, Trim) and self.passage is not None:
                self.passage.forward_trim(event)

    # -- the kernel ------------------------------------------------------------------------------

    def _start_kernel(self, start: Start) -> None:
        self._begin_run(start)
        environment = self._show_outputs(dict(start.environment), start.cwd)
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
                self._begin_zmq(self.kernel, addresses)
        except (OSError, StartError) as error:
            self._log.write(f"{error}\n")
            if self.kernel is not None:
                self.kernel.signal_group(signal.SIGKILL)
                return
            self._end_run(start.run, CANNOT_START)
            return
        finally:
            if kernel_end is not None:
                kernel_end.close()
        self.connection.send(Started(start.run))

    def _resume_kernel(self, resume: Resume) -> None:
        """Handle a restore from a snapshot: the host and the mounted directories are new ones."""
        self._begin_run(resume)
        with as_kernel():
            workspace.refresh_workspace()
        environment = dict(resume.environment)
        if resume.mode == ADOPT:
            environment = self._show_outputs(environment, resume.cwd)
        self._service.resume(environment, resume.cwd)
        resume = replace(resume, environment=tuple(environment.items()))
        if self.passage is not None:
            self.passage.resume(resume)
        else:
            self.connection.send(Resumed(resume.run, False))

    def _begin_run(self, begin: Start | Resume) -> None:
        self._drop_held()
        self._egress.start(begin.egress, find_status(dict(begin.environment)))
        self._questions.begin()
        self._service.stop()

    def _end_run(self, run: int, status: int) -> None:
        self._egress.stop()
        self._questions.stop()
        self._service.stop()
        self.connection.send(Exited(run, status))

    def _show_outputs(self, environment: dict[str, str], folder: str) -> dict[str, str]:
        """Return the environment of the kernel; it knows where the outputs are."""
        with as_kernel():
            failure = workspace.show_outputs(environment, folder)
        if not failure:
            return environment
        self._log.write(f"{failure}; what is kept is written to {workspace.OUTPUTS}\n")
        return workspace.without_outputs(environment)

    def _send_signal(self, event: Signal) -> None:
        if self.kernel is None:
            return
        if event.signum == signal.SIGKILL:
            process.kill_everything()
            return
        if event.signum == signal.SIGINT:
            self._others.pause(self.kernel)
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
        if time.monotonic() < self._service.held_until:
            return
        drained = (
            (self.zmq_passage is None or self.zmq_passage.relay.finished)
            and (self.passage is None or self.passage.finished)
            and not self.kernel.output
            and not self.connection.queued()
        )
        if not drained and time.monotonic() < self._drain_until:
            return
        assert self.connection.run is not None
        assert self.kernel.status is not None
        self._end_run(self.connection.run, self.kernel.status)
        for fd in tuple(self.kernel.output):
            self.kernel.close_output(fd)
        if self.passage is not None:
            self.passage.close()
        if self.zmq_passage is not None:
            self.zmq_passage.relay.close()
        self.kernel = self.passage = self.zmq_passage = self._pace = self._drain_until = None
        self._drop_held()

    def _drop_held(self) -> None:
        """Drop messages that no kernel will receive."""
        while self._held:
            self.connection.consumed(self._held.popleft())

    # -- frames of a kernel that speaks frames itself ----------------------------------------------

    def _pass_frames(self, passage: Passage, ready: dict[int, int]) -> None:
        if ready.get(passage.fileno(), 0) & ~select.POLLOUT:
            passage.read()
            self._others.note_output()
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
        assert self.kernel is not None
        passage.close()
        self.passage = None
        self._begin_zmq(self.kernel, unix_addresses(self.connection.run))
        self.connection.diverts = False
        for frame in passage.early:
            self.connection.receive_data(frame)
        self._handle_events()

    def _begin_zmq(self, kernel: KernelProcess, addresses: dict[Channel, SocketAddress]) -> None:
        log, signing = self._log, self._signing
        self.zmq_passage = ZmqPassage(addresses, kernel, self.connection, log, signing)

    def _answer_idle_query(self, query: IdleQuery) -> None:
        if self.passage is not None:
            self.passage.answer_idle_query(query)
        else:
            # A relayed kernel may always have a timer.
            waits = self.connection.queued() or self._has_unsent() or self._held
            zmq = self.zmq_passage
            silent = zmq is not None and zmq.relay.silent and not waits
            self.connection.send(IdleReply(query.run, False, unknown=silent))

    def _answer_heartbeats(self) -> None:
        """Answer heartbeats for the kernel: they say that its process exists."""
        while self._held:
            message = self._held.popleft()
            self.connection.send_message(message.channel, message.parts)
            self.connection.consumed(message)

    # -- messages of a kernel that speaks only ZMQ -----------------------------------------------

    def _pass_messages(self, passage: ZmqPassage, ready: dict[int, int]) -> None:
        passage.send(self._held)
        if passage.receive(ready):
            self._others.note_output()
        if self._pace is not None:
            self._pace.update(self.connection.queued(Channel.IOPUB))
