"""The host's end of one link: reads and writes it, and stops an idle sandbox.

``link_streams.py`` has its streams, ``sleep.py`` when its guest counts as dead. Events go to the
owner, except the answers to this module's own questions.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from gvisor_kernel import __version__
from gvisor_kernel.bridge.limits import Share
from gvisor_kernel.bridge.link_streams import LinkStreams
from gvisor_kernel.bridge.linked_sandbox import LinkedSandbox, PausableSandbox
from gvisor_kernel.bridge.sleep import (
    IdleWatch,
    Liveness,
    NapPolicy,
    NapWatch,
    RestWatch,
    SleepPolicy,
)
from gvisor_kernel.link import (
    Channel,
    Connection,
    Event,
    Exited,
    Hello,
    IdleQuery,
    IdleReply,
    LocalProtocolError,
    Log,
    Message,
    Ping,
    Pong,
    RemoteProtocolError,
    Resume,
    Resumed,
    Started,
    Stats,
    StreamFrames,
    Trim,
)
from gvisor_kernel.link.frames import Part
from gvisor_kernel.link.state import Role, State

READ_SIZE = 256 * 1024
MIN_READ = 4 * 1024
TURN_SECONDS = 0.01
"""Seconds that one read may occupy the loop, which other kernels share. If a read takes longer, as
with a flood of the smallest frames, the next ones are smaller."""
LAST_BYTES = 4 * 1024 * 1024
"""Bytes read after the end of the sandbox's process: far more than a pipe holds. This bounds what a
process that survived it may write."""
POLL_SECONDS = 0.1
SETTLE_SECONDS = 1.0
"""Seconds that a kernel has to give memory back until it is measured how much that was."""
MIN_GIVEN_BACK = 1024 * 1024
"""Bytes that are worth a line on disk."""
ACTIVITY_EVENTS = (Message, Log, Started, Resumed, StreamFrames)
"""Events that show activity in the sandbox."""


class SandboxLink:
    """Reads and writes one link until it ends, then calls ``on_end(reason)`` once."""

    def __init__(
        self,
        sandbox: LinkedSandbox,
        on_event: Callable[[Event], None],
        on_end: Callable[[str], None],
        on_room: Callable[[], None],
        share: Share,
        resume: Resume | None = None,
        sleep: SleepPolicy | None = None,
        is_working: Callable[[], bool] = lambda: False,
    ) -> None:
        """``resume`` is sent to a restored guest. ``share`` limits reads, and is closed at the end.

        ``sleep`` is None for a sandbox that is never stopped. ``is_working`` returns whether the
        kernel has a request to answer.

        :raises LocalProtocolError: when ``resume`` is too large
        """
        hello = Hello(facts=(("release", __version__),))
        self.connection = Connection(Role.HOST, hello, resume)
        self.ended = False
        self.stopped = False
        """The sandbox is stopped. The next frame that is written resumes it."""
        self.received = self.sent = 0
        """Bytes so far."""
        self._sandbox = sandbox
        self._loop = asyncio.get_running_loop()
        self._on_event = on_event
        self._on_end = on_end
        self._on_room = on_room
        self._share = share
        self._read_size = READ_SIZE
        self._last_bytes = LAST_BYTES
        self._pending = memoryview(b"")
        self._writing = False
        self._token = 0
        self._quiesced: asyncio.Future[None] | None = None
        self.streams = LinkStreams(self.connection, sandbox.link_in, self.flush)
        self._liveness = Liveness(self._ping, self.end)
        self._sleep = sleep
        self._idle = IdleWatch(self._send_idle_query) if sleep is not None else None
        self._is_working = is_working
        self._rest = RestWatch(self._give_back)
        self._stopper = cast(PausableSandbox, sandbox)
        """The same. Used only if there is ``sleep``."""
        self._naps = NapWatch(
            self._stopper,
            NapPolicy(self._may_sleep, self._ping_between_naps, self._on_nap, self._on_naps_end),
        )
        self._unwritten_since_query = False
        """Nothing was written since the last IDLE_QUERY to the guest."""
        self._loop.add_reader(sandbox.link_out, self._read)
        self._loop.add_reader(sandbox.exit_fd, self._on_process_exit)
        if sandbox.gofer_fd >= 0:
            self._loop.add_reader(sandbox.gofer_fd, self._on_helper_exit)
        self._liveness.start()
        self.flush()

    # -- reading ---------------------------------------------------------------------------------

    def _read(self) -> None:
        """Read once per event: other kernels share this loop, and credit must be returned soon."""
        began, control = time.thread_time(), self.connection.control_received
        size = self._read_once()
        seconds = time.thread_time() - began
        self.flush()
        pause = self._share.spend(size, self.connection.control_received - control, seconds)
        if pause and not self.ended:
            self._loop.remove_reader(self._sandbox.link_out)
            self._loop.call_later(pause, self._resume_reading)

    def _resume_reading(self) -> None:
        if not self.ended:
            self._loop.add_reader(self._sandbox.link_out, self._read)

    def _read_once(self) -> int:
        """Return the number of bytes read; 0 if there are none, or if the link has ended."""
        try:
            # no timeout: it is ready, or does not block
            data = os.read(self._sandbox.link_out, self._read_size)
        except BlockingIOError:
            return 0
        except OSError as error:
            self.end(f"the link cannot be read: {error}")
            return 0
        if not data:
            self.end("the sandbox ended")
            return 0
        self._liveness.note_received()
        self.received += len(data)
        if not self._naps.active:
            self._wake()  # the guest was not idle after all
        began = self._loop.time()
        try:
            self.connection.receive_data(data)
        except RemoteProtocolError as error:
            self.end(f"the sandbox violated the link protocol: {error}")
            return 0
        self._dispatch_events()
        self._adapt_read_size(len(data), self._loop.time() - began)
        return len(data)

    def _dispatch_events(self) -> None:
        while not self.ended:
            event = self.connection.next_event()
            if event is None:
                break
            if self._naps.active and not isinstance(event, (Pong, Stats)):
                self._wake()
            if isinstance(event, Pong):
                self._on_pong(event)
            elif isinstance(event, IdleReply):
                self._on_idle_reply(event)
            elif isinstance(event, StreamFrames):
                self.note_activity()
                self.streams.receive(event.frames)
            else:
                if isinstance(event, Exited):
                    self.streams.close()
                channel = getattr(event, "channel", None)
                if isinstance(event, ACTIVITY_EVENTS) and channel is not Channel.HB:
                    self.note_activity()
                if channel is Channel.SHELL:
                    self._rest.note_activity()
                self._on_event(event)

    def _adapt_read_size(self, size: int, seconds: float) -> None:
        """Adapt the size of the next read to the time that the last one took."""
        if seconds > TURN_SECONDS:
            self._read_size = max(MIN_READ, min(size, self._read_size) // 2)
        elif seconds < TURN_SECONDS / 4:
            self._read_size = min(READ_SIZE, 2 * self._read_size)

    def _on_helper_exit(self) -> None:
        self.end("the sandbox's file server process (gofer) ended")

    def _on_process_exit(self) -> None:
        """Read what is left in the pipe after the end of the runtime's process, then end."""
        self._loop.remove_reader(self._sandbox.exit_fd)
        self._read_remaining()

    def _read_remaining(self) -> None:
        """Read once per turn of the loop, as in ``_read``."""
        size = 0 if self.ended or self._last_bytes <= 0 else self._read_once()
        if size:
            self._last_bytes -= size
            self._loop.call_soon(self._read_remaining)
        else:
            self.end("the sandbox's process ended")

    # -- writing ---------------------------------------------------------------------------------

    def flush(self, wake: bool = True) -> None:
        """Write the connection's data, now or as soon as the pipe accepts it.

        ``wake``: data wakes a sandbox that is stopped or naps.
        """
        if self.ended:
            return
        while True:
            if not self._pending:
                self._pending = memoryview(
                    self.connection.data_to_send(READ_SIZE, self.streams.find_limit())
                )
                if not self._pending:
                    self._watch_writable(False)
                    self.streams.update()
                    return
                self._unwritten_since_query = False
                if wake:
                    self._wake()
            try:
                written = os.write(self._sandbox.link_in, self._pending)
            except BlockingIOError:
                self._watch_writable(True)
                return
            except OSError:  # EPIPE: the reading side reports the reason
                self._watch_writable(False)
                return
            self.sent += written
            self._pending = self._pending[written:]

    def _watch_writable(self, wanted: bool) -> None:
        if wanted != self._writing:
            self._writing = wanted
            if wanted:
                self._loop.add_writer(self._sandbox.link_in, self._write_more)
            else:
                self._loop.remove_writer(self._sandbox.link_in)

    def _write_more(self) -> None:
        self.flush()
        self._on_room()

    def send_message(self, channel: Channel, parts: list[Part]) -> None:
        """Send a message to the kernel.

        :raises LocalProtocolError: when the link cannot carry it, or no kernel runs
        """
        self.connection.send_message(channel, parts)
        if channel is not Channel.HB:
            self.note_activity()
        if channel is Channel.SHELL:
            self._share.note_use()
            self._rest.note_activity()
            self.streams.note_request()
        self.flush()

    def suspend_limit(self, seconds: float) -> None:
        """Read without a rate limit for ``seconds``."""
        self._share.suspend_limit(seconds)

    # -- liveness --------------------------------------------------------------------------------

    def _ping(self) -> None:
        if self._quiesced is None and not self._naps.active:
            self._send_ping()

    def _send_ping(self, wake: bool = True) -> None:
        if self.connection.state not in (State.OPENING, State.CLOSED):
            self._token += 1
            with suppress(LocalProtocolError):
                self.connection.send(Ping(self._token))
            self.flush(wake)

    def quiesce(self) -> asyncio.Future[None]:
        """Stop pings and idle queries; the future is done when the guest has read all data.

        Data that is still in the pipe would become part of a snapshot.
        """
        self._rest.end()
        if self._idle is not None:
            self._idle.end()
            self._idle = None
        self._wake()
        self._liveness.stop_pings()
        self._quiesced = self._loop.create_future()
        self._token += 1
        self.connection.send(Ping(self._token))
        self.flush()
        return self._quiesced

    def suspend_timers(self) -> None:
        """Take no silence for a death, until ``go_on``: the sandbox does not run for a while."""
        self._liveness.stop()

    def go_on(self) -> None:
        """Go on after ``quiesce``."""
        self._quiesced = None
        self._rest = RestWatch(self._give_back)
        self._idle = IdleWatch(self._send_idle_query) if self._sleep is not None else None
        self._liveness.stop()
        self._liveness.start()
        self.note_activity()

    def _on_pong(self, pong: Pong) -> None:
        if self._quiesced is None:
            self._naps.note_pong()
        elif pong.token == self._token and not self._quiesced.done() and not self._pending:
            self._quiesced.set_result(None)

    # -- asleep ----------------------------------------------------------------------------------

    def note_activity(self) -> None:
        """Note activity, for which the sandbox has to stay awake."""
        self._wake()
        if self._idle is not None:
            self._idle.note_activity()

    def trim(self) -> bool:
        """Ask the kernel to give back memory that it keeps; return whether it can be asked."""
        run = self.connection.run
        if self.ended or self.connection.state is not State.RUNNING or run is None or self._pending:
            return False  # what a guest does not read must not grow
        self.connection.send(Trim(run))
        self.flush()
        return True

    def _give_back(self, short: bool) -> bool:
        """Ask for the memory of a kernel that rests or, if the host is short, of a busy one."""
        before = self._sandbox.memory_used()
        if (self._is_working() and not short) or not self.trim():
            return False
        self._loop.call_later(SETTLE_SECONDS, self._note_given_back, before)
        return True

    def _note_given_back(self, before: int | None) -> None:
        after = self._sandbox.memory_used()
        if self.ended or self._rest.active or before is None or after is None:
            return  # it has worked meanwhile
        if before - after >= MIN_GIVEN_BACK:
            with suppress(RuntimeError):  # this process is exiting
                self._loop.run_in_executor(None, self._sandbox.note_given_back, before - after)

    @property
    def answers_heartbeats(self) -> bool:
        """Return whether the owner answers heartbeats: the guest lived when its sandbox stopped."""
        return self.stopped or self._naps.active

    def _send_idle_query(self) -> None:
        run = self.connection.run
        if self.connection.state is not State.RUNNING or run is None or not self._may_sleep():
            return
        if self._naps.active:
            return
        with suppress(LocalProtocolError):
            self.connection.send(IdleQuery(run))
        self.flush()
        self._unwritten_since_query = True

    def _may_sleep(self) -> bool:
        """Return whether no data waits to be sent, and the owner agrees to a stop."""
        waits = self._pending or self.connection.queued() or self.connection.queued_streams
        return not waits and self._sleep is not None and self._sleep.allowed()

    def _on_idle_reply(self, reply: IdleReply) -> None:
        if self._idle is None or self.stopped or not self._may_sleep():
            return
        if reply.unknown:
            self._naps.begin()
        if not reply.idle:
            return
        if not self._unwritten_since_query:
            self._idle.retry_soon()
            return
        self._stop_timers()
        self.stopped = True
        self._stopper.pause()
        self._loop.call_later(POLL_SECONDS, self._check_stopped)
        self._report_sleep()

    def _check_stopped(self) -> None:
        """Resume a stopped sandbox that is busy: a system call that ran at the stop may run on."""
        if self.stopped and not self.ended and self._stopper.is_busy():
            self._wake()

    def _stop_timers(self) -> None:
        if self._idle is not None:
            self._idle.pause()
        self._liveness.stop()

    def _on_nap(self, stopped: bool) -> None:
        if self.ended:
            return
        if stopped and not self.stopped:
            self._stop_timers()
            self.stopped = True
        if self._sleep is not None:
            self._sleep.changed(stopped)

    def _ping_between_naps(self) -> None:
        self._send_ping(wake=False)

    def _on_naps_end(self) -> None:
        """Go on after code has run: ask again later, whether or not there was a first nap."""
        if self.stopped:
            self._wake()

    def _report_sleep(self) -> None:
        if self._sleep is not None:
            self._sleep.changed(self.stopped)

    def _wake(self) -> None:
        """Resume a stopped sandbox, and restart the heartbeat timers."""
        self._naps.end()
        if self.stopped and not self.ended:
            self.stopped = False
            self._stopper.resume()
            self._liveness.start()
            self._report_sleep()
            if self._idle is not None:
                self._idle.note_activity()

    def end(self, reason: str) -> None:
        """Stop reading and writing, kill the sandbox and call ``on_end``. Idempotent."""
        if self.ended:
            return
        self.ended = True
        self.stopped = False
        self._naps.end()
        self._share.close()
        self.streams.close()
        self._rest.end()
        if self._idle is not None:
            self._idle.end()
        self._liveness.stop()
        self._watch_writable(False)
        for fd in (self._sandbox.link_out, self._sandbox.exit_fd, self._sandbox.gofer_fd):
            if fd >= 0:
                self._loop.remove_reader(fd)
        self._sandbox.kill()
        self._on_end(reason)
