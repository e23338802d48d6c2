"""Tables of the frames that each side may send in each state, and nothing else.

A connection is OPENING until it receives the HELLO of the other side, then IDLE. It is RUNNING
between START and EXIT, and CLOSED after STOP or after the other side violated the protocol. Each
side sends its HELLO without waiting. The host of a guest that was restored from a snapshot in the
middle of a run begins in RESUMING.
"""

from __future__ import annotations

import enum

from gvisor_kernel.link.frames import FrameType


class Role(enum.Enum):
    """The end of the link that a connection is."""

    HOST = "host"
    GUEST = "guest"


class State(enum.Enum):
    """The state of a connection; the value is its name in messages and in docs/protocol.md."""

    OPENING = "opening"
    IDLE = "idle"
    RUNNING = "running"
    RESUMING = "resuming"
    CLOSED = "closed"


SENDERS = {
    Role.HOST: frozenset(
        {
            FrameType.HELLO,
            FrameType.START,
            FrameType.DATA,
            FrameType.CREDIT,
            FrameType.SIGNAL,
            FrameType.PING,
            FrameType.PONG,
            FrameType.STOP,
            FrameType.RESUME,
            FrameType.IDLE_QUERY,
            FrameType.STREAM,
            FrameType.GRANT,
            FrameType.FINISH,
            FrameType.RESET,
        }
    ),
    Role.GUEST: frozenset(
        {
            FrameType.HELLO,
            FrameType.STARTED,
            FrameType.DATA,
            FrameType.CREDIT,
            FrameType.EXIT,
            FrameType.STATS,
            FrameType.LOG,
            FrameType.PING,
            FrameType.PONG,
            FrameType.RESUMED,
            FrameType.IDLE_REPLY,
            FrameType.OPEN,
            FrameType.STREAM,
            FrameType.GRANT,
            FrameType.FINISH,
            FrameType.RESET,
        }
    ),
}
"""The frames that each side may send in any state."""

ALWAYS = frozenset({FrameType.STATS, FrameType.LOG, FrameType.PING, FrameType.PONG})
"""Frames that change no state. They are allowed in every state but OPENING and CLOSED."""

TRANSITIONS = {
    (State.OPENING, FrameType.HELLO): State.IDLE,
    (State.OPENING, FrameType.STOP): State.CLOSED,
    (State.IDLE, FrameType.START): State.RUNNING,
    (State.IDLE, FrameType.STOP): State.CLOSED,
    (State.RUNNING, FrameType.STARTED): State.RUNNING,
    (State.RUNNING, FrameType.DATA): State.RUNNING,
    (State.RUNNING, FrameType.CREDIT): State.RUNNING,
    (State.RUNNING, FrameType.SIGNAL): State.RUNNING,
    (State.RUNNING, FrameType.IDLE_QUERY): State.RUNNING,
    (State.RUNNING, FrameType.IDLE_REPLY): State.RUNNING,
    (State.RUNNING, FrameType.OPEN): State.RUNNING,
    (State.RUNNING, FrameType.STREAM): State.RUNNING,
    (State.RUNNING, FrameType.GRANT): State.RUNNING,
    (State.RUNNING, FrameType.FINISH): State.RUNNING,
    (State.RUNNING, FrameType.RESET): State.RUNNING,
    (State.RUNNING, FrameType.RESUME): State.RESUMING,
    (State.RUNNING, FrameType.EXIT): State.IDLE,
    (State.RUNNING, FrameType.STOP): State.CLOSED,
    (State.RESUMING, FrameType.RESUMED): State.RUNNING,
    (State.RESUMING, FrameType.DATA): State.RESUMING,
    (State.RESUMING, FrameType.CREDIT): State.RESUMING,
    (State.RESUMING, FrameType.SIGNAL): State.RESUMING,
    (State.RESUMING, FrameType.EXIT): State.IDLE,
    (State.RESUMING, FrameType.STOP): State.CLOSED,
}
"""The state after a frame, whichever side sends it. A frame in neither table is a violation.

There are three exceptions, for frames that were under way while the state changed. An IDLE guest
drops the frames that the host sent before it received the EXIT (LATE). A RESUMING host drops the
frames that the guest wrote before it received the RESUME (STALE). Both sides drop whatever arrives
after a STOP.
"""

LATE = frozenset(
    {
        FrameType.DATA,
        FrameType.CREDIT,
        FrameType.SIGNAL,
        FrameType.IDLE_QUERY,
        FrameType.STREAM,
        FrameType.GRANT,
        FrameType.FINISH,
        FrameType.RESET,
    }
)
"""Frames that a guest drops while it is IDLE after a run."""

STALE = frozenset(
    {
        FrameType.DATA,
        FrameType.CREDIT,
        FrameType.IDLE_REPLY,
        FrameType.OPEN,
        FrameType.STREAM,
        FrameType.GRANT,
        FrameType.FINISH,
        FrameType.RESET,
    }
)
"""Frames that a host drops while it is RESUMING."""
