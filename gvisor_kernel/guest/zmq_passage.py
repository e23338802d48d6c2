"""Passes messages between the link and a kernel that speaks only ZMQ.

As ``passage.py`` for frames, it decides when a kernel is killed and what is logged. ``relay.py``
has the sockets.
"""

from __future__ import annotations

import signal
from typing import Deque, Dict, List, Tuple

from gvisor_kernel.guest.connection_file import SocketAddress
from gvisor_kernel.guest.guest_log import GuestLog
from gvisor_kernel.guest.notice import explain_drop, make_replacement
from gvisor_kernel.guest.process import KernelProcess
from gvisor_kernel.guest.relay import Relay
from gvisor_kernel.link import Channel, Connection, LocalProtocolError, Message


class ZmqPassage:
    """One instance per kernel process. ``signing``: key and scheme of the kernel's signatures."""

    def __init__(
        self,
        addresses: Dict[Channel, SocketAddress],
        kernel: KernelProcess,
        connection: Connection,
        log: GuestLog,
        signing: Tuple[str, str],
    ) -> None:
        self.relay = Relay(addresses)
        self._kernel = kernel
        self._connection = connection
        self._log = log
        self._signing = signing

    def send(self, held: Deque[Message]) -> None:
        """Send the kernel the messages that wait for it, once it listens."""
        self.relay.update()
        while self.relay.listening and held:
            message = held.popleft()
            if not self.relay.send(message.channel, message.parts):
                self._log.write_limited(
                    f"Dropped a message on {message.channel.name.lower()}:"
                    " the kernel violated the ZMTP protocol there.\n"
                )
            self._connection.consumed(message)

    def receive(self, ready: Dict[int, int]) -> bool:
        """Pass on what the kernel has sent; return whether that was anything."""
        has_output = False
        for channel, parts in self.relay.receive(ready):
            has_output = True
            try:
                self._connection.send_message(channel, parts)
            except LocalProtocolError as error:
                self._report_drop(channel, parts, explain_drop(channel, error))
        for channel, reason in self.relay.take_failures():
            self._log.write_limited(
                f"Killed the kernel: it violated the ZMTP protocol on {channel.name.lower()}:"
                f" {reason}.\n"
            )
            self._kernel.signal_group(signal.SIGKILL)
        return has_output

    def _report_drop(self, channel: Channel, parts: List[bytes], words: str) -> None:
        self._log.write_limited(words)
        replacement = make_replacement(channel, parts, *self._signing, words)
        if replacement is not None:
            self._connection.send_message(channel, replacement)
