"""The host's end of one link: its descriptors on the loop, its liveness, its sleep.

Events go to its owner, but for the answers to what is asked here.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from gvisor_kernel import __version__
from gvisor_kernel.bridge.idle import IdleWatch, Sleep
from gvisor_kernel.bridge.sharing import Share
from gvisor_kernel.link import (
    Ask,
    Channel,
    Connection,
    Event,
    Hello,
    LocalProtocolError,
    Log,
    Message,
    Ping,
    Pong,
    Quiet,
    RemoteProtocolError,
    Resume,
    Resumed,
    Started,
)
from gvisor_kernel.link.frames import Part
from gvisor_kernel.link.state import Role, State

READ_SIZE = 256 * 1024
MIN_READ = 4 * 1024
TURN_SECONDS = 0.01
"""How long one read may occupy the loop, which other kernels share. What takes longer, a flood of
the smallest frames, is read in smaller pieces."""
LAST_BYTES = 4 * 1024 * 1024
"""Read after the end of the sandbox's process: far more than a pipe holds, should one write on."""
LOOK_SECONDS = 0.1
PING_SECONDS = 5.0
WAIT_SECONDS = 10.0
MISSED_WAITS = 6
"""Waits in a row without a byte before a sandbox counts as dead. Waits, not time: while the
machine sleeps the loop counts none."""
MOVES = (Message, Log, Started, Resumed)
"""What comes from a sandbox in which something goes on."""


class LinkedSandbox(Protocol):
    """What the bridge needs of a sandbox; every runtime's Sandbox has it."""

    link_in: int
    link_out: int
    exit_fd: int
    helper_fd: int
    pauses: bool

    def poll(self) -> int | None: ...
    def memory_used(self) -> int | None: ...
    def memory_kills(self) -> int: ...
    def stderr_tail(self) -> str: ...
    def find_panic(self) -> str: ...
    def kill(self) -> None: ...
    def pause(self) -> None: ...
    def is_busy(self) -> bool: ...
    def resume(self) -> None: ...
    def close(self) -> None: ...


class SandboxLink:
    """Reads and writes one link until it ends; then calls ``on_end(reason)`` once."""

    def __init__(
        self,
        sandbox: LinkedSandbox,
        on_event: Callable[[Event], None],
        on_end: Callable[[str], None],
        on_room: Callable[[], None],
        share: Share,
        resume: Resume | None = None,
        sleep: Sleep | None = None,
    ) -> None:
        """``resume``: what to tell a guest that was restored. Raises LocalProtocolError.

        ``share``: what it may send, which is left at the end. ``sleep``: None for a sandbox that is
        never stopped.
        """
        hello = Hello(facts=(("release", __version__),))
        self.connection = Connection(Role.HOST, hello, resume)
        self.ended = False
        self.stopped = False
        """The sandbox is stopped, and goes on with the next frame that is written to it."""
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
        self._heard = True
        self._missed = 0
        self._token = 0
        self._quiesced: asyncio.Future[None] | None = None
        self._sleep = sleep
        self._idle = IdleWatch(self._ask) if sleep is not None else None
        self._alone = False
        """Nothing was written since the guest was asked."""
        self._timers: list[asyncio.TimerHandle] = []
        self._loop.add_reader(sandbox.link_out, self._read)
        self._loop.add_reader(sandbox.exit_fd, self._exited)
        if sandbox.helper_fd >= 0:
            self._loop.add_reader(sandbox.helper_fd, self._lost_helper)
        self._start_timers()
        self.flush()

    # -- reading ---------------------------------------------------------------------------------

    def _read(self) -> None:
        """One read a turn: other kernels share this loop, and credit must go back soon."""
        size = self._read_once()
        self.flush()
        pause = self._share.take(size)
        if pause and not self.ended:
            self._loop.remove_reader(self._sandbox.link_out)
            self._loop.call_later(pause, self._read_on)

    def _read_on(self) -> None:
        if not self.ended:
            self._loop.add_reader(self._sandbox.link_out, self._read)

    def _read_once(self) -> int:
        """How many bytes were read; 0 if there is nothing, or never will be."""
        try:
            data = os.read(self._sandbox.link_out, self._read_size)
        except BlockingIOError:
            return 0
        except OSError as error:
            self.end(f"the link cannot be read: {error}")
            return 0
        if not data:
            self.end("the sandbox ended")
            return 0
        self._heard = True
        self._go_on()  # it was not idle
        began = self._loop.time()
        try:
            self.connection.receive_data(data)
        except RemoteProtocolError as error:
            self.end(f"the sandbox broke the rules of the link: {error}")
            return 0
        self._pass_events()
        self._adapt(len(data), self._loop.time() - began)
        return len(data)

    def _pass_events(self) -> None:
        while not self.ended:
            event = self.connection.next_event()
            if event is None:
                break
            if isinstance(event, Pong) and self._quiesced is not None:
                self._settle(event)
            elif isinstance(event, Quiet):
                self._take_answer(event)
            else:
                if isinstance(event, MOVES) and getattr(event, "channel", None) is not Channel.HB:
                    self.moved()
                self._on_event(event)

    def _adapt(self, size: int, seconds: float) -> None:
        """Read less at once, or more again."""
        if seconds > TURN_SECONDS:
            self._read_size = max(MIN_READ, min(size, self._read_size) // 2)
        elif seconds < TURN_SECONDS / 4:
            self._read_size = min(READ_SIZE, 2 * self._read_size)

    def _lost_helper(self) -> None:
        self.end("a process of it that it needs to reach files has ended")

    def _exited(self) -> None:
        """The runtime's process is gone: take what is still in the pipe, then end."""
        self._loop.remove_reader(self._sandbox.exit_fd)
        self._read_last()

    def _read_last(self) -> None:
        """One read a turn, likewise."""
        size = 0 if self.ended or self._last_bytes <= 0 else self._read_once()
        if size:
            self._last_bytes -= size
            self._loop.call_soon(self._read_last)
        else:
            self.end("the sandbox's process ended")

    # -- writing ---------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write what the connection has, now or as soon as the pipe takes it."""
        if self.ended:
            return
        while True:
            if not self._pending:
                self._pending = memoryview(self.connection.data_to_send(READ_SIZE))
                if not self._pending:
                    self._watch_writable(False)
                    return
                self._alone = False
                self._go_on()
            try:
                written = os.write(self._sandbox.link_in, self._pending)
            except BlockingIOError:
                self._watch_writable(True)
                return
            except OSError:  # EPIPE: the reading side tells the reason
                self._watch_writable(False)
                return
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
        """Send a message to the kernel. Raises LocalProtocolError."""
        self.connection.send_message(channel, parts)
        if channel is not Channel.HB:
            self.moved()
        if channel is Channel.SHELL:
            self._share.note_use()
        self.flush()

    def hurry(self, seconds: float) -> None:
        """Read at once what comes, whatever other kernels do."""
        self._share.hurry(seconds)

    # -- liveness --------------------------------------------------------------------------------

    def _start_timers(self) -> None:
        self._heard, self._missed = True, 0
        self._timers = [
            self._loop.call_later(PING_SECONDS, self._ping),
            self._loop.call_later(WAIT_SECONDS, self._count_wait),
        ]

    def _ping(self) -> None:
        if self.connection.state not in (State.OPENING, State.CLOSED) and self._quiesced is None:
            self._token += 1
            with suppress(LocalProtocolError):
                self.connection.send(Ping(self._token))
            self.flush()
        self._timers[0] = self._loop.call_later(PING_SECONDS, self._ping)

    def quiesce(self) -> asyncio.Future[None]:
        """Send no ping any more; done once the guest has read all that was written.

        What waits unread in the pipe would become part of an image that is taken now.
        """
        if self._idle is not None:
            self._idle.end()
            self._idle = None
        self._go_on()
        self._timers[0].cancel()
        self._quiesced = self._loop.create_future()
        self._token += 1
        self.connection.send(Ping(self._token))
        self.flush()
        return self._quiesced

    def _settle(self, pong: Pong) -> None:
        assert self._quiesced is not None
        if pong.token == self._token and not self._quiesced.done() and not self._pending:
            self._quiesced.set_result(None)

    def _count_wait(self) -> None:
        self._missed = 0 if self._heard else self._missed + 1
        self._heard = False
        if self._missed >= MISSED_WAITS:
            self.end(f"the sandbox was silent for {MISSED_WAITS * WAIT_SECONDS:.0f} s")
            return
        self._timers[1] = self._loop.call_later(WAIT_SECONDS, self._count_wait)

    # -- asleep ----------------------------------------------------------------------------------

    def moved(self) -> None:
        """Something goes on that is worth to stay awake for."""
        if self._idle is not None:
            self._idle.moved()

    def _ask(self) -> None:
        run = self.connection.run
        if self.connection.state is not State.RUNNING or run is None or not self._is_free():
            return
        with suppress(LocalProtocolError):
            self.connection.send(Ask(run))
        self.flush()
        self._alone = True

    def _is_free(self) -> bool:
        """Whether nothing waits to be sent, and the owner has no objection."""
        waits = self._pending or self.connection.queued()
        return not waits and self._sleep is not None and self._sleep.allowed()

    def _take_answer(self, answer: Quiet) -> None:
        if not answer.quiet or self._idle is None or self.stopped or not self._is_free():
            return
        if not self._alone:
            self._idle.ask_soon()
            return
        self._idle.rest()
        for timer in self._timers:
            timer.cancel()
        self.stopped = True
        self._sandbox.pause()
        self._loop.call_later(LOOK_SECONDS, self._look_at_rest)
        self._tell_change()

    def _look_at_rest(self) -> None:
        """What ran when the sandbox was stopped may go on running: then it is stopped later."""
        if self.stopped and not self.ended and self._sandbox.is_busy():
            self._go_on()

    def _tell_change(self) -> None:
        if self._sleep is not None:
            self._sleep.changed(self.stopped)

    def _go_on(self) -> None:
        """Let a stopped sandbox run. Nobody has counted its silence."""
        if self.stopped and not self.ended:
            self.stopped = False
            self._sandbox.resume()
            self._start_timers()
            self._tell_change()
            self.moved()

    def end(self, reason: str) -> None:
        """Stop reading and writing, kill the sandbox, tell the owner. Idempotent."""
        if self.ended:
            return
        self.ended = True
        self.stopped = False
        self._share.leave()
        if self._idle is not None:
            self._idle.end()
        for timer in self._timers:
            timer.cancel()
        self._watch_writable(False)
        for fd in (self._sandbox.link_out, self._sandbox.exit_fd, self._sandbox.helper_fd):
            if fd >= 0:
                self._loop.remove_reader(fd)
        self._sandbox.kill()
        self._on_end(reason)


async def close_sandbox(sandbox: LinkedSandbox) -> None:
    """``sandbox.close`` in a thread of its own: one that has much to copy out of an engine keeps
    no worker from those that start. Here, when this process ends and has no threads any more."""
    loop = asyncio.get_running_loop()
    closed: asyncio.Future[None] = loop.create_future()

    def tell(error: BaseException | None) -> None:
        if closed.done():
            return
        if error is None:
            closed.set_result(None)
        else:
            closed.set_exception(error)

    def close() -> None:
        error: BaseException | None = None
        try:
            sandbox.close()
        except BaseException as raised:
            error = raised
        with suppress(RuntimeError):  # the loop is closed, and nobody waits
            loop.call_soon_threadsafe(tell, error)

    try:
        threading.Thread(target=close, name="gvisor-kernel-close").start()
    except RuntimeError:
        sandbox.close()
        return
    await closed
