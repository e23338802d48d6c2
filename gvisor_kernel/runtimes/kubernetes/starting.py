"""The first words with a pod: waits until its container answers, and sends it what it needs.

An attach is believed only after an answer: the handshake succeeds before the container exists, and
while its node does not answer.
"""

from __future__ import annotations

import logging
import os
import re
import select
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from gvisor_kernel.errors import LaunchError
from gvisor_kernel.runtimes.kubernetes.attach import STDOUT, Stream, StreamCut, wait_readable
from gvisor_kernel.runtimes.kubernetes.cluster import is_cut_by
from gvisor_kernel.runtimes.kubernetes.pod_state import find_advice
from gvisor_kernel.strict_json import JsonError, parse_json

log = logging.getLogger(__name__)

HELLO_SECONDS = 1.0
"""Seconds that an answer may take before the pod is spoken to again."""
HELLOS = 3
"""Times that it is spoken to on one connection."""
RETRY_SECONDS = 0.2
MAX_LINE = 256 * 1024
"""Bytes of the answer: the variables of the image are the longest part."""
CHUNK = 256 * 1024
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CLUSTERS = re.compile(r"KUBERNETES_.*|HOSTNAME")
"""Variables that a cluster sets in each container."""


@dataclass(frozen=True)
class Facts:
    """A container's report about its image. ``environment``: its variables."""

    environment: Mapping[str, str]
    python: str


@dataclass(frozen=True)
class Look:
    """The cluster's report about a pod that does not answer. ``obstacle``: why it will never run;
    ``wait``: what it waits for. Both may be empty."""

    obstacle: str = ""
    wait: str = ""


@dataclass(frozen=True)
class Found:
    """A connection to a container that has answered on it."""

    stream: Stream
    facts: Facts


def find_container(
    attach: Callable[[], Stream],
    look: Callable[[], Look],
    note: Callable[[bytes], None],
    deadline: float,
) -> Found:
    """Attach until the container answers.

    :param look: asks the cluster what keeps the pod from running
    :param note: gets what the container writes to stderr
    :raises LaunchError: when it cannot, or does not answer until ``deadline``
    """
    why = "it does not answer"
    while True:
        seen = look()
        if seen.obstacle:
            raise LaunchError(
                f"The pod of the kernel does not run: {seen.obstacle}.", find_advice(seen.obstacle)
            )
        try:
            stream = attach()
        except StreamCut as error:
            why = str(error)
            if is_cut_by(error, 401, 403):
                raise LaunchError(
                    f"The API server lets nobody attach to the pod: {_shorten(why)}.",
                    "see which rights are missing: gvisor-kernel doctor --runtime kubernetes",
                ) from error
        else:
            try:
                facts = _greet(stream, note, deadline)
                if facts is not None:
                    return Found(stream, facts)
            except StreamCut as error:
                why = str(error)
            except BaseException:
                stream.close()
                raise
            stream.close()
        if time.monotonic() > deadline:
            raise LaunchError(
                f"The pod of the kernel did not start in time: {_shorten(seen.wait or why)}.",
                find_advice(seen.wait)
                or "raise the setting start_timeout if the nodes must pull the image first.",
            )
        time.sleep(RETRY_SECONDS)


def _shorten(words: str) -> str:
    return "".join(c for c in words if c.isprintable())[:500].rstrip(".")


def _greet(stream: Stream, note: Callable[[bytes], None], deadline: float) -> Facts | None:
    """Return what the container answers; None if it does not."""
    text = b""
    for _ in range(HELLOS):
        nonce = os.urandom(16).hex().encode()
        stream.write(b"hello " + nonce + b"\n")
        until = min(deadline, time.monotonic() + HELLO_SECONDS)
        while (left := until - time.monotonic()) > 0:
            if not wait_readable(stream, left):
                break
            for channel, piece in stream.read():  # no timeout: it is ready, or does not block
                if channel == STDOUT:
                    text = (text + bytes(piece))[-MAX_LINE:]
                else:
                    note(bytes(piece))
            begin = text.find(b"here " + nonce + b" ")
            end = text.find(b"\n", begin)
            if begin >= 0 and end >= 0:
                return read_facts(text[begin:end].split(b" ", 2)[2])
    return None


def read_facts(text: bytes) -> Facts:
    """Return the facts in an answer. A stranger may have made the image.

    :raises LaunchError: when they cannot be used
    """
    try:
        content = parse_json(text, MAX_LINE)
        environ, python = content["environ"], content["python"]
    except (JsonError, KeyError, TypeError) as error:
        raise LaunchError("The image's Python has sent no facts.", "check the image.") from error
    variables = {
        name: value
        for name, value in (environ.items() if isinstance(environ, dict) else ())
        if isinstance(value, str)
        and _NAME.fullmatch(name)
        and not _CLUSTERS.fullmatch(name)
        and "\0" not in value
        and value.isprintable()
    }
    return Facts(variables, str(python)[:200])


def send_files(
    found: Found,
    source: bytes,
    config: bytes,
    archive: Iterable[bytes],
    note: Callable[[bytes], None],
    seconds: float,
) -> bytes:
    """Send PID 1 its program, its configuration and the files; return what it has written.

    ``seconds``: how long no byte may be taken.

    :raises LaunchError: when the connection ends, or nothing is taken any more
    """
    talk = _Talk(found.stream, note, seconds)
    length = struct.Struct(">I")
    try:
        talk.send(b"code %d\n" % len(source) + source + length.pack(len(config)) + config)
        held = bytearray()
        for piece in archive:
            held += piece
            while len(held) >= CHUNK:
                talk.send(length.pack(CHUNK) + held[:CHUNK])
                del held[:CHUNK]
        if held:
            talk.send(length.pack(len(held)) + bytes(held))
        talk.send(length.pack(0))
        talk.finish()
    except StreamCut as error:
        raise LaunchError(
            f"The connection to the pod was lost while files were sent: {error}.",
            "start the kernel again.",
        ) from error
    return bytes(talk.output)


class _Talk:
    """Writes to a stream, and reads meanwhile what comes."""

    def __init__(self, stream: Stream, note: Callable[[bytes], None], seconds: float) -> None:
        self._stream, self._note, self._seconds = stream, note, seconds
        self._until = time.monotonic() + seconds
        self.output = bytearray()

    def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            room = self._stream.room
            if room:
                self._stream.write(bytes(view[:room]))
                view = view[room:]
                self._until = time.monotonic() + self._seconds
            else:
                self._wait()

    def finish(self) -> None:
        """Wait until everything is sent."""
        while self._stream.events(False) & select.POLLOUT:
            self._wait()

    def _wait(self) -> None:
        """Wait until something was taken, or has come, which does not count."""
        queued, left = self._stream.queued, self._until - time.monotonic()
        if left <= 0 or not wait_readable(self._stream, left):
            raise StreamCut(f"it has taken nothing for {self._seconds:g} s")
        for channel, piece in self._stream.read():  # no timeout: it is ready, or does not block
            if channel != STDOUT:
                self._note(bytes(piece))
            elif len(self.output) < MAX_LINE:
                self.output += piece
        self._stream.flush()
        if self._stream.queued < queued:
            self._until = time.monotonic() + self._seconds
