"""Untrusted ZIP archives: read into memory as a whole, or refused as a whole with a reason.

``read_archive`` accepts what ordinary programs write, and nothing that two programs could read
differently: one disk, stored or deflated, all sizes and checksums correct, the central directory
complete. Nothing is written here, and nothing is specific to skills.

https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
"""

from __future__ import annotations

import stat
import struct
import unicodedata
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from gvisor_kernel.errors import SkillError

MAX_PACKED = 32 * 1024 * 1024
"""Bytes of an archive. It is held in memory."""
MAX_UNPACKED = 64 * 1024 * 1024
"""Bytes of all files together. They are held in memory and written to the user's disk."""
MAX_ENTRIES = 2000
"""Files and folders. Packages for a person or a model to read have a few dozen."""
MAX_RATIO = 100
"""Uncompressed size of an entry, as a multiple of its compressed size. Text has 3 to 20."""
RATIO_FROM = 1024 * 1024
"""Uncompressed bytes of an entry up to which any ratio is allowed."""
MAX_NAME = 400
"""Bytes of a path: below the limit of every file system, in whatever folder it is unpacked."""
MAX_DEPTH = 10

_END = struct.Struct("<4sHHHHIIH")
_DIRECTORY = struct.Struct("<4sHHHHHHIIIHHHHHII")
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_ENCRYPTED = 1 << 0 | 1 << 6 | 1 << 13
_DESCRIPTOR = 1 << 3
_UTF8 = 1 << 11
_KNOWN_FLAGS = 1 << 1 | 1 << 2 | _DESCRIPTOR | _UTF8
_STORED, _DEFLATED = 0, 8
_ZIP64 = 0x0001


@dataclass(frozen=True)
class File:
    """A file of an archive: its content, and whether it is executable."""

    content: bytes
    executable: bool = False


@dataclass(frozen=True)
class _Entry:
    name: str
    raw_name: bytes
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    offset: int
    mode: int


def read_archive(data: bytes) -> dict[str, File]:
    """Return the files of a ZIP archive by their paths, which are safe to create in a new folder.

    All sizes, checksums and names are checked before it returns.

    :raises SkillError: when the archive is not accepted; ``fact`` is a clause without a full stop
    """
    if len(data) > MAX_PACKED:
        raise SkillError(f"the archive has more than {MAX_PACKED} bytes")
    entries, directory_at = _read_directory(data)
    check_names([entry.name for entry in entries])
    _check_sizes(entries)
    starts = _find_contents(data, entries, directory_at)
    return {
        entry.name: File(_unpack(data, entry, start), bool(entry.mode & 0o100))
        for entry, start in zip(entries, starts, strict=True)
        if not entry.name.endswith("/")
    }


def check_path(name: str) -> None:
    """Check that ``name`` is a plain relative path. A name that ends with / is a folder.

    :raises SkillError: when it is not
    """
    shown = show(name)
    if not name:
        raise SkillError("the archive has an entry without a name")
    if not name.isprintable():
        raise SkillError(f"the name {shown} contains a control or formatting character")
    if name.startswith("/"):
        raise SkillError(f"the name {shown} is absolute")
    if "\\" in name or ":" in name:
        raise SkillError(f"the name {shown} contains a backslash or a colon")
    parts = name.removesuffix("/").split("/")
    if ".." in parts:
        raise SkillError(f"the name {shown} leads out of the folder")
    if any(part in ("", ".") or part[-1] in " ." or part[0] == " " for part in parts):
        raise SkillError(
            f"the name {shown} has an empty part, or a part with spaces or dots at an end"
        )
    if len(parts) > MAX_DEPTH or len(name.encode()) > MAX_NAME:
        raise SkillError(
            f"the name {shown} is too long or too deep (at most {MAX_NAME} bytes and {MAX_DEPTH}"
            " parts)"
        )
    if max(len(part.encode()) for part in parts) > 200:
        raise SkillError(f"the name {shown} has a part of more than 200 bytes")


def show(name: str) -> str:
    """Return a name for a message: quoted, escaped, and shortened."""
    return ascii(name) if len(name) <= 80 else ascii(name[:80]) + "…"


def check_names(names: list[str]) -> None:
    """Check the names, and that they are different on every file system, also without case.

    :raises SkillError: when a name is invalid, or two are the same
    """
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise SkillError(f"the archive has two entries named {show(twice)}")
    seen: dict[str, tuple[str, bool]] = {}
    for name in names:
        check_path(name)
        parts = name.removesuffix("/").split("/")
        for depth in range(1, len(parts) + 1):
            path = "/".join(parts[:depth])
            is_folder = depth < len(parts) or name.endswith("/")
            key = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", path).casefold())
            other, other_is_folder = seen.setdefault(key, (path, is_folder))
            if other != path:
                raise SkillError(
                    f"{show(other)} and {show(path)} are the same on some file systems"
                )
            if other_is_folder is not is_folder:
                raise SkillError(f"{show(path)} is both a file and a folder")


def _check_sizes(entries: list[_Entry]) -> None:
    for entry in entries:
        if entry.size > max(RATIO_FROM, MAX_RATIO * entry.packed):
            raise SkillError(
                f"{show(entry.name)} would grow from {entry.packed} to {entry.size} bytes,"
                f" more than {MAX_RATIO} times"
            )
    total = sum(entry.size for entry in entries)
    if total > MAX_UNPACKED:
        raise SkillError(f"the files have {total} bytes together, more than {MAX_UNPACKED}")


def _read_directory(data: bytes) -> tuple[list[_Entry], int]:
    """Return the entries of the central directory, and its position."""
    end = len(data) - _END.size
    if end < 0 or data[:2] != b"PK":
        raise SkillError("the file is not a ZIP archive")
    signature, disk, first_disk, here, count, size, offset, comment = _END.unpack_from(data, end)
    if signature != b"PK\5\6" or comment:
        raise SkillError(
            "the file is not a ZIP archive, is truncated, or has a comment or data after its end"
        )
    if 0xFFFF in (disk, count) or 0xFFFFFFFF in (size, offset):
        raise SkillError("the archive uses ZIP64, which is not supported")
    if disk or first_disk or here != count:
        raise SkillError("the archive is split into several files")
    if count > MAX_ENTRIES:
        raise SkillError(f"the archive has {count} entries, more than {MAX_ENTRIES}")
    if offset + size != end:
        raise SkillError("the central directory is not at its stated position")
    return list(_parse_directory(data[offset:end], count)), offset


def _parse_directory(directory: bytes, count: int) -> Iterator[_Entry]:
    position = 0
    for _ in range(count):
        try:
            fields = _DIRECTORY.unpack_from(directory, position)
        except struct.error:
            raise SkillError("the central directory is truncated") from None
        signature, _, _, flags, method, _, _, crc, packed, size, name_size = fields[:11]
        extra_size, comment_size, disk, _, attributes, offset = fields[11:]
        if signature != b"PK\1\2":
            raise SkillError("the central directory is damaged")
        position += _DIRECTORY.size
        raw_name = directory[position : position + name_size]
        extra = directory[position + name_size : position + name_size + extra_size]
        position += name_size + extra_size + comment_size
        if position > len(directory):
            raise SkillError("the central directory is truncated")
        name = _decode_name(raw_name, flags)
        if flags & _ENCRYPTED:
            raise SkillError(f"{show(name)} is encrypted")
        if flags & ~_KNOWN_FLAGS or method not in (_STORED, _DEFLATED):
            raise SkillError(f"{show(name)} has unsupported flags or compression (method {method})")
        if disk or 0xFFFFFFFF in (packed, size, offset) or _has_zip64(extra):
            raise SkillError(f"{show(name)} uses ZIP64, which is not supported")
        _check_kind(name, attributes >> 16, size)
        yield _Entry(name, raw_name, flags, method, crc, packed, size, offset, attributes >> 16)
    if position != len(directory):
        raise SkillError("the central directory has more entries than it states")


def _decode_name(raw: bytes, flags: int) -> str:
    encoding = "UTF-8" if flags & _UTF8 else "ASCII"
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError:
        kind = "marked as UTF-8" if flags & _UTF8 else "not marked as UTF-8"
        raise SkillError(f"the name {raw[:80]!r} is {kind}, but is not {encoding}") from None


def _has_zip64(extra: bytes) -> bool:
    position = 0
    while position + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, position)
        if kind == _ZIP64:
            return True
        position += 4 + size
    return False


def _check_kind(name: str, mode: int, size: int) -> None:
    """Refuse links, devices, pipes and sockets, and kinds that contradict the name."""
    kind = stat.S_IFMT(mode)
    if kind == stat.S_IFLNK:
        raise SkillError(f"{show(name)} is a symbolic link")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise SkillError(f"{show(name)} is a device, a pipe or a socket")
    is_folder = name.endswith("/")
    if (kind == stat.S_IFDIR and not is_folder) or (is_folder and (size or kind == stat.S_IFREG)):
        raise SkillError(f"{show(name)} is both a file and a folder")


def _find_contents(data: bytes, entries: list[_Entry], directory_at: int) -> list[int]:
    """Return where the content of each entry begins. Check local headers and overlaps."""
    starts: list[int] = []
    ranges: list[tuple[int, int, str]] = []
    for entry in entries:
        try:
            fields = _LOCAL.unpack_from(data, entry.offset)
        except struct.error:
            raise SkillError(f"{show(entry.name)} begins after the end of the archive") from None
        signature, _, flags, method, _, _, crc, packed, size, name_size, extra_size = fields
        start = entry.offset + _LOCAL.size + name_size + extra_size
        raw_name = data[entry.offset + _LOCAL.size : start - extra_size]
        local = (crc, packed, size)
        central = (entry.crc, entry.packed, entry.size)
        if (
            signature != b"PK\3\4"
            or (raw_name, flags, method) != (entry.raw_name, entry.flags, entry.method)
            or (local != central and not (flags & _DESCRIPTOR and local == (0, 0, 0)))
        ):
            raise SkillError(
                f"{show(entry.name)} has a local header that contradicts the directory"
            )
        starts.append(start)
        ranges.append((entry.offset, start + entry.packed, entry.name))
    following = directory_at
    for begin, end, name in sorted(ranges, reverse=True):
        if end > following:
            raise SkillError(f"{show(name)} overlaps with the next entry")
        following = begin
    return starts


def _unpack(data: bytes, entry: _Entry, start: int) -> bytes:
    packed = data[start : start + entry.packed]
    content, is_complete = packed, True
    if entry.method == _DEFLATED:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            content = inflater.decompress(packed, entry.size + 1)
        except zlib.error as error:
            raise SkillError(f"{show(entry.name)} is damaged ({error})") from None
        is_complete = inflater.eof and not inflater.unused_data
    if len(content) != entry.size or not is_complete:
        raise SkillError(f"{show(entry.name)} does not have its stated size")
    if zlib.crc32(content) != entry.crc:
        raise SkillError(f"{show(entry.name)} does not have its stated checksum")
    return content
