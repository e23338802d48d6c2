"""PID 1's end of a link whose connection may be cut: a carrier between the link and stdio.

In a pod stdin and stdout belong to whoever attaches, and outlive each of them. What the host asks
beside the link is answered here: how much memory the sandbox uses.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import Dict, Optional

from gvisor_kernel.link.carrier import Carrier

READ_SIZE = 256 * 1024


class CarriedLink:
    """Takes the place of the link's two descriptors. ``link_out`` does not block."""

    def __init__(self, secret: bytes, link_in: int, link_out: int) -> None:
        self._carrier = Carrier(secret, is_host=False)
        self._in, self._out = link_in, link_out
        self._raw = memoryview(b"")
        self._told_loss = False

    @property
    def wants_to_write(self) -> bool:
        """Return whether something waits for room in ``link_out``."""
        return bool(self._raw) or self._carrier.wants_to_send

    def read(self) -> Optional[bytes]:
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


def measure_memory() -> Dict[str, int]:
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
