"""Who may send what, and when: two tables and nothing else.

A connection is OPENING until the other side's HELLO, then IDLE; RUNNING between START and EXIT;
CLOSED after STOP, or once the other side broke a rule. Each side sends its HELLO without waiting.
The host of a guest that was restored from an image in the middle of a run begins by RESUMING.
"""

from __future__ import annotations

import enum

from gvisor_kernel.link.frames import FrameType


class Role(enum.Enum):
    HOST = "host"
    GUEST = "guest"


class State(enum.Enum):
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
            FrameType.ASK,
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
            FrameType.QUIET,
        }
    ),
}
"""The frames that each side may send at all."""

ALWAYS = frozenset({FrameType.STATS, FrameType.LOG, FrameType.PING, FrameType.PONG})
"""What changes no state, and may come in every state but OPENING and CLOSED."""

TRANSITIONS = {
    (State.OPENING, FrameType.HELLO): State.IDLE,
    (State.OPENING, FrameType.STOP): State.CLOSED,
    (State.IDLE, FrameType.START): State.RUNNING,
    (State.IDLE, FrameType.STOP): State.CLOSED,
    (State.RUNNING, FrameType.STARTED): State.RUNNING,
    (State.RUNNING, FrameType.DATA): State.RUNNING,
    (State.RUNNING, FrameType.CREDIT): State.RUNNING,
    (State.RUNNING, FrameType.SIGNAL): State.RUNNING,
    (State.RUNNING, FrameType.ASK): State.RUNNING,
    (State.RUNNING, FrameType.QUIET): State.RUNNING,
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
"""(state, frame) -> state, whichever side sends it. What is in neither table breaks the rules.

Three exceptions, for what was on its way while the state changed. What the host sent before it
learned of an EXIT (LATE) reaches an IDLE guest, which drops it. What a guest wrote before it was
told to resume (STALE) reaches a RESUMING host, which drops it. And whatever comes after a STOP is
dropped by both.
"""

LATE = frozenset({FrameType.DATA, FrameType.CREDIT, FrameType.SIGNAL, FrameType.ASK})
"""What a guest drops while it is IDLE after a run."""

STALE = frozenset({FrameType.DATA, FrameType.CREDIT, FrameType.QUIET})
"""What a host drops while it is RESUMING."""
