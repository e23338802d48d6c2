"""Events: what a connection reports, and what its owner sends. Frozen data, nothing else.

``encode`` returns the payload of an event's frame. ``decode`` parses one from the other side and
checks it completely; it raises RemoteProtocolError if the payload is not valid.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, Union

from gvisor_kernel.link.frames import MAX_PAYLOAD, Channel, LogSource, Part, RemoteProtocolError
from gvisor_kernel.strict_json import JsonError, parse_json

PROTOCOL = "gvisor-kernel-link"
VERSION = 10

ADOPT, WAKE, BRANCH = MODES = ("adopt", "wake", "branch")
"""How a restored kernel goes on; see ``Resume``."""

CREDIT = struct.Struct(">I")
_UNKNOWN = 2
"""The answer of an IDLE_REPLY for a kernel that cannot be asked."""
_SURROGATE = re.compile("[\ud800-\udfff]")


T = TypeVar("T", bound="_Numbers")


class _Numbers:
    """An event whose payload is its fields, in their order."""

    _layout: ClassVar[struct.Struct]
    _frame: ClassVar[str]

    def encode(self) -> bytes:
        return self._layout.pack(*vars(self).values())

    @classmethod
    def decode(cls: type[T], payload: bytes) -> T:
        return cls(*cls._unpack(payload))

    @classmethod
    def _unpack(cls, payload: bytes) -> tuple[Any, ...]:
        if len(payload) != cls._layout.size:
            raise RemoteProtocolError(
                f"A {cls._frame} payload has {len(payload)} bytes; {cls._layout.size} are expected."
            )
        return cls._layout.unpack(payload)


def _parse_object(payload: bytes, name: str) -> dict[str, Any]:
    try:
        value = parse_json(payload, MAX_PAYLOAD)
    except JsonError as error:
        raise RemoteProtocolError(f"A {name} payload is invalid: {error}.") from None
    if not isinstance(value, dict):
        raise RemoteProtocolError(f"A {name} payload is not a JSON object.")
    return value


def _check_text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise RemoteProtocolError(f"{name} is not text.")
    return value


def _check_number(value: object, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**32:
        raise RemoteProtocolError(f"{name} is not a number from 0 to 2^32-1.")
    return value


def _check_flag(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise RemoteProtocolError(f"{name} is not true or false.")
    return value


def _check_run(body: dict[str, Any], name: str, texts: Sequence[str]) -> dict[str, Any]:
    """Return the fields that a START and a RESUME have alike, and those named ``texts``."""
    environment = body.get("environment")
    if not isinstance(environment, dict):
        raise RemoteProtocolError(f"The environment of a {name} is not a JSON object.")
    return {
        "run": _check_number(body.get("run"), f"The run of a {name}"),
        "environment": tuple(
            (key, _check_text(value, f"A value of a {name}'s environment"))
            for key, value in environment.items()
        ),
        **{text: _check_text(body.get(text), f"The {text} of a {name}") for text in texts},
        "egress": _check_flag(body.get("egress"), f"The egress of a {name}"),
    }


@dataclass(frozen=True)
class Hello:
    """HELLO: the first frame of each side. Both sides must send the same version.

    ``facts``: name and value of facts about the sender, such as its release and its Python. They
    are shown to people and never acted on.
    """

    version: int = VERSION
    facts: tuple[tuple[str, str], ...] = ()

    def encode(self) -> bytes:
        return json.dumps(
            {"protocol": PROTOCOL, "version": self.version, "facts": dict(self.facts)}
        ).encode()

    @classmethod
    def decode(cls, payload: bytes) -> Hello:
        body = _parse_object(payload, "HELLO")
        if body.get("protocol") != PROTOCOL:
            raise RemoteProtocolError(f"A HELLO does not name the protocol {PROTOCOL!r}.")
        facts = body.get("facts", {})
        if not isinstance(facts, dict):
            raise RemoteProtocolError("The facts of a HELLO are not a JSON object.")
        pairs = tuple(
            (key, _check_text(value, "A fact of a HELLO")) for key, value in facts.items()
        )
        if any(_SURROGATE.search(text) for pair in pairs for text in pair):
            raise RemoteProtocolError("A fact of a HELLO cannot be encoded as UTF-8.")
        return cls(_check_number(body.get("version"), "The version of a HELLO"), pairs)


@dataclass(frozen=True)
class Start:
    """START, host to guest: start a kernel process; run number ``run`` begins.

    ``argv`` may contain placeholders such as ``{connection_file}``. ``environment`` is the whole
    environment of the kernel. ``key`` signs the kernel's messages inside the sandbox. ``egress``:
    whether the guest may open streams in this run.
    """

    run: int
    argv: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    cwd: str
    key: str
    signature_scheme: str = "hmac-sha256"
    egress: bool = False

    def encode(self) -> bytes:
        return json.dumps({**vars(self), "environment": dict(self.environment)}).encode()

    @classmethod
    def decode(cls, payload: bytes) -> Start:
        body = _parse_object(payload, "START")
        argv = body.get("argv")
        if not isinstance(argv, list) or not argv:
            raise RemoteProtocolError("The argv of a START is no list of words.")
        words = tuple(_check_text(word, "A word of a START's argv") for word in argv)
        return cls(argv=words, **_check_run(body, "START", ("cwd", "key", "signature_scheme")))

    def __repr__(self) -> str:
        return f"Start(run={self.run}, argv={self.argv!r}, cwd={self.cwd!r}, key=…)"


@dataclass(frozen=True)
class Started(_Numbers):
    """STARTED, guest to host: the process of the kernel of run ``run`` exists."""

    _layout = struct.Struct(">I")
    _frame = "STARTED"
    run: int


@dataclass(frozen=True)
class Resume:
    """RESUME, host to a guest restored from a snapshot: adopt this key, environment and seed.

    ``run`` is the run that the snapshot was taken in. ``key`` signs the kernel's messages from now
    on, if the kernel can change its key; otherwise the key of its START stays. ``environment``
    overrides variables of the snapshot. ``seed`` is 64 random bytes in hexadecimal, for everything
    that would be the same in every copy of the snapshot. ``egress`` is as in START. ``mode``: WAKE:
    the kernel is the only one that goes on from there, so all but its key stays as it was. BRANCH:
    others do, too, so its ids and secrets change, and what code can see of it stays. ADOPT: it is a
    new one, which also gets the environment, the folder and new random numbers.
    """

    run: int
    environment: tuple[tuple[str, str], ...]
    cwd: str
    key: str
    seed: str
    egress: bool = False
    mode: str = ADOPT

    def encode(self) -> bytes:
        return json.dumps({**vars(self), "environment": dict(self.environment)}).encode()

    @classmethod
    def decode(cls, payload: bytes) -> Resume:
        body = _parse_object(payload, "RESUME")
        run = _check_run(body, "RESUME", ("cwd", "key", "seed", "mode"))
        if run["mode"] not in MODES:
            raise RemoteProtocolError(f"The mode of a RESUME is none of {', '.join(MODES)}.")
        return cls(**run)

    def __repr__(self) -> str:
        return f"Resume(run={self.run}, cwd={self.cwd!r}, key=…, seed=…)"


@dataclass(frozen=True)
class Resumed(_Numbers):
    """RESUMED, guest to host: the restored kernel of run ``run`` is ready.

    Everything that was under way when the snapshot was taken is dropped. ``rekeyed``: the kernel
    signs with the key of the RESUME, not with that of its START.
    """

    _layout = struct.Struct(">IB")
    _frame = "RESUMED"
    run: int
    rekeyed: bool

    @classmethod
    def decode(cls, payload: bytes) -> Resumed:
        run, answer = cls._unpack(payload)
        if answer > 1:
            raise RemoteProtocolError(f"A RESUMED has the answer {answer}; 0 or 1 is expected.")
        return cls(run, bool(answer))


@dataclass(frozen=True)
class IdleQuery(_Numbers):
    """IDLE_QUERY, host to guest: is the kernel of run ``run`` idle? Then its sandbox may stop."""

    _layout = struct.Struct(">I")
    _frame = "IDLE_QUERY"
    run: int


@dataclass(frozen=True)
class IdleReply(_Numbers):
    """IDLE_REPLY, guest to host: the reply to an IDLE_QUERY.

    ``idle``: the kernel is idle. Nothing happens in the sandbox until a frame is sent to it.
    ``unknown``: the kernel cannot be asked, and nothing waits to be sent to the host or to it.
    """

    _layout = struct.Struct(">IB")
    _frame = "IDLE_REPLY"
    run: int
    idle: bool
    unknown: bool = False

    def encode(self) -> bytes:
        return self._layout.pack(self.run, _UNKNOWN if self.unknown else self.idle)

    @classmethod
    def decode(cls, payload: bytes) -> IdleReply:
        run, answer = cls._unpack(payload)
        if answer > _UNKNOWN:
            raise RemoteProtocolError(
                f"An IDLE_REPLY has the answer {answer}; 0, 1 or {_UNKNOWN} is expected."
            )
        return cls(run, answer == 1, answer == _UNKNOWN)


@dataclass(frozen=True)
class Trim(_Numbers):
    """TRIM, host to guest: the kernel of run ``run`` is asked to give free memory back.

    There is no reply.
    """

    _layout = struct.Struct(">I")
    _frame = "TRIM"
    run: int


@dataclass(frozen=True)
class Diverted:
    """A DATA or CREDIT frame, undecoded, for a kernel that speaks frames itself."""

    frame: bytes


@dataclass(frozen=True)
class StreamFrames:
    """Whole frames of streams, undecoded. Only their sizes and the backlog are checked."""

    frames: bytes

    def __repr__(self) -> str:
        return f"<StreamFrames {len(self.frames)} bytes>"


@dataclass(frozen=True)
class StreamsEnded:
    """RESET of stream 0: the host has ended all streams; or the guest has, as the answer to that.

    A guest answers with ``Connection.renew_streams``. Later streams are numbered from 1 again.
    """


@dataclass(frozen=True)
class Message:
    """A whole message on a channel of the kernel.

    ``size`` is what it counts in its channel's window, in bytes. ``generation`` says which windows
    these are: each run has new ones.
    """

    channel: Channel
    parts: list[Part]
    size: int
    generation: int

    def __repr__(self) -> str:
        return f"<Message {self.channel.name.lower()} {len(self.parts)} parts {self.size} bytes>"


@dataclass(frozen=True)
class Signal(_Numbers):
    """SIGNAL, host to guest: send ``signum`` to the process group of the kernel of run ``run``."""

    _layout = struct.Struct(">IB")
    _frame = "SIGNAL"
    run: int
    signum: int

    @classmethod
    def decode(cls, payload: bytes) -> Signal:
        run, signum = cls._unpack(payload)
        if not 0 < signum <= 64:
            raise RemoteProtocolError(f"A SIGNAL has the number {signum}; 1 to 64 are allowed.")
        return cls(run, signum)


@dataclass(frozen=True)
class Exited(_Numbers):
    """EXIT, guest to host: the kernel of run ``run`` ended; it sent its last messages before this.

    ``status`` as in ``subprocess``: the exit status, or the negative number of the signal that
    ended it.
    """

    _layout = struct.Struct(">Ii")
    _frame = "EXIT"
    run: int
    status: int

    @classmethod
    def decode(cls, payload: bytes) -> Exited:
        run, status = cls._unpack(payload)
        if not -64 <= status <= 255:
            raise RemoteProtocolError(f"An EXIT has the status {status}; -64 to 255 are allowed.")
        return cls(run, status)


@dataclass(frozen=True)
class Stats(_Numbers):
    """STATS, guest to host: processes, threads and bytes of memory inside the sandbox.

    Shown to people and never acted on.
    """

    _layout = struct.Struct(">IIQ")
    _frame = "STATS"
    processes: int
    threads: int
    memory: int


@dataclass(frozen=True)
class Log:
    """LOG, guest to host: text for the kernel's log. The reader must remove control characters."""

    source: LogSource
    text: str


@dataclass(frozen=True)
class Ping(_Numbers):
    """PING, from either side: a sign of life is requested.

    The receiving connection queues the reply by itself: a Pong with the same token.
    """

    _layout = struct.Struct(">Q")
    _frame = "PING"
    token: int


@dataclass(frozen=True)
class Pong(_Numbers):
    """PONG, the reply to a PING, with its token."""

    _layout = struct.Struct(">Q")
    _frame = "PONG"
    token: int


_OfRun = Union[Start, Started, Resume, Resumed, IdleQuery, IdleReply, Trim, Signal, Exited]
Event = Union[Hello, _OfRun, Message, Diverted, StreamFrames, StreamsEnded, Stats, Log, Ping, Pong]
