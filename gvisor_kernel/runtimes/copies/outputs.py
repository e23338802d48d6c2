"""Copies what a sandbox of an engine has written to its outputs into the folder of the host.

A kernel has made every byte of it, and every name. The host's kernel resolves paths inside the
folder, new files are written under temporary names and renamed into place, and only regular files,
folders and links are made; they belong to the folder's owner. Everything else is left out and
counted.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from gvisor_kernel.archive.archive_error import ArchiveError
from gvisor_kernel.archive.layers import DISK_SPARE, ENTRY_COST, MAX_ENTRIES
from gvisor_kernel.archive.scoped import open_folder
from gvisor_kernel.archive.tar import Entry, Kind, TarReader, quote_name
from gvisor_kernel.archive.tree import Parts, Tree
from gvisor_kernel.host.folders import Opened
from gvisor_kernel.host.log_files import Limiter
from gvisor_kernel.runtimes.copies.contents import Copied

log = logging.getLogger(__name__)


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
        try:
            for entry in reader:
                self._check_time()
                if entry.parts:
                    self._put(entry, reader)
        finally:
            self._tree.close()

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
        folder = open_folder(self._tree.root, parts[:-1])
        try:
            try:
                os.rename(temporary[-1], parts[-1], src_dir_fd=folder, dst_dir_fd=folder)
            except IsADirectoryError:
                self._tree.remove(parts)
                os.rename(temporary[-1], parts[-1], src_dir_fd=folder, dst_dir_fd=folder)
        finally:
            os.close(folder)


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
