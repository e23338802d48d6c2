"""The command ``fetch`` of a node, as the host sees it: it is asked, and answers with an archive.

It is run through srun or ssh, whose words on stderr explain a failure. Every wait is bounded.
"""

from __future__ import annotations

import math
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

from gvisor_kernel.errors import SandboxError
from gvisor_kernel.runtimes.nodes.archive_chunks import read_chunks
from gvisor_kernel.runtimes.nodes.orders import MARK, read_fact
from gvisor_kernel.runtimes.nodes.reports import readable

SILENT_SECONDS = 60.0
"""Seconds that a node may send nothing, and that one piece of the archive may take: some 4 KiB a
second. A copy that gets on takes as long as it takes."""
END_SECONDS = 20.0
"""Seconds that the command may take to end, once it was told that everything is here."""
MAX_HEAD = 64 * 1024
"""Bytes before the archive: what a login script prints."""
MAX_WORDS = 2000


class Fetch:
    """A running command ``fetch`` on a node; a context manager that ends it.

    ``seconds``: how long a node that goes on sending is listened to; None: as long as it sends a
    piece of the archive in SILENT_SECONDS.
    """

    left_out = 0
    """Outputs that the node has not sent, known after the archive: special files, unreadable ones,
    those too deep, and names that are not UTF-8."""

    def __init__(
        self, argv: Sequence[str], environment: Mapping[str, str], seconds: float | None = None
    ) -> None:
        """:raises SandboxError: when there is no such program"""
        self._until = math.inf if seconds is None else time.monotonic() + seconds
        try:
            self._process = subprocess.Popen(
                list(argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=dict(environment),
                cwd="/",
                bufsize=0,
                start_new_session=True,
            )
        except OSError as error:
            raise SandboxError(f"{argv[0]} could not be started: {error.strerror}.") from error
        self._words = b""

    def __enter__(self) -> Fetch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()  # no timeout: the process has ended
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with suppress(OSError):
                    stream.close()

    def ask(self, word: str, name: str) -> bool:
        """Ask for the copy ``name``; return whether the node has it.

        :raises SandboxError: when the node does not answer
        """
        self._say(f"{word} {name}")
        return self._await_fact("files").get("found") is True

    def pieces(self) -> Iterator[bytes]:
        """Yield the archive; then ``left_out`` is known.

        :raises SandboxError: when the node does not send all of it
        :raises ArchiveError: when it sends something else
        """
        yield from read_chunks(self._read)
        left_out = self._await_fact("sent").get("left_out")
        if isinstance(left_out, int) and 0 < left_out < 2**63:
            self.left_out = left_out

    def confirm(self) -> None:
        """Let the node remove its copy, and wait until it has. Never raises: what is left there
        is removed later."""
        with suppress(SandboxError):
            self._say("done")
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS)

    def _await_fact(self, kind: str) -> Mapping[str, Any]:
        """:raises SandboxError: when the node does not send a fact of that kind"""
        head = b""
        deadline = time.monotonic() + SILENT_SECONDS
        while len(head) < MAX_HEAD and time.monotonic() < deadline:
            head += self._read(1)
            if head.endswith(b"\n"):
                at = head.rfind(MARK)
                fact = read_fact(head[at:-1]) if at >= 0 else None
                if fact is not None and fact["kind"] == kind:
                    return fact
        raise self._fail("it has sent something else")

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
        except OSError as error:
            raise self._fail("the command has ended") from error

    def _read(self, size: int) -> bytes:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        out, err = self._process.stdout.fileno(), self._process.stderr.fileno()
        data = bytearray()
        deadline = time.monotonic() + SILENT_SECONDS
        while len(data) < size:
            waits_for = [out] if self._process.stderr.closed else [out, err]
            now = time.monotonic()
            if now > self._until:
                raise self._fail("it takes too long")
            ready = readable(waits_for, max(0.0, min(deadline, self._until) - now))
            if time.monotonic() > deadline:
                what = f"only {len(data)} of {size} bytes" if data else "nothing"
                raise self._fail(f"{what} came in {SILENT_SECONDS:g} s")
            if out in ready:
                more = os.read(out, size - len(data))  # no timeout: it is ready, or does not block
                if not more:
                    raise self._fail("the command has ended")
                data += more
            elif err in ready and not self._take_words(err):
                self._process.stderr.close()
        return bytes(data)

    def _take_words(self, fd: int) -> bool:
        more = os.read(fd, 4096)  # no timeout: it is ready, or does not block
        self._words = (self._words + more)[-MAX_WORDS:]
        return bool(more)

    def _fail(self, why: str) -> SandboxError:
        stderr = self._process.stderr
        if stderr is not None and not stderr.closed:
            # At most what is kept: a node may go on.
            for _ in range(MAX_WORDS):
                if not (readable([stderr.fileno()], 0.5) and self._take_words(stderr.fileno())):
                    break
        text = self._words.decode(errors="replace")
        told = "".join(c for c in text if c.isprintable() or c == "\n").strip()
        return SandboxError(f"The outputs were not sent: {why}.", "", told)
