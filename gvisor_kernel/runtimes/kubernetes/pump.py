"""The link to a pod: one thread between the pipes of the link and an attach that may be cut.

The carrier keeps what the pod has not confirmed. A connection that ends, falls silent or loses
bytes is made again, as long as the pod runs and the link's own patience lasts. Nothing is kept here
but one read: a reader that stops stalls the pod.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from gvisor_kernel.host.descriptors import is_ready
from gvisor_kernel.link.carrier import Carrier
from gvisor_kernel.link.frames import RemoteProtocolError
from gvisor_kernel.runtimes.kubernetes.attach import (
    STDOUT,
    Stream,
    StreamCut,
    make_nonce,
    wait_readable,
)
from gvisor_kernel.runtimes.kubernetes.pod_state import Ending
from gvisor_kernel.strict_json import JsonError, parse_json

log = logging.getLogger(__name__)

READ_SIZE = 64 * 1024
SILENT_SECONDS = 20.0
"""A connection on which nothing comes for so long is cut: the bridge pings every 5 s."""
PATIENCE_SECONDS = 50.0
"""Seconds in which a lost connection is made again. Both sides of the link give up after 60 s."""
RETRY_SECONDS = 0.25
STEADY_SECONDS = 10.0
"""A connection that ends sooner is made again later each time: a kernel can write to the stdout of
its PID 1, and so end each one, and the API server is not to be asked as fast as it does."""
QUICK_CUTS = 4
"""Number of these in a row that are made again at once."""
MAX_PAUSE_SECONDS = 5.0
ANSWER_SECONDS = 1.5
"""Seconds that the answer to a RESUME may take before it is sent again."""
ANSWERS = 3
"""Times that it is sent on one connection."""
FIRST_ANSWERS = 20
"""The same on the first one: PID 1 makes its mounts and imports its code before it answers."""
MEASURE_SECONDS = 1.0
"""Seconds between two questions for the pod's memory; fewer the nearer it is to its limit."""
MIN_MEASURE_SECONDS = 0.1
MAX_WAITING = 64
"""Pieces for the pipes that are kept while no RESUME is answered; more of stderr is dropped."""
END_SECONDS = 2.0
"""Seconds that the last bytes to the pod may take."""
NOTE = b"memory"


class Pump:
    """Moves the bytes of one link until the pod has ended, or ``stop`` is called.

    Takes over ``stream``, ``link_in`` (read here), ``link_out`` and ``stderr`` (written here).
    """

    def __init__(
        self,
        *,
        stream: Stream,
        carrier: Carrier,
        pipes: tuple[int, int, int],
        limit: int,
        attach: Callable[[], Stream],
        find_end: Callable[[], Ending | None],
        ended: Callable[[Ending | None], None],
        on_memory: Callable[[int], None],
    ) -> None:
        """``attach`` makes another connection, or raises StreamCut. ``find_end`` asks the cluster
        why the pod has ended; None while it may live. ``ended`` is called once, in the thread, with
        None after ``stop``. ``limit``: bytes of memory at which the pod is asked often."""
        self._stream: Stream | None = stream
        self._carrier = carrier
        self._in, self._out, self._stderr = pipes
        self._limit = limit
        self._attach, self._find_end = attach, find_end
        self._ended, self._on_memory = ended, on_memory
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stopped = False
        self._waiting: deque[tuple[int, memoryview]] = deque()
        self._measured = 0.0
        self._interval = MEASURE_SECONDS
        self._in_open = True
        self.cuts = 0
        """Times that the connection was lost and made again."""
        self._quick_cuts = 0
        self._made = time.monotonic()
        """The time at which the connection was made."""
        self._closed = False
        self._lock = threading.Lock()  # no timeout: held for a few steps that do not wait
        for fd in pipes:
            os.set_blocking(fd, False)
        # One for both directions: two threads must not use one TLS connection.
        self._thread = threading.Thread(target=self._run, name="gvisor-kernel-pod", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Let the pod end its processes, and close the connection. Does not wait. Any thread."""
        with self._lock:
            if not self._closed:
                self._stopped = True
                os.eventfd_write(self._stop, 1)

    def close(self, seconds: float) -> None:
        """Stop, and wait for the thread, at most ``seconds``. Idempotent."""
        self.stop()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(seconds)
        with self._lock:
            if not self._closed and not self._thread.is_alive():
                self._closed = True
                os.close(self._stop)

    def _is_stopped(self) -> bool:
        return self._stopped

    # -- in the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        ending: Ending | None = None
        try:
            while not self._is_stopped():
                try:
                    if not self._carrier.connected and not self._begin():
                        raise StreamCut("the pod does not answer")
                    self._turn()
                except (StreamCut, RemoteProtocolError) as error:
                    if self._is_stopped():
                        break
                    log.debug("A pod's connection was lost: %s", error)
                    ending = self._connect_again(str(error))
                    if ending is not None:
                        break
            if self._is_stopped():
                self._say_goodbye()
        except OSError as error:  # a pipe was closed
            log.debug("A pod's link was closed: %s", error)
            self._say_goodbye()
        finally:
            if self._stream is not None:
                self._stream.close()
            os.close(self._in)
            self._flush_waiting(END_SECONDS)
            os.close(self._stderr)
            try:
                self._ended(None if self._is_stopped() else ending)
            finally:
                os.close(self._out)

    def _begin(self) -> bool:
        """Begin the streams on the first connection; return whether the pod has answered."""
        assert self._stream is not None
        return self._resume(self._stream, FIRST_ANSWERS) or self._is_stopped()

    def _turn(self) -> None:
        """Wait for one thing, and move what there is.

        :raises StreamCut, RemoteProtocolError: when the connection is of no use any more
        """
        stream = self._stream
        assert stream is not None
        poller = select.poll()
        poller.register(self._stop, select.POLLIN)
        if self._in_open and self._carrier.room and stream.room:
            poller.register(self._in, select.POLLIN)
        reads = not self._waiting
        if self._waiting:
            poller.register(self._waiting[0][0], select.POLLOUT)
        poller.register(stream.fileno(), stream.events(reads))
        now = time.monotonic()
        wait = max(0.0, self._measured + self._interval - now)
        more = reads and stream.has_more
        ready = {fd for fd, _ in poller.poll(0 if more else wait * 1000)}
        if self._in in ready:
            self._take_input()
        if self._waiting and self._waiting[0][0] in ready:
            self._flush_waiting(0)
        if stream.fileno() in ready or more:
            if reads:
                self._take(stream)
            else:
                stream.flush()
        self._ask_memory()
        self._send(stream)
        if reads and time.monotonic() - stream.heard > SILENT_SECONDS:
            raise StreamCut(f"nothing came for {SILENT_SECONDS:g} s")
        if self._carrier.is_lost:
            raise StreamCut("bytes of the stream were lost")

    def _take_input(self) -> None:
        # no timeout: it is ready, or does not block
        data = os.read(self._in, min(READ_SIZE, self._carrier.room))
        if data:
            self._carrier.write(data)
        else:
            self._in_open = False
            self.stop()

    def _take(self, stream: Stream) -> None:
        for channel, piece in stream.read():  # no timeout: it is ready, or does not block
            if channel != STDOUT:
                if self._carrier.connected or len(self._waiting) < MAX_WAITING:
                    self._waiting.append((self._stderr, piece))
                continue
            payload = self._carrier.receive(bytes(piece))
            if payload:
                self._waiting.append((self._out, memoryview(payload)))
        while self._carrier.notes:
            self._take_note(self._carrier.notes.popleft())
        self._flush_waiting(0)

    def _take_note(self, content: bytes) -> None:
        try:
            said = parse_json(content, len(content))
            used = said.get("used")
        except (JsonError, AttributeError):
            return
        if said.get("lost") is True:
            raise StreamCut("bytes to the pod were lost")
        if isinstance(used, int) and 0 <= used < 2**60:
            rest = max(0.0, 1 - used / self._limit)
            self._interval = max(MIN_MEASURE_SECONDS, min(MEASURE_SECONDS, 2 * rest))
            self._on_memory(used)

    def _ask_memory(self) -> None:
        now = time.monotonic()
        if now - self._measured >= self._interval:
            self._measured = now
            self._carrier.note(NOTE)

    def _send(self, stream: Stream) -> None:
        while stream.room and (data := self._carrier.data_to_send()):
            stream.write(data)

    def _flush_waiting(self, seconds: float) -> None:
        """Write to the pipes what they take; wait for them at most ``seconds``."""
        deadline = time.monotonic() + seconds
        while self._waiting:
            fd, piece = self._waiting[0]
            try:
                written = os.write(fd, piece)
            except BlockingIOError:
                left = deadline - time.monotonic()
                if left <= 0 or not is_ready(fd, left, select.POLLOUT):
                    return
                continue
            except OSError:
                if fd == self._out and seconds == 0:
                    raise
                written = len(piece)
            if written == len(piece):
                self._waiting.popleft()
            else:
                self._waiting[0] = fd, piece[written:]

    # -- connections -----------------------------------------------------------------------------

    def _connect_again(self, why: str) -> Ending | None:
        """Make another connection; return why that is of no use. None also after ``stop``."""
        began = self._stream.heard if self._stream is not None else time.monotonic()
        deadline = max(began, time.monotonic() - SILENT_SECONDS) + PATIENCE_SECONDS
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        self._carrier.disconnect()
        steady = time.monotonic() - self._made > STEADY_SECONDS
        self._quick_cuts = 0 if steady else self._quick_cuts + 1
        if self._quick_cuts > QUICK_CUTS:
            doubled = RETRY_SECONDS * 2 ** min(self._quick_cuts - QUICK_CUTS, 10)
            self._pause(min(MAX_PAUSE_SECONDS, doubled))
        while not self._is_stopped():
            ending = self._find_end()
            if ending is not None:
                return ending
            try:
                stream = self._attach()
            except StreamCut as error:
                why = str(error)
            else:
                self._stream = stream
                try:
                    if self._resume(stream):
                        self.cuts += 1
                        self._made = time.monotonic()
                        log.info("A pod's connection was made again")
                        return None
                    why = "the pod does not answer"
                except (StreamCut, RemoteProtocolError) as error:
                    why = str(error)
                stream.close()
                self._stream = None
                self._carrier.disconnect()
            if time.monotonic() > deadline:
                words = "".join(c for c in why if c.isprintable())[:300].rstrip(".")
                return Ending(
                    f"the connection to the pod was lost, and could not be made again within"
                    f" {PATIENCE_SECONDS:g} s: {words}"
                )
            self._pause(RETRY_SECONDS)
        return None

    def _resume(self, stream: Stream, answers: int = ANSWERS) -> bool:
        for _ in range(answers):
            stream.write(self._carrier.resume(make_nonce()))
            deadline = time.monotonic() + ANSWER_SECONDS
            while (left := deadline - time.monotonic()) > 0 and not self._is_stopped():
                if wait_readable(stream, min(left, RETRY_SECONDS)):
                    self._take(stream)
                if self._carrier.connected:
                    return True
        return False

    def _pause(self, seconds: float) -> None:
        is_ready(self._stop, seconds)

    def _say_goodbye(self) -> None:
        """Tell PID 1 to end its processes: without a word it would wait for another connection."""
        stream = self._stream
        if stream is None:
            return
        with suppress(StreamCut, RemoteProtocolError):
            self._carrier.end()
            stream.write(self._carrier.data_to_send())
            deadline = time.monotonic() + END_SECONDS
            while stream.events(False) & select.POLLOUT and time.monotonic() < deadline:
                is_ready(stream.fileno(), 0.1, select.POLLOUT)
                stream.flush()
