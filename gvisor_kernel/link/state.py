"""Tables of the frames that each side may send in each state, and nothing else.

A connection is OPENING until it receives the HELLO of the other side, then IDLE. It is RUNNING
between START and EXIT, and CLOSED after the other side violated the protocol. Each
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


_F = FrameType
_OF_STREAMS = frozenset({_F.STREAM, _F.GRANT, _F.FINISH, _F.RESET})
_OF_BOTH = _OF_STREAMS | {_F.HELLO, _F.DATA, _F.CREDIT, _F.PING, _F.PONG}

SENDERS = {
    Role.HOST: _OF_BOTH | {_F.START, _F.SIGNAL, _F.RESUME, _F.IDLE_QUERY, _F.TRIM},
    Role.GUEST: _OF_BOTH
    | {_F.STARTED, _F.EXIT, _F.STATS, _F.LOG, _F.RESUMED, _F.IDLE_REPLY, _F.OPEN},
}
"""The frames that each side may send in any state."""

ALWAYS = frozenset({_F.STATS, _F.LOG, _F.PING, _F.PONG})
"""Frames that change no state. They are allowed in every state but OPENING and CLOSED."""

_UNCHANGED = {
    State.RUNNING: _OF_STREAMS
    | {_F.STARTED, _F.DATA, _F.CREDIT, _F.SIGNAL, _F.IDLE_QUERY, _F.IDLE_REPLY, _F.OPEN, _F.TRIM},
    State.RESUMING: {_F.DATA, _F.CREDIT, _F.SIGNAL},
}
TRANSITIONS = {
    **{(state, kind): state for state, kinds in _UNCHANGED.items() for kind in kinds},
    (State.OPENING, _F.HELLO): State.IDLE,
    (State.IDLE, _F.START): State.RUNNING,
    (State.RUNNING, _F.RESUME): State.RESUMING,
    (State.RUNNING, _F.EXIT): State.IDLE,
    (State.RESUMING, _F.RESUMED): State.RUNNING,
    (State.RESUMING, _F.EXIT): State.IDLE,
}
"""The state after a frame, whichever side sends it. A frame in neither table is a violation.

There are two exceptions, for frames that were under way while the state changed. An IDLE guest
drops the frames that the host sent before it received the EXIT (LATE). A RESUMING host drops the
frames that the guest wrote before it received the RESUME (STALE).
"""

LATE = _OF_STREAMS | {_F.DATA, _F.CREDIT, _F.SIGNAL, _F.IDLE_QUERY, _F.TRIM}
"""Frames that a guest drops while it is IDLE after a run."""

STALE = _OF_STREAMS | {_F.DATA, _F.CREDIT, _F.IDLE_REPLY, _F.OPEN}
"""Frames that a host drops while it is RESUMING."""
