"""PID 1's end of the link: reads and writes its descriptors, and notices when the host is gone.

What the bytes mean is up to the connection, and what frames cause to ``supervisor.py``.
"""

from __future__ import annotations

import json
import os
import select
import time
from contextlib import suppress
from typing import Callable

from gvisor_kernel.link import Connection, RemoteProtocolError
from gvisor_kernel.link.carrier import Carrier

READ_SIZE = 256 * 1024
WAIT_MS = 10_000
"""Milliseconds of a wait for the host."""
MISSED_WAITS = 6
"""Number of waits in a row without a byte from the host after which it is considered dead; the
host sends a PING every 5 s. Waits are counted, not time: a machine that slept was not silent."""


ORPHAN_WAITS = 600
"""Waits of ORPHAN_SECONDS for another host, after the end of the first one: a process that it has
left saves the sandbox meanwhile, and whoever restores that is the next host. Counted, as the clock
jumps at a restore."""
ORPHAN_SECONDS = 0.1


class HostGone(Exception):
    """The link ended, failed or fell silent: end the sandbox."""


class CarriedLink:
    """Takes the place of the link's two descriptors where the connection may be cut: a carrier
    between the link and stdio. ``link_out`` does not block.

    In a pod stdin and stdout belong to whoever attaches, and outlive each of them. What the host
    asks beside the link is answered here: how much memory the sandbox uses.
    """

    def __init__(self, secret: bytes, link_in: int, link_out: int) -> None:
        self._carrier = Carrier(secret, is_host=False)
        self._in, self._out = link_in, link_out
        self._raw = memoryview(b"")
        self._told_loss = False

    @property
    def wants_to_write(self) -> bool:
        """Return whether something waits for room in ``link_out``."""
        return bool(self._raw) or self._carrier.wants_to_send

    def read(self) -> bytes | None:
        """Read what has come; None if it adds nothing to the link, b"" if the link has ended.

        :raises RemoteProtocolError: when the host claims what cannot be
        :raises OSError: when ``link_in`` cannot be read
        """
        data = os.read(self._in, READ_SIZE)
        if not data:
            return b""
        payload = self._carrier.receive(data)
        if self._carrier.take_restart():
            self._told_loss = False
            self._raw = memoryview(b"")  # half a packet for the connection before
        if self._carrier.is_lost and self._carrier.connected and not self._told_loss:
            self._told_loss = True
            self._carrier.note(json.dumps({"lost": True}).encode())
        while self._carrier.notes:
            self._carrier.notes.popleft()
            self._carrier.note(json.dumps(measure_memory()).encode())
        self.flush()
        if self._carrier.ended:
            return b""
        return payload or None

    def write(self, data: memoryview) -> int:
        """Take bytes of the link; return how many.

        :raises BlockingIOError: when none can be taken until the host has confirmed some
        :raises OSError: when ``link_out`` is closed
        """
        size = min(len(data), self._carrier.room)
        if not size:
            self.flush()
            raise BlockingIOError
        self._carrier.write(bytes(data[:size]))
        self.flush()
        return size

    def flush(self) -> None:
        """Write what ``link_out`` accepts.

        :raises OSError: when it is closed
        """
        with suppress(BlockingIOError):
            while True:
                if not self._raw:
                    self._raw = memoryview(self._carrier.data_to_send())
                    if not self._raw:
                        return
                self._raw = self._raw[os.write(self._out, self._raw) :]


def measure_memory() -> dict[str, int]:
    """Return what gVisor says of the memory of all processes and files of the sandbox, in bytes."""
    found = {}
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            name, _, rest = line.partition(":")
            words = rest.split()
            if words and words[0].isdigit():
                found[name] = int(words[0]) * 1024
    return {"used": max(0, found.get("MemTotal", 0) - found.get("MemFree", 0))}


def describe_network() -> str:
    """Return the interfaces and routes of this sandbox except its loopback; empty if none."""
    found = []
    with suppress(OSError), open("/proc/net/dev", encoding="ascii", errors="replace") as file:
        names = [line.partition(":")[0].strip() for line in file if ":" in line]
        found += [name for name in names if name != "lo"]
    for path, loopback in (("/proc/net/route", "lo"), ("/proc/net/ipv6_route", "lo")):
        with suppress(OSError), open(path, encoding="ascii", errors="replace") as file:
            for line in file:
                words = line.split()
                if words and words[0] != "Iface" and loopback not in (words[0], words[-1]):
                    found.append(f"a route by {words[0] if path.endswith('/route') else words[-1]}")
    return ", ".join(dict.fromkeys(found))[:200]


class HostLink:
    """Carries the bytes of ``connection``. ``link_in`` and ``link_out`` are descriptors.

    ``carried``: what is between the link and these descriptors, where they may lose bytes.
    ``pump``: called before bytes of the connection are taken, to add what waits for its turn.
    """

    def __init__(
        self,
        connection: Connection,
        link_in: int,
        link_out: int,
        carried: CarriedLink | None,
        pump: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._in, self._out = link_in, link_out
        self._carried = carried
        self._pump = pump
        self._pending = memoryview(b"")
        os.set_blocking(link_out, False)

    def fileno(self) -> int:
        """The descriptor to read from."""
        return self._in

    @property
    def polled(self) -> list[tuple[int, int]]:
        """Descriptors and events to poll."""
        wanted = [(self._in, select.POLLIN)]
        if self._pending if self._carried is None else self._carried.wants_to_write:
            wanted.append((self._out, select.POLLOUT))
        return wanted

    @property
    def has_unsent(self) -> bool:
        """Return whether bytes that the connection has given out still wait for the host."""
        return bool(self._pending)

    def read(self) -> bytes | None:
        """Read bytes of the link; None if there are none yet.

        :raises HostGone: when it has ended or cannot be read
        """
        if self._carried is None:
            data: bytes | None = os.read(self._in, READ_SIZE)
        else:
            try:
                data = self._carried.read()
            except (RemoteProtocolError, OSError) as error:
                raise HostGone(f"the link's connection cannot be used: {error}") from error
        if data == b"":
            raise HostGone("the host closed the link")
        return data

    def wait_for_another(self) -> bool:
        """Wait for another host, and return whether there is one. It gets no half frames."""
        if self._carried is not None:
            return False
        poller = select.poll()
        poller.register(self._in, select.POLLIN)
        for _ in range(ORPHAN_WAITS):
            if not any(events & select.POLLHUP for _, events in poller.poll(0)):
                self._pending = memoryview(b"")
                return True
            time.sleep(ORPHAN_SECONDS)
        return False

    def flush(self) -> bool:
        """Write what the descriptor accepts without blocking; return whether that was anything.

        :raises HostGone: when it cannot be written
        """
        carried = self._carried
        was_written = False
        while True:
            if not self._pending:
                self._pump()
                self._pending = memoryview(self._connection.data_to_send(READ_SIZE))
                if not self._pending:
                    self._flush_carried()
                    return was_written
            try:
                if carried is None:
                    written = os.write(self._out, self._pending)
                else:
                    written = carried.write(self._pending)
            except BlockingIOError:
                return was_written
            except OSError as error:
                raise HostGone(f"cannot write to the link: {error}") from error
            self._pending = self._pending[written:]
            was_written = True

    def _flush_carried(self) -> None:
        """Write what the carrier has: confirmations, and what is sent again after a cut."""
        if self._carried is not None:
            try:
                self._carried.flush()
            except OSError as error:
                raise HostGone(f"cannot write to the link: {error}") from error


class Silence:
    """Counts the waits without a byte from the host."""

    def __init__(self) -> None:
        self._heard = time.monotonic()
        self._missed = 0

    def note_wait(self, is_heard: bool) -> None:
        """Note that a wait has ended, and whether the host has sent anything.

        :raises HostGone: when it was silent for too many waits
        """
        now = time.monotonic()
        if is_heard:
            self._heard, self._missed = now, 0
        elif now - self._heard >= WAIT_MS / 1000:
            # Count one wait, however long it was: a machine that slept missed only one.
            self._heard, self._missed = now, self._missed + 1
        if self._missed >= MISSED_WAITS:
            raise HostGone(f"no bytes from the host in {MISSED_WAITS} waits of 10 s")
