"""Files of an image archive by name, decompression, and streams that are hashed while read."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from gvisor_kernel.archive.tar import CHUNK, Kind, Stream, TarReader, quote_name, split_name
from gvisor_kernel.errors import ArchiveError
from gvisor_kernel.host.folders import open_in

# by path: below a private store of this user; an image that a person has given

MAX_DOCUMENT = 4 * 1024 * 1024
"""Bytes of one JSON document."""
MAX_DOCUMENTS = 300
"""JSON documents read from one archive. An honest archive has three to some dozens."""
MAX_DOCUMENT_BYTES = 64 * 1024 * 1024
"""Bytes of all JSON documents read from one archive."""
MAX_LINKS = 3
"""Links followed to one file of an archive."""
MAX_MEMBERS = 10_000
"""Entries of an image archive (not of a layer)."""
XZ_MEMORY = 512 * 1024 * 1024
"""Bytes of memory for the decompression of xz."""
MAX_IDLE = 4 * 1024 * 1024
"""Compressed bytes in a row without output: padding, or millions of empty members."""
MAX_REST = 16 * 1024 * 1024
"""Bytes of a layer's file after the end of its archive."""


class Blobs(Protocol):
    """The files of an archive or a directory by name."""

    def names(self) -> set[str]: ...

    def open(self, name: str) -> AbstractContextManager[Stream]:
        """Open a file for reading.

        :raises ArchiveError: when it does not exist or is not a regular file
        """
        ...


class Documents:
    """The JSON documents that describe an image archive.

    Their number is bounded. Otherwise three levels of indexes with 200 entries each would be read
    200 * 200 * 200 times.
    """

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._left = MAX_DOCUMENTS
        self._bytes_left = MAX_DOCUMENT_BYTES

    def names(self) -> set[str]:
        """Return the names of the archive's files."""
        return self._blobs.names()

    def read(self, name: str) -> bytes:
        """Return a whole document.

        :raises ArchiveError: when it does not exist, or a bound is exceeded
        """
        self._left -= 1
        if self._left < 0:
            raise ArchiveError(f"the image has more than {MAX_DOCUMENTS} documents")
        content = b""
        with self._blobs.open(name) as stream:
            # no timeout: a file; a pipe ends with its writer, or with Ctrl-C
            while data := stream.read(CHUNK):
                content += data
                if len(content) > MAX_DOCUMENT:
                    raise ArchiveError(f"{quote_name(name)} has more than {MAX_DOCUMENT} bytes")
        self._bytes_left -= len(content)
        if self._bytes_left < 0:
            raise ArchiveError(
                f"the documents of the image have more than {MAX_DOCUMENT_BYTES} bytes"
            )
        return content


class FolderBlobs:
    """The files of a directory. Symbolic links cannot lead out of it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def names(self) -> set[str]:
        return {path.name for path in self._directory.iterdir()}

    @contextmanager
    def open(self, name: str) -> Iterator[Stream]:
        split_name(name)
        folder = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd = open_in(folder, name, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise ArchiveError(f"{quote_name(name)} cannot be read: {error.strerror}") from error
        finally:
            os.close(folder)
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ArchiveError(f"{quote_name(name)} is not a regular file")
            yield file


class TarBlobs:
    """The files of an uncompressed tar archive on the disk."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._places: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        file.seek(0)
        reader = TarReader(file)
        for count, entry in enumerate(reader):
            if count >= MAX_MEMBERS:
                raise ArchiveError(f"the archive has more than {MAX_MEMBERS} entries")
            if entry.kind is Kind.DIRECTORY:
                continue
            if entry.name in self._places or entry.name in self._links:
                raise ArchiveError(f"the archive has two entries named {quote_name(entry.name)}")
            if entry.kind is Kind.FILE:
                self._places[entry.name] = (reader.position, entry.size)
            elif entry.kind is Kind.SYMLINK:
                # Older Docker releases write a shared layer once, and link to it.
                path = os.path.normpath(os.path.join(*entry.parts[:-1], entry.target))  # noqa: PTH118
                self._links[entry.name] = path
            elif entry.kind is Kind.HARD_LINK:
                self._links[entry.name] = "/".join(entry.target_parts)

    def names(self) -> set[str]:
        return {*self._places, *self._links}

    @contextmanager
    def open(self, name: str) -> Iterator[Stream]:
        for _ in range(MAX_LINKS):
            name = self._links.get(name, name)
        if name not in self._places:
            raise ArchiveError(f"the archive has no file {quote_name(name)}")
        start, size = self._places[name]
        self._file.seek(start)
        yield _Slice(self._file, size)


class _Slice:
    """The next ``size`` bytes of a file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._left = size

    def read(self, size: int, /) -> bytes:
        data = self._file.read(min(size, self._left))
        self._left -= len(data)
        return data


class HashedStream:
    """A stream that hashes its bytes as they are read."""

    def __init__(self, stream: Stream, algorithm: str) -> None:
        self._stream = stream
        self._hash = hashlib.new(algorithm)
        self.size = 0

    def read(self, size: int = -1, /) -> bytes:
        """Return up to ``size`` bytes, and hash them; a chunk at most if ``size`` is negative."""
        # no timeout: a file; a pipe ends with its writer, or with Ctrl-C
        data = self._stream.read(CHUNK if size < 0 else size)
        self._hash.update(data)
        self.size += len(data)
        return data

    def read_to_end(self) -> None:
        """Read to the end.

        :raises ArchiveError: when more than MAX_REST bytes are left
        """
        left = MAX_REST
        while data := self.read(CHUNK):
            left -= len(data)
            if left < 0:
                raise ArchiveError(f"a layer has more than {MAX_REST} bytes after its end")

    @property
    def digest(self) -> str:
        """Return the digest of what was read so far, in hexadecimal digits."""
        return self._hash.hexdigest()


@contextmanager
def decompressed(stream: Stream) -> Iterator[Stream]:
    """Decompress ``stream``: gzip, zstd, xz or bzip2 by its first bytes, otherwise as it is.

    :raises ArchiveError: also inside the block: when the data is damaged, truncated or a bomb
    """
    start = _read_start(stream, 6)
    raw = _Raw(start, stream)
    whole = io.BufferedReader(cast(Any, raw), CHUNK)
    open_format = next((o for magic, o in _FORMATS if start.startswith(magic)), None)
    if open_format is None:
        yield whole
        return
    raw.limit = MAX_IDLE
    try:
        with closing(open_format(whole)) as found:
            yield _Decompressor(found, raw)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise ArchiveError(f"the archive cannot be decompressed: {error}") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise ArchiveError(f"the archive cannot be decompressed: {error}") from error


def is_compressed(start: bytes) -> bool:
    """Return whether a file that begins with these 6 bytes is compressed in a known format."""
    return any(start.startswith(magic) for magic, _ in _FORMATS)


def _read_start(stream: Stream, size: int) -> bytes:
    start = b""
    # no timeout: a file; a pipe ends with its writer, or with Ctrl-C
    while len(start) < size and (data := stream.read(size - len(start))):
        start += data
    return start


class _Decompressor:
    """A decompressor. Each output resets the limit of the raw stream."""

    def __init__(self, stream: Stream, raw: _Raw) -> None:
        self._stream = stream
        self._raw = raw

    def read(self, size: int, /) -> bytes:
        # no timeout: a file; a pipe ends with its writer, or with Ctrl-C
        data = self._stream.read(size)
        if data:
            self._raw.limit = MAX_IDLE
        return data


class _Raw(io.RawIOBase):
    """A stream with its first bytes put back. At most ``limit`` further bytes can be read."""

    def __init__(self, start: bytes, stream: Stream) -> None:
        self._start = start
        self._stream = stream
        self.limit: int | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        # no timeout: a file; a pipe ends with its writer, or with Ctrl-C
        data = self._start[: len(buffer)] if self._start else self._stream.read(len(buffer))
        self._start = self._start[len(data) :]
        if self.limit is not None:
            self.limit -= len(data)
            if self.limit < 0:
                raise ArchiveError(f"{MAX_IDLE} compressed bytes in a row decompress to nothing")
        buffer[: len(data)] = data
        return len(data)


def _open_gzip(stream: Any) -> Any:
    return gzip.GzipFile(fileobj=stream, mode="rb")


def _open_zstd(stream: Any) -> Any:
    """Use Python's own module, from 3.14 on, or the package zstandard."""
    try:
        from compression import zstd  # type: ignore[import-not-found, unused-ignore]

        return zstd.ZstdFile(stream)
    except ImportError:
        pass
    try:
        import zstandard  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise ArchiveError(
            "the archive is compressed with zstd, which this Python cannot decompress",
            "`python -m pip install zstandard`, or decompress the archive first: `zstd -d FILE`.",
        ) from None
    return _Zstandard(zstandard, stream)


class _Zstandard:
    """A reader of the package. Its errors become EOFError, like those of the other formats."""

    def __init__(self, package: Any, stream: Any) -> None:
        self._error = package.ZstdError
        decompressor = package.ZstdDecompressor(max_window_size=128 * 1024 * 1024)
        self._reader = decompressor.stream_reader(stream, read_across_frames=True)

    def read(self, size: int, /) -> bytes:
        try:
            return bytes(self._reader.read(size))
        except self._error as error:
            raise EOFError(str(error)) from error

    def close(self) -> None:
        self._reader.close()


class _Xz:
    """Like lzma.LZMAFile, with a bound on the memory."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._reset()

    def _reset(self) -> None:
        self._decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)

    def read(self, size: int, /) -> bytes:
        packed = b""
        while True:
            if self._decompressor.eof:
                # no timeout: a file; a pipe ends with its writer, or with Ctrl-C
                packed = (self._decompressor.unused_data or self._stream.read(CHUNK)).lstrip(b"\0")
                if not packed:
                    return b""
                self._reset()
            elif self._decompressor.needs_input:
                # no timeout: a file; a pipe ends with its writer, or with Ctrl-C
                packed = self._stream.read(CHUNK)
                if not packed:
                    raise EOFError("the data is truncated")
            data = self._decompressor.decompress(packed, size)
            packed = b""
            if data:
                return data

    def close(self) -> None:
        """Do nothing: the caller closes the stream."""


_FORMATS: tuple[tuple[bytes, Callable[[Any], Any]], ...] = (
    (b"\x1f\x8b", _open_gzip),
    (b"\x28\xb5\x2f\xfd", _open_zstd),
    (b"\xfd7zXZ\0", _Xz),
    (b"BZh", bz2.BZ2File),
)
