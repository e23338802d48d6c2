"""The protocol between bridge (host) and PID 1 (guest), without any I/O.

Received bytes go into ``Connection.receive_data`` and come out of ``next_event`` as events. Bytes
to write come out of ``data_to_send``. Both ends use the same class. This package is mounted into
every sandbox: it uses the standard library only and runs on Python 3.9. docs/protocol.md specifies
the bytes.
"""

from gvisor_kernel.link.connection import Connection
from gvisor_kernel.link.events import (
    ADOPT,
    BRANCH,
    WAKE,
    Diverted,
    Event,
    Exited,
    Hello,
    IdleQuery,
    IdleReply,
    Log,
    Message,
    Ping,
    Pong,
    Resume,
    Resumed,
    Signal,
    Start,
    Started,
    Stats,
    StreamFrames,
    StreamsEnded,
    Trim,
)
from gvisor_kernel.link.frames import (
    Channel,
    LinkError,
    LocalProtocolError,
    LogSource,
    RemoteProtocolError,
)

__all__ = [
    "ADOPT",
    "BRANCH",
    "WAKE",
    "Channel",
    "Connection",
    "Diverted",
    "Event",
    "Exited",
    "Hello",
    "IdleQuery",
    "IdleReply",
    "LinkError",
    "LocalProtocolError",
    "Log",
    "LogSource",
    "Message",
    "Ping",
    "Pong",
    "RemoteProtocolError",
    "Resume",
    "Resumed",
    "Signal",
    "Start",
    "Started",
    "Stats",
    "StreamFrames",
    "StreamsEnded",
    "Trim",
]
