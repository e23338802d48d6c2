"""The pipes of a sandbox: its link, and its stderr, which is kept in a file, bounded."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gvisor_kernel.host.descriptors import is_ready
from gvisor_kernel.host.log_files import MAX_STDERR, Allowance, RotatedFile, log_line

PIPE_SIZE = 1024 * 1024
"""Bytes that each pipe of the link can hold."""


@dataclass(frozen=True)
class Ends:
    """The host's ends of a sandbox's pipes, and in ``guest`` the sandbox's, until it has them."""

    link_in: int
    link_out: int
    stderr: int
    guest: tuple[int, int, int]

    def close_guest(self) -> None:
        """Close the sandbox's ends, once the sandbox has them."""
        for fd in self.guest:
            os.close(fd)

    def close_link(self) -> None:
        """Close the host's ends of the link."""
        for fd in (self.link_in, self.link_out):
            os.close(fd)

    def close_host(self) -> None:
        """Close all of the host's ends, after a start that failed."""
        self.close_link()
        os.close(self.stderr)


def make_pipes() -> Ends:
    """Make the pipes of a link and of stderr.

    :raises OSError: when they cannot be made; none is left open then
    """
    made: list[int] = []
    try:
        for _ in range(3):
            made.extend(os.pipe2(os.O_CLOEXEC))
    except OSError:
        for fd in made:
            os.close(fd)
        raise
    guest_in, link_in, link_out, guest_out, stderr, guest_stderr = made
    for fd in (link_in, link_out):
        with suppress(OSError):  # over the user's limit of pipe memory: a smaller pipe works, too
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        os.set_blocking(fd, False)
    return Ends(link_in, link_out, stderr, (guest_in, guest_out, guest_stderr))


TAIL_BYTES = 4096
LONGEST_LINE = 4096
BURST = 256 * 1024
PER_SECOND = 32 * 1024
"""Bytes that are written to the file at once (BURST), and per second in the long run: a kernel can
write as much as it likes here."""
PAUSE_SECONDS = 0.01
"""Pause before a read whose content is dropped: this thread shares the interpreter with all
kernels."""
CATCH_UP_SECONDS = 2.0
"""Seconds that a reader of the last lines waits for this module's thread. Some milliseconds are
usual: only on a machine that is too busy the thread runs that much later."""


class StderrLog:
    """Reads a pipe to its end, in a thread of its own that ends by itself.

    Takes over ``fd``. Each line is appended to ``path`` with a time and the mark ``sandbox:``, as a
    kernel can write any text here. The beginning and the end of the file are kept. Where a flood is
    dropped, a line says how many bytes were left out.
    """

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self._file = RotatedFile(path, MAX_STDERR, files=2, keeps_first=True)
        self._allowance = Allowance(BURST, PER_SECOND)
        self._left_out = 0
        self._tail = b""
        self._line = b""
        self._is_behind = False
        self._is_over = False
        self._changed = threading.Condition()  # no timeout: held for a few steps that do not wait
        self._file.open()  # not later: the last lines come while the directory is being removed
        self._thread = threading.Thread(
            target=self._drain, name="gvisor-kernel-stderr", daemon=True
        )
        self._thread.start()

    def wait(self, seconds: float) -> None:
        """Wait until the last writer has closed the pipe, for at most ``seconds``."""
        self._thread.join(seconds)

    def catch_up(self, seconds: float = CATCH_UP_SECONDS) -> None:
        """Wait until what was written before this call is in ``tail()`` and in the file.

        For at most ``seconds``. A writer that is still there does not delay it, unless it goes on
        writing.
        """
        with self._changed:
            self._changed.wait_for(self._has_all, seconds)

    def _has_all(self) -> bool:
        """Return whether the pipe has nothing that is not kept. The caller holds the lock."""
        # The descriptor's number may be that of another file when the pipe is over.
        return self._is_over or not (self._is_behind or is_ready(self._fd))

    def tail(self) -> str:
        """Return the last lines: at most TAIL_BYTES of printable text."""
        with self._changed:
            content = self._tail
        text = content[-TAIL_BYTES:].decode(errors="replace")
        if len(content) > TAIL_BYTES and "\n" in text:
            text = text.partition("\n")[2]
        return "".join(c for c in text if c.isprintable() or c in "\n\t")

    def _drain(self) -> None:
        try:
            while is_ready(self._fd, None):  # no timeout: a thread, until the sandbox has ended
                with self._changed:
                    content = os.read(self._fd, 65536)  # no timeout: it is ready, or does not block
                    self._is_behind = True
                    self._tail = (self._tail + content)[-TAIL_BYTES - 1 :]
                if not content:
                    self._write_end()
                    return
                is_kept = self._allowance.room() > 0
                if is_kept:
                    self._write_lines(content)
                else:
                    self._left_out += len(self._line) + len(content)
                    self._line = b""
                with self._changed:
                    self._is_behind = False
                    self._changed.notify_all()
                if not is_kept:
                    time.sleep(PAUSE_SECONDS)
        except OSError:
            return
        finally:
            with self._changed:
                self._is_over = True
                os.close(self._fd)
                self._changed.notify_all()

    def _write_end(self) -> None:
        """Write the last lines even where those before them were dropped."""
        last = self.tail().encode(errors="replace") if self._left_out else b""
        self._write_lines(last + b"\n")
        self._file.close()

    def _write_lines(self, content: bytes) -> None:
        """Write the lines that ``content`` completes; first, how many bytes were left out."""
        *lines, self._line = (self._line + content).split(b"\n")
        if len(self._line) > LONGEST_LINE:
            lines, self._line = [*lines, self._line], b""
        out = []
        if self._left_out:
            out.append(log_line("sandbox", f"({self._left_out} bytes were left out)"))
            self._left_out = 0
        out += [
            log_line("sandbox", _escape(line.decode(errors="replace"))) for line in lines if line
        ]
        written = b"".join(out)
        self._allowance.spend(len(written))
        self._file.write(written)


def _escape(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
