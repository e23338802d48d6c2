"""The kernel's five ZMQ sockets, seen from PID 1. No link, no process: messages in, messages out.

Shell and stdin share one identity: a kernel addresses its ``input_request`` to the sender of the
``execute_request``.
"""

from __future__ import annotations

import os
from typing import Dict, Iterator, List, Tuple

import zmq
from zmq.utils.monitor import recv_monitor_message

from gvisor_kernel.guest.connection_file import socket_prefix
from gvisor_kernel.link import Channel

SOCKET_TYPES = {
    Channel.SHELL: zmq.DEALER,
    Channel.IOPUB: zmq.SUB,
    Channel.STDIN: zmq.DEALER,
    Channel.CONTROL: zmq.DEALER,
    Channel.HB: zmq.DEALER,
}
RECONNECT_MS = 20
"""How often a socket tries to reach a kernel that does not listen yet."""
BATCH = 64
"""Messages taken from one socket before the others have their turn."""


class Relay:
    """Connected to kernel number ``run`` from construction on, whether it listens yet or not."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], run: int) -> None:
        self.sockets: Dict[Channel, zmq.Socket[bytes]] = {}
        self.monitors: Dict[Channel, zmq.Socket[bytes]] = {}
        self.open: Dict[Channel, bool] = {}
        self.was_open: Dict[Channel, bool] = {}
        identity = os.urandom(8).hex().encode()
        for channel, kind in SOCKET_TYPES.items():
            socket: zmq.Socket[bytes] = context.socket(kind)
            socket.linger = 0
            # Without bounds here: what a kernel has sent is in the sandbox's memory anyway, and
            # the supervisor stops the kernel when it is too far ahead. A bound would drop iopub.
            socket.rcvhwm = 0
            socket.sndhwm = 0
            socket.reconnect_ivl = RECONNECT_MS
            if kind == zmq.SUB:
                socket.subscribe(b"")
            else:
                socket.setsockopt(zmq.IDENTITY, identity)
            events = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
            self.monitors[channel] = socket.get_monitor_socket(events)
            socket.connect(f"ipc://{socket_prefix(run)}-{int(channel)}")
            self.sockets[channel] = socket
            self.open[channel] = self.was_open[channel] = False

    def poll_monitors(self) -> None:
        """Take note of connections made and lost."""
        for channel, monitor in self.monitors.items():
            while monitor.poll(0):
                event = recv_monitor_message(monitor, zmq.NOBLOCK)["event"]
                self.open[channel] = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
                self.was_open[channel] |= self.open[channel]

    @property
    def listening(self) -> bool:
        """The kernel's iopub is connected: nothing it answers from now on can be missed."""
        return self.was_open[Channel.IOPUB]

    @property
    def finished(self) -> bool:
        """Every connection that was there is closed: the kernel's last bytes have been read."""
        return not any(self.open.values())

    def send(self, channel: Channel, parts: List[bytes]) -> bool:
        """Hand a message to the kernel. Never blocks, never drops while the kernel lives.

        False when the kernel broke ZMQ's rules: libzmq then gives its connection up for good.
        """
        if channel is not Channel.IOPUB:
            try:
                self.sockets[channel].send_multipart(parts, zmq.NOBLOCK, copy=False)
            except zmq.ZMQError:
                return False
        return True

    def receive(self) -> Iterator[Tuple[Channel, List[bytes]]]:
        """What the kernel sent, at most BATCH messages a channel."""
        for channel, socket in self.sockets.items():
            for _ in range(BATCH):
                try:
                    parts = socket.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    break
                yield channel, parts

    def close(self) -> None:
        for socket in self.sockets.values():
            socket.disable_monitor()
            socket.close()
        for monitor in self.monitors.values():
            monitor.close()
