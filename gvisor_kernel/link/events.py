"""What a connection reports and what it is asked to send: frozen data, nothing else.

Each class reads and writes its own payload; a payload from the other side is checked whole
before an event exists.
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass
from typing import Any, Union

from gvisor_kernel.link.errors import RemoteProtocolError
from gvisor_kernel.link.frames import MAX_PAYLOAD, Channel, LogSource, Part
from gvisor_kernel.strict_json import JsonError, parse_json

PROTOCOL = "gvisor-kernel-link"
VERSION = 2

_RUN_STATUS = struct.Struct(">Ii")
_RUN_SIGNAL = struct.Struct(">IB")
_RUN = struct.Struct(">I")
_RUN_ANSWER = struct.Struct(">IB")
_TOKEN = struct.Struct(">Q")
_STATS = struct.Struct(">IIQ")
CREDIT = struct.Struct(">I")
_SURROGATE = re.compile("[\ud800-\udfff]")


def _unpack(layout: struct.Struct, payload: bytes, name: str) -> tuple[Any, ...]:
    if len(payload) != layout.size:
        raise RemoteProtocolError(
            f"A {name} payload has {len(payload)} bytes; {layout.size} belong there."
        )
    return layout.unpack(payload)


def _unpack_answer(payload: bytes, name: str) -> tuple[int, bool]:
    run, answer = _unpack(_RUN_ANSWER, payload, name)
    if answer > 1:
        raise RemoteProtocolError(f"A {name} has {answer} for a yes or a no.")
    return run, bool(answer)


def _object(payload: bytes, name: str) -> dict[str, Any]:
    try:
        value = parse_json(payload, MAX_PAYLOAD)
    except JsonError as error:
        raise RemoteProtocolError(f"A {name} payload cannot be used: {error}.") from None
    if not isinstance(value, dict):
        raise RemoteProtocolError(f"A {name} payload is not an object.")
    return value


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise RemoteProtocolError(f"{name} is not text.")
    return value


def _number(value: object, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**32:
        raise RemoteProtocolError(f"{name} is not a number from 0 to 2^32-1.")
    return value


@dataclass(frozen=True)
class Hello:
    """The first frame of each side. Both must speak the same version.

    ``facts``: text about the sender (its release, its Python); shown to people, never acted on.
    """

    version: int = VERSION
    facts: tuple[tuple[str, str], ...] = ()

    def encode(self) -> bytes:
        return json.dumps(
            {"protocol": PROTOCOL, "version": self.version, "facts": dict(self.facts)}
        ).encode()

    @classmethod
    def decode(cls, payload: bytes) -> Hello:
        body = _object(payload, "HELLO")
        if body.get("protocol") != PROTOCOL:
            raise RemoteProtocolError("A HELLO names another protocol.")
        facts = body.get("facts", {})
        if not isinstance(facts, dict):
            raise RemoteProtocolError("The facts of a HELLO are not an object.")
        pairs = tuple((key, _text(value, "A fact of a HELLO")) for key, value in facts.items())
        if any(_SURROGATE.search(text) for pair in pairs for text in pair):
            raise RemoteProtocolError("A fact of a HELLO cannot be written as UTF-8.")
        return cls(_number(body.get("version"), "The version of a HELLO"), pairs)


@dataclass(frozen=True)
class Start:
    """Host to guest: start kernel number ``run``.

    ``argv`` may hold ``{connection_file}``. ``key`` signs the kernel's messages inside.
    """

    run: int
    argv: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    cwd: str
    key: str
    signature_scheme: str = "hmac-sha256"

    def encode(self) -> bytes:
        return json.dumps(
            {
                "run": self.run,
                "argv": list(self.argv),
                "environment": dict(self.environment),
                "cwd": self.cwd,
                "key": self.key,
                "signature_scheme": self.signature_scheme,
            }
        ).encode()

    @classmethod
    def decode(cls, payload: bytes) -> Start:
        body = _object(payload, "START")
        argv, environment = body.get("argv"), body.get("environment")
        if not isinstance(argv, list) or not argv or not isinstance(environment, dict):
            raise RemoteProtocolError("A START lacks its argv or its environment.")
        return cls(
            run=_number(body.get("run"), "The run of a START"),
            argv=tuple(_text(word, "A word of a START's argv") for word in argv),
            environment=tuple(
                (name, _text(value, "A value of a START's environment"))
                for name, value in environment.items()
            ),
            cwd=_text(body.get("cwd"), "The cwd of a START"),
            key=_text(body.get("key"), "The key of a START"),
            signature_scheme=_text(body.get("signature_scheme"), "The scheme of a START"),
        )

    def __repr__(self) -> str:
        return f"Start(run={self.run}, argv={self.argv!r}, cwd={self.cwd!r}, key=…)"


@dataclass(frozen=True)
class Started:
    """Guest to host: the process of kernel number ``run`` exists."""

    run: int

    def encode(self) -> bytes:
        return _RUN.pack(self.run)

    @classmethod
    def decode(cls, payload: bytes) -> Started:
        return cls(*_unpack(_RUN, payload, "STARTED"))


@dataclass(frozen=True)
class Resume:
    """Host to guest, restored from an image of kernel number ``run``: you are somebody else now.

    ``key`` signs the kernel's messages from here on, where a kernel can change its key; else the
    key of its START stays. ``environment`` is set over what the image has, ``seed`` is 64 random
    bytes in hexadecimal, for what would else be the same in every copy.
    """

    run: int
    environment: tuple[tuple[str, str], ...]
    cwd: str
    key: str
    seed: str

    def encode(self) -> bytes:
        return json.dumps(
            {
                "run": self.run,
                "environment": dict(self.environment),
                "cwd": self.cwd,
                "key": self.key,
                "seed": self.seed,
            }
        ).encode()

    @classmethod
    def decode(cls, payload: bytes) -> Resume:
        body = _object(payload, "RESUME")
        environment = body.get("environment")
        if not isinstance(environment, dict):
            raise RemoteProtocolError("A RESUME lacks its environment.")
        return cls(
            run=_number(body.get("run"), "The run of a RESUME"),
            environment=tuple(
                (name, _text(value, "A value of a RESUME's environment"))
                for name, value in environment.items()
            ),
            cwd=_text(body.get("cwd"), "The cwd of a RESUME"),
            key=_text(body.get("key"), "The key of a RESUME"),
            seed=_text(body.get("seed"), "The seed of a RESUME"),
        )

    def __repr__(self) -> str:
        return f"Resume(run={self.run}, cwd={self.cwd!r}, key=…, seed=…)"


@dataclass(frozen=True)
class Resumed:
    """Guest to host: kernel number ``run`` is ready, with nothing left of the image's life.

    ``rekeyed``: it signs with the key of the RESUME, not with that of its START.
    """

    run: int
    rekeyed: bool

    def encode(self) -> bytes:
        return _RUN_ANSWER.pack(self.run, self.rekeyed)

    @classmethod
    def decode(cls, payload: bytes) -> Resumed:
        return cls(*_unpack_answer(payload, "RESUMED"))


@dataclass(frozen=True)
class Ask:
    """Host to guest: has anything of kernel number ``run`` still to happen by itself?"""

    run: int

    def encode(self) -> bytes:
        return _RUN.pack(self.run)

    @classmethod
    def decode(cls, payload: bytes) -> Ask:
        return cls(*_unpack(_RUN, payload, "ASK"))


@dataclass(frozen=True)
class Quiet:
    """Guest to host, the answer to an Ask.

    ``quiet``: nothing will happen in the sandbox until something is sent to it.
    """

    run: int
    quiet: bool

    def encode(self) -> bytes:
        return _RUN_ANSWER.pack(self.run, self.quiet)

    @classmethod
    def decode(cls, payload: bytes) -> Quiet:
        return cls(*_unpack_answer(payload, "QUIET"))


@dataclass(frozen=True)
class Diverted:
    """A DATA or CREDIT frame, unread: for the kernel, which speaks frames itself."""

    frame: bytes


@dataclass(frozen=True)
class Message:
    """A whole message of a kernel's channel. ``size`` is what it counts in its channel's
    window, ``generation`` which windows those are: each run has fresh ones."""

    channel: Channel
    parts: list[Part]
    size: int
    generation: int

    def __repr__(self) -> str:
        return f"<Message {self.channel.name.lower()} {len(self.parts)} parts {self.size} bytes>"


@dataclass(frozen=True)
class Signal:
    """Host to guest: send ``signum`` to the process group of kernel number ``run``."""

    run: int
    signum: int

    def encode(self) -> bytes:
        return _RUN_SIGNAL.pack(self.run, self.signum)

    @classmethod
    def decode(cls, payload: bytes) -> Signal:
        run, signum = _unpack(_RUN_SIGNAL, payload, "SIGNAL")
        if not 0 < signum <= 64:
            raise RemoteProtocolError(f"There is no signal {signum}.")
        return cls(run, signum)


@dataclass(frozen=True)
class Exited:
    """Guest to host: kernel number ``run`` ended; its last messages came before this.

    ``status`` as in ``subprocess``: the exit status, or minus the signal that ended it.
    """

    run: int
    status: int

    def encode(self) -> bytes:
        return _RUN_STATUS.pack(self.run, self.status)

    @classmethod
    def decode(cls, payload: bytes) -> Exited:
        run, status = _unpack(_RUN_STATUS, payload, "EXIT")
        if not -64 <= status <= 255:
            raise RemoteProtocolError(f"There is no exit status {status}.")
        return cls(run, status)


@dataclass(frozen=True)
class Stats:
    """Guest to host: what it counts inside. Shown to people, never acted on."""

    processes: int
    threads: int
    memory: int

    def encode(self) -> bytes:
        return _STATS.pack(self.processes, self.threads, self.memory)

    @classmethod
    def decode(cls, payload: bytes) -> Stats:
        return cls(*_unpack(_STATS, payload, "STATS"))


@dataclass(frozen=True)
class Log:
    """Guest to host: text for the kernel's log. Any text at all: the reader must clean it."""

    source: LogSource
    text: str


@dataclass(frozen=True)
class Ping:
    """Are you there? The answer is a Pong with the same token, which the connection queues."""

    token: int

    def encode(self) -> bytes:
        return _TOKEN.pack(self.token)

    @classmethod
    def decode(cls, payload: bytes) -> Ping:
        return cls(*_unpack(_TOKEN, payload, "PING"))


@dataclass(frozen=True)
class Pong:
    token: int

    def encode(self) -> bytes:
        return _TOKEN.pack(self.token)

    @classmethod
    def decode(cls, payload: bytes) -> Pong:
        return cls(*_unpack(_TOKEN, payload, "PONG"))


@dataclass(frozen=True)
class Stop:
    """Host to guest: end every process and the sandbox with it."""


Event = Union[
    Hello,
    Start,
    Started,
    Resume,
    Resumed,
    Message,
    Diverted,
    Ask,
    Quiet,
    Signal,
    Exited,
    Stats,
    Log,
    Ping,
    Pong,
    Stop,
]
