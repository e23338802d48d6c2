"""The parts of an image archive by name, and streams that are checked while they are read."""

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

from gvisor_kernel.archive.refusal import Refused
from gvisor_kernel.archive.scoped import open_in
from gvisor_kernel.archive.tar import CHUNK, Kind, Stream, TarReader, show, split_name

MAX_DOCUMENT = 4 * 1024 * 1024
MAX_DOCUMENTS = 300
MAX_DOCUMENT_BYTES = 64 * 1024 * 1024
"""All that are read of one archive; of an honest one three to some dozens."""
MAX_LINKS = 3
MAX_MEMBERS = 10_000
XZ_MEMORY = 512 * 1024 * 1024
MAX_IDLE = 4 * 1024 * 1024
"""Packed bytes that unpack to nothing, in a row: padding, or empty parts by the million."""
MAX_REST = 16 * 1024 * 1024
"""Bytes of a layer's file after what its archive needs."""


class Blobs(Protocol):
    """What an archive or a folder has by name."""

    def names(self) -> set[str]: ...

    def open(self, name: str) -> AbstractContextManager[Stream]:
        """Raises Refused where there is no such file."""
        ...


class Documents:
    """The small files of an archive that say what is in it. A few of them: lists of lists that
    name each other would else be read 200 times 200 times 200 times."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._left = MAX_DOCUMENTS
        self._bytes_left = MAX_DOCUMENT_BYTES

    def names(self) -> set[str]:
        return self._blobs.names()

    def read(self, name: str) -> bytes:
        """One, whole. Raises Refused."""
        self._left -= 1
        if self._left < 0:
            raise Refused(f"more than {MAX_DOCUMENTS} documents say what is in it")
        content = b""
        with self._blobs.open(name) as stream:
            while data := stream.read(CHUNK):
                content += data
                if len(content) > MAX_DOCUMENT:
                    raise Refused(f"{show(name)} has more than {MAX_DOCUMENT} bytes")
        self._bytes_left -= len(content)
        if self._bytes_left < 0:
            raise Refused(f"documents of more than {MAX_DOCUMENT_BYTES} bytes say what is in it")
        return content


class FolderBlobs:
    """The files of a folder. Nothing outside of it is reached, whatever links it has."""

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
            raise Refused(f"{show(name)} cannot be read: {error.strerror}") from error
        finally:
            os.close(folder)
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise Refused(f"{show(name)} is no file")
            yield file


class TarBlobs:
    """The files of an archive that is on the disk as it is, not packed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._places: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        file.seek(0)
        reader = TarReader(file)
        for count, entry in enumerate(reader):
            if count >= MAX_MEMBERS:
                raise Refused(f"it has more than {MAX_MEMBERS} parts")
            if entry.kind is Kind.DIRECTORY:
                continue
            if entry.name in self._places or entry.name in self._links:
                raise Refused(f"there are two entries named {show(entry.name)}")
            if entry.kind is Kind.FILE:
                self._places[entry.name] = (reader.position, entry.size)
            elif entry.kind is Kind.SYMLINK:
                # Docker's older archives have a layer that two images share once.
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
            raise Refused(f"it has no {show(name)}")
        start, size = self._places[name]
        self._file.seek(start)
        yield _Part(self._file, size)


class _Part:
    """The next ``size`` bytes of a file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._left = size

    def read(self, size: int, /) -> bytes:
        data = self._file.read(min(size, self._left))
        self._left -= len(data)
        return data


class Checked:
    """A stream whose bytes are counted and hashed as they are read."""

    def __init__(self, stream: Stream, algorithm: str) -> None:
        self._stream = stream
        self._hash = hashlib.new(algorithm)
        self.size = 0

    def read(self, size: int = -1, /) -> bytes:
        data = self._stream.read(CHUNK if size < 0 else size)
        self._hash.update(data)
        self.size += len(data)
        return data

    def drain(self) -> None:
        """Read to the end, which is near. Raises Refused where it is not."""
        left = MAX_REST
        while data := self.read(CHUNK):
            left -= len(data)
            if left < 0:
                raise Refused(f"more than {MAX_REST} bytes follow after the end of a layer")

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()


@contextmanager
def unpacked(stream: Stream) -> Iterator[Stream]:
    """``stream`` without its compression, which its first bytes tell. Raises Refused, also
    in the block within."""
    start = _read_start(stream, 6)
    raw = _Raw(start, stream)
    whole = io.BufferedReader(cast(Any, raw), CHUNK)
    opening = next((o for magic, o in _PACKED if start.startswith(magic)), None)
    if opening is None:
        yield whole
        return
    raw.limit = MAX_IDLE
    try:
        with closing(opening(whole)) as found:
            yield _Unpacking(found, raw)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise Refused(f"it cannot be unpacked: {error}") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise Refused(f"it cannot be unpacked: {error}") from error


def is_packed(start: bytes) -> bool:
    return any(start.startswith(magic) for magic, _ in _PACKED)


def _read_start(stream: Stream, size: int) -> bytes:
    start = b""
    while len(start) < size and (data := stream.read(size - len(start))):
        start += data
    return start


class _Unpacking:
    """What unpacks a raw stream, and tells it when something has come out."""

    def __init__(self, unpacking: Stream, raw: _Raw) -> None:
        self._unpacking = unpacking
        self._raw = raw

    def read(self, size: int, /) -> bytes:
        data = self._unpacking.read(size)
        if data:
            self._raw.limit = MAX_IDLE
        return data


class _Raw(io.RawIOBase):
    """A stream with its first bytes put back. ``limit``: bytes that may be read from here on."""

    def __init__(self, start: bytes, stream: Stream) -> None:
        self._start = start
        self._stream = stream
        self.limit: int | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        data = self._start[: len(buffer)] if self._start else self._stream.read(len(buffer))
        self._start = self._start[len(data) :]
        if self.limit is not None:
            self.limit -= len(data)
            if self.limit < 0:
                raise Refused(f"{MAX_IDLE} bytes of it unpack to nothing")
        buffer[: len(data)] = data
        return len(data)


def _open_gzip(stream: Any) -> Any:
    return gzip.GzipFile(fileobj=stream, mode="rb")


def _open_zstd(stream: Any) -> Any:
    """By Python's own module, from 3.14 on, or by the package zstandard."""
    try:
        from compression import zstd  # type: ignore[import-not-found, unused-ignore]

        return zstd.ZstdFile(stream)
    except ImportError:
        pass
    try:
        import zstandard  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise Refused(
            "it is packed by zstd, which this Python cannot unpack",
            "`python -m pip install zstandard`, or import it as it comes out of `zstd -d`.",
        ) from None
    return _Zstandard(zstandard, stream)


class _Zstandard:
    """A reader of the package, with its errors as EOFError, like those of the others."""

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
    """As lzma.LZMAFile, with an end to the memory that an archive may ask for."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._new()

    def _new(self) -> None:
        self._unpack = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)

    def read(self, size: int, /) -> bytes:
        packed = b""
        while True:
            if self._unpack.eof:
                packed = (self._unpack.unused_data or self._stream.read(CHUNK)).lstrip(b"\0")
                if not packed:
                    return b""
                self._new()
            elif self._unpack.needs_input:
                packed = self._stream.read(CHUNK)
                if not packed:
                    raise EOFError("it is cut off")
            data = self._unpack.decompress(packed, size)
            packed = b""
            if data:
                return data

    def close(self) -> None:
        """There is nothing to close but the stream, which is its owner's."""


_PACKED: tuple[tuple[bytes, Callable[[Any], Any]], ...] = (
    (b"\x1f\x8b", _open_gzip),
    (b"\x28\xb5\x2f\xfd", _open_zstd),
    (b"\xfd7zXZ\0", _Xz),
    (b"BZh", bz2.BZ2File),
)
