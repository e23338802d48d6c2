"""Between the link and a kernel that speaks frames itself: what passes, and what PID 1 says of it.

Frames pass unread. What is not for a kernel to say ends it, and so does silence that it cannot
break any more: here is when, and which words the log gets. Whether it speaks frames at all, the
kernel decides; until then all is kept that is meant for it.
"""

from __future__ import annotations

import os
import select
import signal
import time
from socket import socket
from typing import Callable, List, Optional

from gvisor_kernel.guest.connection_file import socket_prefix
from gvisor_kernel.guest.guest_log import GuestLog
from gvisor_kernel.guest.kernel_socket import RELAY, KernelSocket
from gvisor_kernel.guest.process import KernelProcess
from gvisor_kernel.guest.stillness import Stillness
from gvisor_kernel.link import (
    Ask,
    Channel,
    Connection,
    Quiet,
    RemoteProtocolError,
    Resume,
    Resumed,
    Signal,
)
from gvisor_kernel.link.frames import FrameType, encode_frame
from gvisor_kernel.link.state import State

AHEAD = 8 * 1024 * 1024
"""Bytes of a kernel's own frames that wait for the host; above, no more are taken from it. More
than its credit allows, so only a kernel that breaks the rules gets there."""
UNDECIDED_MS = 50
"""How often to look whether a kernel that has not spoken listens on ZMQ instead."""
MUTE_SECONDS = 3.0
"""How long a kernel may live on that has closed its socket: time to end by itself."""


class Passage:
    """For one kernel, from its start to its end, or until it gets the relay.

    ``unsent``: whether bytes wait for the host that the connection has given out already.
    """

    def __init__(
        self,
        end: socket,
        kernel: KernelProcess,
        connection: Connection,
        log: GuestLog,
        unsent: Callable[[], bool],
    ) -> None:
        self._socket = KernelSocket(end)
        self._kernel = kernel
        self._connection = connection
        self._log = log
        self._unsent = unsent
        self._stillness = Stillness()
        self._asked = False
        """The kernel has been told of an ASK, and its answer has not come."""
        self._mute_until: Optional[float] = None
        self.early: List[bytes] = []
        """Frames for the kernel that came before it said what it speaks."""

    # -- waiting ---------------------------------------------------------------------------------

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def events(self) -> int:
        """What to poll for; 0 for nothing."""
        events = select.POLLOUT if self._socket.wants_to_write else 0
        if not self._socket.closed and self._connection.queued() < AHEAD:
            events |= select.POLLIN
        return events

    @property
    def wait_ms(self) -> Optional[int]:
        """After how long to look without being woken."""
        undecided = self._socket.facts is None
        return UNDECIDED_MS if undecided or self._mute_until is not None else None

    @property
    def finished(self) -> bool:
        """Nothing more comes from the kernel."""
        return self._socket.closed

    # -- to the kernel ---------------------------------------------------------------------------

    def put(self, frame: bytes) -> None:
        """A frame of the host's, for the kernel."""
        if self._socket.direct:
            self._socket.put(frame)
        else:
            self.early.append(frame)

    def resume(self, resume: Resume) -> None:
        """Restored from an image: whatever was under way is not."""
        self._asked = False
        self.early.clear()
        self._socket.resume(encode_frame(FrameType.RESUME, resume.encode()))
        self._socket.flush()

    def tell(self, sent: Signal) -> None:
        """A signal was sent to the kernel's process group: it may have to see to it."""
        if self._socket.direct:
            self._socket.put(encode_frame(FrameType.SIGNAL, sent.encode()))

    def flush(self) -> None:
        self._socket.flush()

    def ask(self, ask: Ask) -> None:
        """Whether it has anything to do the kernel is asked itself, if it looks as if not."""
        if not self._socket.direct:
            self._connection.send(Quiet(ask.run, False))
        elif self._stillness.look(self._kernel.pid) and not self._asked:
            self._asked = True
            self._socket.put(encode_frame(FrameType.ASK, ask.encode()))
        elif not self._asked:
            self._connection.send(Quiet(ask.run, False))

    # -- from the kernel -------------------------------------------------------------------------

    def read(self) -> None:
        """Pass on what has come. A kernel that says what it may not is killed."""
        resuming, run = self._socket.resuming, self._connection.run
        try:
            frames = self._socket.read()
        except RemoteProtocolError as error:
            self._log.complain(f"The kernel broke the rules of its link, and is killed. {error}\n")
            self._socket.closed = True
            self._kernel.signal_group(signal.SIGKILL)
            return
        if resuming and not self._socket.resuming and run is not None:
            self._connection.send(Resumed(run, True))
        answer, self._socket.quiet = self._socket.quiet, None
        if self._connection.state is State.RUNNING:
            if frames:
                self._connection.divert(frames)
            if answer is not None and self._asked and answer.run == run:
                self._asked = False
                idle = not self._connection.queued() and not self._unsent()
                self._connection.send(Quiet(answer.run, answer.quiet and idle))

    def decide(self) -> Optional[bool]:
        """Whether the kernel speaks frames; None while that is not known.

        It does not where it asks for the relay, or listens on ZMQ without having spoken.
        """
        if self._socket.direct:
            for frame in self.early:
                self._socket.put(frame)
            self.early.clear()
            return True
        if self._socket.facts is not None:
            self._log.complain(f"This kernel gets the relay: {self._socket.facts[RELAY]}.\n")
            return False
        assert self._connection.run is not None
        listening = os.path.exists(f"{socket_prefix(self._connection.run)}-{int(Channel.SHELL)}")
        return False if listening else None

    def end_mute(self) -> None:
        """Kill a kernel that can neither hear nor be heard any more, and lives on."""
        if not (self._socket.direct and self._socket.closed):
            return
        now = time.monotonic()
        if self._mute_until is None:
            self._mute_until = now + MUTE_SECONDS
        elif now >= self._mute_until:
            self._log.complain("The kernel has closed its end of the link, and is killed.\n")
            self._kernel.signal_group(signal.SIGKILL)
            self._mute_until = now + MUTE_SECONDS

    def close(self) -> None:
        self._socket.close()
