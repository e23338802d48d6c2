"""The protocol between bridge and guest, without any I/O.

Bytes come in through ``Connection.receive_data``, events go out of ``next_event``; what is to be
written comes out of ``data_to_send``. Both ends use the same class. Standard library only and
Python 3.9, since this package is mounted into every sandbox. The bytes are specified in
docs/protocol.md.
"""

from gvisor_kernel.link.connection import Connection
from gvisor_kernel.link.errors import LinkError, LocalProtocolError, RemoteProtocolError
from gvisor_kernel.link.events import (
    Ask,
    Diverted,
    Event,
    Exited,
    Hello,
    Log,
    Message,
    Ping,
    Pong,
    Quiet,
    Resume,
    Resumed,
    Signal,
    Start,
    Started,
    Stats,
    Stop,
)
from gvisor_kernel.link.frames import Channel, LogSource

__all__ = [
    "Ask",
    "Channel",
    "Connection",
    "Diverted",
    "Event",
    "Exited",
    "Hello",
    "LinkError",
    "LocalProtocolError",
    "Log",
    "LogSource",
    "Message",
    "Ping",
    "Pong",
    "Quiet",
    "RemoteProtocolError",
    "Resume",
    "Resumed",
    "Signal",
    "Start",
    "Started",
    "Stats",
    "Stop",
]
