"""Files by copy, on the host: what is sent to a node before a start, and how outputs come back.

They come back by a short command of their own, which any process of the user can run: for ``sync``,
at the end, and after the server or the connection is gone. What a node sends is as hostile as the
kernel that has written it.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import queue
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from gvisor_kernel.config.mounts import check_read_only
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import ArchiveError, SandboxError, SnapshotError
from gvisor_kernel.host.folders import Opened, open_path
from gvisor_kernel.runtimes.copies.contents import Contents, add_inputs, list_files, write_list
from gvisor_kernel.runtimes.copies.outputs import (
    COPIED,
    OutputsCopy,
    record_end,
    sync_copied_outputs,
    take_outputs,
)
from gvisor_kernel.runtimes.mounts.covers import find_jupyter_covers, identify
from gvisor_kernel.runtimes.mounts.plan import Places
from gvisor_kernel.runtimes.nodes.client import Client
from gvisor_kernel.runtimes.nodes.orders import (
    CHUNK,
    MARK,
    Failed,
    Files,
    Piece,
    Ready,
    Sent,
    read_chunks,
    read_fact,
    show_text,
    write_chunks,
)
from gvisor_kernel.runtimes.nodes.reports import F, readable
from gvisor_kernel.runtimes.nodes.settings import find_slurm, find_ssh
from gvisor_kernel.runtimes.nodes.variables import client_variables
from gvisor_kernel.runtimes.state.beginning import Beginning
from gvisor_kernel.runtimes.state.records import Record, note_facts
from gvisor_kernel.runtimes.state.saved import flush
from gvisor_kernel.spec.layout import mount_part

log = logging.getLogger(__name__)

MAX_PATH = 4096
COPY_SECONDS = 120.0
"""Seconds that the copy of outputs may take at the end of a sandbox."""


def copies_files(spec: SandboxSpec) -> bool:
    """Return whether files are copied to the node and back."""
    return "copy" in (find_slurm(spec).files, find_ssh(spec).files)


SILENT_SECONDS = 60.0
"""Seconds that a node may send nothing, and that one piece of the archive may take: some 4 KiB a
second. A copy that gets on takes as long as it takes."""
END_SECONDS = 20.0
"""Seconds that the command may take to end, once it was told that everything is here."""
MAX_HEAD = 64 * 1024
"""Bytes before the archive: what a login script prints."""
MAX_WORDS = 2000


# -- before the start ------------------------------------------------------------------------------


def pack_files(begun: Beginning) -> tuple[SandboxSpec, Contents]:
    """Return what is sent to a node, and the settings with paths in it.

    :raises LaunchError: when a folder is too large
    :raises SettingError: when a mount cannot be copied
    :raises OSError: when a folder cannot be read, or the list of outputs not be written
    """
    spec, inputs, outputs = begun.spec, begun.inputs, begun.outputs
    jupyters = find_jupyter_covers(())
    contents = Contents(covered=identify(jupyters))
    check_read_only(spec.mounts, "files are copied to the node, and are not written back")
    add_inputs(contents, inputs, jupyters)
    contents.measure(spec.disk_limit)
    if outputs.folder is not None:
        _add_outputs(contents, outputs.folder, begun.places, spec.disk_limit)
    asked = replace(
        spec,
        uploads=None if inputs.uploads is None else "uploads",
        outputs=None if outputs.folder is None else "outputs",
        skills="skills" if inputs.skills else None,
        mounts=tuple(replace(mount, source=mount_part(i)) for i, mount in enumerate(spec.mounts)),
    )
    return asked, contents


def _add_outputs(contents: Contents, outputs: Opened, places: Places, limit: int) -> None:
    part = ("outputs", outputs, "outputs")
    Contents(folders=[part]).measure(limit)
    write_list(places.directory / COPIED, list_files(outputs))
    contents.folders.append(part)


def note_copy(directory: Path, record: Record, ready: Ready, sent: Contents) -> None:
    """Note in the record where a node says that its copy is, and tell how many files it lacks.
    Never raises."""
    if ready.copy.isprintable():
        note_facts(directory, record, copy=ready.copy[:MAX_PATH])
    lacks = sent.left_out + ready.left_out
    if lacks:
        log.warning(
            "%d files of %s were not copied to the node: special or unreadable files, or names that"
            " are not allowed",
            *(lacks, record.folder),
        )


# -- back to the host ------------------------------------------------------------------------------


class Fetch:
    """A running command ``fetch`` on a node; a context manager that ends it.

    ``seconds``: how long a node that goes on sending is listened to; None: as long as it sends a
    piece of the archive in ``silent`` seconds.
    """

    left_out = 0
    """Outputs that the node has not sent, known after the archive: special files, unreadable ones,
    those too deep, and names that are not UTF-8."""

    def __init__(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        seconds: float | None = None,
        silent: float = SILENT_SECONDS,
    ) -> None:
        """:raises SandboxError: when there is no such program"""
        self._silent = silent
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
        return self._await_fact(Files).found

    def ask_fit(self, needs: str) -> Files | Failed:
        """Ask whether a kernel with these needs could go on there.

        :raises SandboxError: when the node does not answer
        """
        self._say(needs)
        answer = self._await_fact(Files, Failed)
        assert isinstance(answer, Files | Failed)
        return answer

    def pieces(self) -> Iterator[bytes]:
        """Yield the archive; then ``left_out`` is known.

        :raises SandboxError: when the node does not send all of it
        :raises ArchiveError: when it sends something else
        """
        yield from read_chunks(self._read)
        self.left_out = self._await_fact(Sent).left_out

    def confirm(self) -> None:
        """Let the node remove its copy, and wait until it has. Never raises: what is left there
        is removed later."""
        with suppress(SandboxError):
            self._say("done")
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS)

    def _await_fact(self, *kinds: type[F]) -> F:
        """:raises SandboxError: when the node does not send a fact of one of these kinds"""
        head = b""
        deadline = time.monotonic() + self._silent
        while len(head) < MAX_HEAD and time.monotonic() < deadline:
            head += self._read(1)
            if head.endswith(b"\n"):
                at = head.rfind(MARK)
                fact = read_fact(head[at:-1]) if at >= 0 else None
                if isinstance(fact, kinds):
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
        deadline = time.monotonic() + self._silent
        while len(data) < size:
            waits_for = [out] if self._process.stderr.closed else [out, err]
            now = time.monotonic()
            if now > self._until:
                raise self._fail("it takes too long")
            ready = readable(waits_for, max(0.0, min(deadline, self._until) - now))
            if time.monotonic() > deadline:
                what = f"only {len(data)} of {size} bytes" if data else "nothing"
                raise self._fail(f"{what} came in {self._silent:g} s")
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
        return SandboxError(f"The outputs were not sent: {why}.", "", show_text(text).strip())


def copy_outputs(
    directory: Path,
    record: Record,
    argv: Sequence[str],
    *,
    last: bool,
    seconds: float | None = None,
) -> OutputsCopy | None:
    """Copy what has changed to the folder of outputs; return None if the node has no copy.

    ``last``: the sandbox is ended if it still runs, and the node removes its copy then.

    :raises SandboxError: when the node does not send them
    :raises ArchiveError, OSError: see ``take_outputs``
    """
    # The copy's own limit is reached first: then the next try continues from there.
    limit = None if seconds is None else seconds + SILENT_SECONDS
    with Fetch(argv, client_variables(record.runtime, os.environ), limit) as fetch:
        if not fetch.ask("last" if last else "now", record.container_id):
            return None
        try:
            copy = take_outputs(fetch.pieces(), directory, record, seconds, lambda: fetch.left_out)
        except ArchiveError:
            if last:  # it would be refused again
                fetch.confirm()
            raise
        if last:
            fetch.confirm()
        return copy


def save_outputs(
    directory: Path, record: Record, seconds: float | None, *, in_job: bool = False
) -> bool:
    """Fetch the outputs for the last time; return False if that is to be tried again. Never raises.

    ``in_job``: the job of the sandbox still runs.
    """
    record_end(directory)
    argv = record.step_argv if in_job and record.step_argv else record.fetch_argv
    seconds = COPY_SECONDS if seconds is None else seconds
    try:
        found = copy_outputs(directory, record, argv, last=True, seconds=seconds)
        if found is None and record.copy:
            log.warning(
                "The outputs of %s since the last `gvisor-kernel sync` are lost: %s has no copy of"
                " them any more",
                *(record.identity, record.node),
            )
    except ArchiveError as error:
        log.warning("Not all outputs of %s could be copied: %s", record.identity, error)
    except (OSError, SandboxError) as error:
        log.warning(
            "The outputs of %s are still on %s (%s): %s. It keeps them for a week. To try again:"
            " gvisor-kernel sync %s. To copy them to another folder: gvisor-kernel sync --to"
            " FOLDER %s",
            *(record.identity, record.node, record.copy or "in its state folder"),
            *(_describe(error), record.container_id, record.container_id),
        )
        return False
    note_facts(directory, record, fetch_argv=(), step_argv=())
    return True


def sync_outputs(directory: Path, record: Record, folder: str | None = None) -> tuple[int, int]:
    """Copy the outputs as they are now; see ``sync_copied_outputs``.

    :raises SandboxError: when not everything could be copied
    :raises StateError: when the record cannot be written
    """

    def copy(directory: Path, record: Record) -> OutputsCopy:
        argv = record.fetch_argv if record.ended or not record.step_argv else record.step_argv
        found = copy_outputs(directory, record, argv, last=False)
        if found is None:
            raise SandboxError(
                f"{record.node} has no copy of the outputs of {record.container_id}."
            )
        return found

    return sync_copied_outputs(copy, directory, record, folder)


def _describe(error: Exception) -> str:
    if not isinstance(error, SandboxError):
        return str(error)
    last = error.detail.splitlines()[-1:]
    return " ".join([error.fact.rstrip("."), *(f"({line[:200]})" for line in last)])


# -- images of saved kernels, which the host keeps: a node may be gone when they go on -------------

MAX_LINE = 200
"""Characters of what a node says that are shown."""
QUEUED = 8
"""Pieces of an image that are held until they are written."""
LOOK_SECONDS = 1.0
"""Seconds between two looks whether more of them can come."""
NO_IMAGE = (
    "The kernel's files were copied to its node, and it could not go on without that copy.",
    'set "files" to "shared" for kernels that hibernate.',
)


def send_image(image: Path) -> Iterator[bytes]:
    """Yield the bytes to send for the folder of an image.

    :raises OSError: when it cannot be read
    """
    with open_path(str(image)) as opened:
        yield from write_chunks(Contents(folders=[(".", opened, "image")]).archive(sys.maxsize))


def fetch_image(client: Client, word: bytes, image: Path, seconds: float) -> None:
    """Let the helper of ``client`` save its sandbox, into the empty folder ``image``.

    The kernel there goes on, once all of it is on this machine's disk. ``word``: see ``save_word``.
    ``seconds``: for the node to write it, and for each piece.

    :raises SnapshotError: when that fails
    """
    pieces: queue.Queue[Piece] = queue.Queue(QUEUED)
    client.reports.on_piece = pieces.put
    is_asked = False
    try:
        with open_path(str(image)) as opened:
            is_asked = client.say(word)
            if not is_asked:
                raise SandboxError("The node takes nothing.")
            copy = OutputsCopy(opened, {})
            copy.take(_await_pieces(client, pieces, seconds))
            files = list(image.iterdir())
            if copy.left_out or not all(stat.S_ISREG(path.lstat().st_mode) for path in files):
                raise SandboxError("The node has sent something else.")
            for path in files:
                flush(path)
    except (SandboxError, ArchiveError, OSError) as error:
        raise SnapshotError(
            f"The kernel was not saved: {str(error)[:MAX_LINE]}",
            "see whether the disks of the node and of this machine are full.",
        ) from error
    finally:
        client.reports.on_piece = lambda _: None
        with suppress(queue.Empty):
            while True:
                pieces.get_nowait()  # what is put after this has room
        if is_asked:
            client.say(word)


def _await_pieces(client: Client, pieces: queue.Queue[Piece], seconds: float) -> Iterator[bytes]:
    """:raises SandboxError: when not all pieces come, or too slowly"""
    deadline = time.monotonic() + seconds
    for number in itertools.count():
        piece = None
        while piece is None:
            is_over = client.reports.is_over or time.monotonic() > deadline
            with suppress(queue.Empty):
                piece = pieces.get(timeout=0 if is_over else LOOK_SECONDS)
            if piece is None and is_over:
                raise SandboxError("The node has not sent all of it in time.")
        if piece.error or piece.number != number:
            raise SandboxError(show_text(piece.error, MAX_LINE, "") or "A part was lost.")
        if not piece.data:
            return
        deadline += seconds * len(piece.data) / CHUNK
        yield piece.data
