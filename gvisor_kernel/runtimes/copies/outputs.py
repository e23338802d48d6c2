"""Outputs that are copied: of a sandbox whose engine shows it no folder of this machine.

Which folder they are copied to, what has been copied already, and what is left to be copied when a
sandbox has ended. A kernel has made every byte that is copied, and every name. The host's kernel
resolves paths inside the folder, new files are written under temporary names and renamed into
place, and only regular files, folders and links are made; they belong to the folder's owner.
Everything else is left out and counted.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

from gvisor_kernel.archive.layers import DISK_SPARE, ENTRY_COST, MAX_ENTRIES
from gvisor_kernel.archive.tar import Entry, Kind, TarReader, quote_name
from gvisor_kernel.archive.tree import Parts, Tree
from gvisor_kernel.config.settings import DEFAULTS
from gvisor_kernel.config.validators import may_be_writable
from gvisor_kernel.errors import ArchiveError, SandboxError
from gvisor_kernel.host.descriptors import closing_fd
from gvisor_kernel.host.folders import (
    Identity,
    Opened,
    find_identity,
    open_folder,
    open_path,
    reopen,
)
from gvisor_kernel.host.log_files import Limiter
from gvisor_kernel.host.owners import make_folder, restore_access
from gvisor_kernel.runtimes.copies.contents import RECENT_SECONDS, Copied, read_list, write_list
from gvisor_kernel.runtimes.mounts.written_folders import note_written, read_written
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.runtimes.state.records import Record

log = logging.getLogger(__name__)

COPIED = "outputs.json"
"""The file of a sandbox's directory that lists what was copied."""


def sync_copied_outputs(
    copy: Callable[[Path, Record], OutputsCopy],
    directory: Path,
    record: Record,
    folder: str | None = None,
) -> tuple[int, int]:
    """Copy the outputs of a sandbox as they are now; return how many were copied and left out.

    ``copy`` gets them from the engine, and calls ``take_outputs``. They go into ``folder`` from now
    on, if that is given.

    :raises SandboxError: when not everything could be copied, or not to ``folder``
    :raises StateError: when the record cannot be written
    """
    if folder is not None:
        record = redirect_outputs(directory, record, folder)
    try:
        done = copy(directory, record)
    except (ArchiveError, OSError) as error:
        raise SandboxError(
            f"Not all outputs of {record.container_id} could be copied: {error}.",
            f"check {record.outputs}, and what the kernel has written. To copy to another folder:"
            f" gvisor-kernel sync --to FOLDER {record.container_id}",
        ) from error
    return done.written, done.left_out


def redirect_outputs(directory: Path, record: Record, folder: str) -> Record:
    """Let a sandbox's outputs be copied to ``folder`` from now on; return the changed record.

    For users who have moved the folder of outputs. ``folder`` has to exist.

    :raises SandboxError: when outputs must not be copied there
    :raises StateError: when the record cannot be written
    """
    hint = "name an existing folder that is neither a home nor part of the system."
    try:
        written = read_written(DEFAULTS)
        with open_path(str(Path(folder).absolute()), written.has) as found:
            if not found.is_folder or not may_be_writable(found.path):
                raise SandboxError(f"Outputs must not be copied to {found.path}.", hint)
            written.ensure_access(found)
            new = replace(
                record,
                outputs=found.path,
                outputs_file=found.identity,
                outputs_parent=find_identity(str(Path(found.path).parent)),
                made_outputs=False,
            )
            with records.locked():
                note_written([found])
                records.write_record(directory, new)
    except OSError as error:
        raise SandboxError(f"Could not open {folder}: {error.strerror}.", hint) from error
    return new


def record_end(directory: Path) -> None:
    """Write into the record that the sandbox has ended, and only its outputs must be copied."""
    record = records.read_record(directory)
    if record is not None and not record.ended:
        records.note_facts(directory, record, ended=True)


def take_outputs(
    archive: Iterator[bytes],
    directory: Path,
    record: Record,
    seconds: float | None = None,
    count_unsent: Callable[[], int] = lambda: 0,
) -> OutputsCopy:
    """Copy what has changed in an archive of the outputs to their folder.

    ``count_unsent``: asked after the archive how many files are not in it.

    :raises ArchiveError: when the archive is malformed, or has too many entries
    :raises OSError: when a file or the folder cannot be written; TimeoutError after ``seconds``
    """
    with reopen_outputs(record) as outputs:
        restore_access(outputs)
        copied = read_list(directory / COPIED)
        copy = OutputsCopy(outputs, copied, seconds)
        latest = time.time() - RECENT_SECONDS
        try:
            copy.take(archive)
        finally:  # if it took too long, the next try continues from here
            seen = {name: fact for name, fact in copy.seen.items() if fact[1] < latest}
            with suppress(OSError):
                write_list(directory / COPIED, {**copied, **seen})
    copy.left_out += count_unsent()
    if copy.left_out:
        log.warning(
            "%d of the outputs of %s were not copied: special or unreadable files, or names that"
            " are not allowed",
            *(copy.left_out, record.identity),
        )
    return copy


def reopen_outputs(record: Record) -> Opened:
    """Open the folder that the sandbox was started with; make it again if it was removed.

    A kernel, or another user, may have put a link or another folder in its place: nothing is copied
    there.

    :raises OSError: when the folder is another one now, or cannot be opened
    """
    assert record.outputs is not None
    assert record.outputs_file is not None
    same_boot = records.is_of_this_boot(record)
    try:
        return reopen(record.outputs, Identity(*record.outputs_file), same_boot=same_boot)
    except FileNotFoundError:
        parent, name = os.path.split(record.outputs)
        assert record.outputs_parent is not None
        with reopen(parent, Identity(*record.outputs_parent), same_boot=same_boot) as above:
            return make_folder(above, name)


# -- into the folder of the host -----------------------------------------------------------------


class OutputsCopy:
    """Copies entries of an archive into ``directory``, which the caller holds open.

    ``seconds``: how long all of it may take; None: without a limit. ``copied``: what was copied in.
    A file that is still the same is not written on the host, where somebody may have changed it.
    """

    def __init__(self, directory: Opened, copied: Copied, seconds: float | None = None) -> None:
        status = directory.status()
        own = os.geteuid() == 0
        self._tree = Tree(directory.fd, *((status.st_uid, status.st_gid) if own else (None,)))
        self._directory = directory
        self._copied = copied
        self._deadline = None if seconds is None else time.monotonic() + seconds
        disk = os.fstatvfs(self._tree.root)
        self._room = disk.f_bavail * disk.f_frsize - DISK_SPARE
        self._entries = MAX_ENTRIES
        self._limiter = Limiter()
        self.written = 0
        self.left_out = 0
        self.seen: dict[str, tuple[int, int]] = {}
        """Sizes and times of the files that are the same on both sides now."""

    def take(self, archive: Iterator[bytes]) -> None:
        """Copy all of an archive.

        :raises ArchiveError: when the archive is malformed, or has too many entries
        :raises TimeoutError: when it takes too long
        :raises OSError: when a file cannot be written
        :raises SandboxError: when the engine fails while the archive is read
        """
        reader = TarReader(_Pieces(archive, self._check_time), self._leave_out)
        with closing(self._tree):
            for entry in reader:
                self._check_time()
                if entry.parts:
                    self._put(entry, reader)

    def _leave_out(self, reason: str) -> None:
        self.left_out += 1
        line = self._limiter.admit(f"Not copied to outputs: {reason}")
        if line is not None:
            log.debug("%s", line)

    def _check_time(self) -> None:
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise TimeoutError("it takes too long")

    def _put(self, entry: Entry, reader: TarReader) -> None:
        self._entries -= 1
        if self._entries < 0:
            raise ArchiveError(f"there are more than {MAX_ENTRIES} files, folders and links")
        try:
            match entry.kind:
                case Kind.DIRECTORY:
                    self._put_folder(entry)
                case Kind.FILE if self._is_as_it_was(entry):
                    pass
                case Kind.FILE:
                    self._put_file(entry, reader)
                case Kind.SYMLINK:
                    self._tree.put_symlink(entry.parts, entry.target, entry.mtime)
                    self.written += 1
                case Kind.HARD_LINK:
                    self._tree.put_hard_link(entry.parts, entry.target_parts)
                    self.written += 1
                case _:
                    self._leave_out(f"{quote_name(entry.name)} is a {entry.kind.value}")
            if entry.kind is Kind.FILE:
                self.seen[entry.name] = (entry.size, entry.mtime)
        except ArchiveError as error:
            self._leave_out(str(error))

    def _is_as_it_was(self, entry: Entry) -> bool:
        return self._copied.get(entry.name) == (entry.size, entry.mtime)

    def _put_folder(self, entry: Entry) -> None:
        """Make a folder; one that exists stays as it is."""
        with suppress(OSError):
            os.close(open_folder(self._tree.root, entry.parts))
            return
        self._tree.put_folder(entry.parts, entry.mode, entry.mtime)

    def _put_file(self, entry: Entry, reader: TarReader) -> None:
        cost = entry.size + ENTRY_COST
        if cost > self._room:
            raise _Full(
                f"{quote_name(entry.name)} has {entry.size} bytes, and the disk of"
                f" {self._directory.path} has room for {max(self._room, 0)}"
            )
        self._room -= cost
        temporary: Parts = (*entry.parts[:-1], f".gvisor-kernel-{secrets.token_hex(8)}")

        def read(size: int) -> bytes:
            self._check_time()
            return reader.read(size)

        try:
            self._tree.put_file(temporary, entry.mode, entry.mtime, read)
            self._rename_into_place(temporary, entry.parts)
        except BaseException:
            self._tree.remove(temporary)
            raise
        self.written += 1

    def _rename_into_place(self, temporary: Parts, parts: Parts) -> None:
        with closing_fd(open_folder(self._tree.root, parts[:-1])) as folder:
            try:
                os.rename(temporary[-1], parts[-1], src_dir_fd=folder, dst_dir_fd=folder)
            except IsADirectoryError:
                self._tree.remove(parts)
                os.rename(temporary[-1], parts[-1], src_dir_fd=folder, dst_dir_fd=folder)


class _Full(OSError):
    """The host's disk is full."""


class _Pieces:
    """Reads an archive that comes in pieces as one stream. Calls ``check`` before each piece, also
    of what is only skipped."""

    def __init__(self, pieces: Iterator[bytes], check: Callable[[], None]) -> None:
        self._pieces, self._check = pieces, check
        self._piece = memoryview(b"")

    def read(self, size: int, /) -> bytes:
        while not self._piece:
            self._check()
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._piece = memoryview(piece)
        data, self._piece = bytes(self._piece[:size]), self._piece[size:]
        return data
