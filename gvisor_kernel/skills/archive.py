"""ZIP archives of strangers: read whole into memory, or refused whole with the reason.

``read_archive`` accepts what ordinary programs write, and nothing that could mean two things: one
disk, stored or deflated, every size and checksum true, every byte of the directory accounted for.
Nothing is written here, and nothing is known of skills.

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
"""Bytes of an archive: it is held in memory."""
MAX_UNPACKED = 64 * 1024 * 1024
"""Bytes of all files together: likewise, and they land on the user's disk."""
MAX_ENTRIES = 2000
"""Files and folders. What is meant to be read by a person or a model has a few dozen."""
MAX_RATIO = 100
"""How many times an entry may grow, if it grows beyond RATIO_FROM. Text grows 3 to 20 times."""
RATIO_FROM = 1024 * 1024
MAX_NAME = 400
"""Bytes of a path; below what any file system takes, wherever it is unpacked."""
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
    """A file of a package: its content, and whether it is a program."""

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
    """The files of a ZIP archive by their paths, which are safe to write below a new folder.

    Every size, checksum and name has been checked when this returns. Raises SkillError.
    """
    if len(data) > MAX_PACKED:
        raise SkillError(f"it has more than {MAX_PACKED} bytes")
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
    """Raise SkillError unless ``name`` is a plain relative path, of a folder if it ends with /."""
    shown = show(name)
    if not name:
        raise SkillError("it has an entry without a name")
    if not name.isprintable():
        raise SkillError(f"the name {shown} has a control or formatting character in it")
    if name.startswith("/"):
        raise SkillError(f"the name {shown} is absolute")
    if "\\" in name or ":" in name:
        raise SkillError(f"the name {shown} has a backslash or a colon in it")
    parts = name.removesuffix("/").split("/")
    if ".." in parts:
        raise SkillError(f"the name {shown} leads out of its folder")
    if any(part in ("", ".") or part[-1] in " ." or part[0] == " " for part in parts):
        raise SkillError(f"the name {shown} has an empty part, or one that begins or ends oddly")
    if len(parts) > MAX_DEPTH or len(name.encode()) > MAX_NAME:
        raise SkillError(f"the name {shown} is too long or too deep")
    if max(len(part.encode()) for part in parts) > 200:
        raise SkillError(f"the name {shown} has a part of more than 200 bytes")


def show(name: str) -> str:
    """A name for an error: quoted, escaped, and not long."""
    return ascii(name) if len(name) <= 80 else ascii(name[:80]) + "…"


def check_names(names: list[str]) -> None:
    """Raise SkillError unless every file system, case-blind ones too, keeps these names apart."""
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise SkillError(f"there are two entries named {show(twice)}")
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
                raise SkillError(f"{show(other)} and {show(path)} are the same name to some")
            if other_is_folder is not is_folder:
                raise SkillError(f"{show(path)} is a file and a folder")


def _check_sizes(entries: list[_Entry]) -> None:
    for entry in entries:
        if entry.size > max(RATIO_FROM, MAX_RATIO * entry.packed):
            raise SkillError(
                f"{show(entry.name)} would grow from {entry.packed} to {entry.size} bytes,"
                f" more than {MAX_RATIO} times"
            )
    total = sum(entry.size for entry in entries)
    if total > MAX_UNPACKED:
        raise SkillError(f"its files have {total} bytes together, more than {MAX_UNPACKED}")


def _read_directory(data: bytes) -> tuple[list[_Entry], int]:
    """The entries as the archive's directory has them, and where it begins."""
    end = len(data) - _END.size
    if end < 0 or data[:2] != b"PK":
        raise SkillError("it is no ZIP archive")
    signature, disk, first_disk, here, count, size, offset, comment = _END.unpack_from(data, end)
    if signature != b"PK\5\6" or comment:
        raise SkillError(
            "it is no ZIP archive, or cut off, or has a comment or something else after its end"
        )
    if 0xFFFF in (disk, count) or 0xFFFFFFFF in (size, offset):
        raise SkillError("it is of the ZIP64 kind, which only huge archives need")
    if disk or first_disk or here != count:
        raise SkillError("it is a part of an archive of several files")
    if count > MAX_ENTRIES:
        raise SkillError(f"it has {count} entries, more than {MAX_ENTRIES}")
    if offset + size != end:
        raise SkillError("its directory is not where it should be")
    return list(_parse_directory(data[offset:end], count)), offset


def _parse_directory(directory: bytes, count: int) -> Iterator[_Entry]:
    position = 0
    for _ in range(count):
        try:
            fields = _DIRECTORY.unpack_from(directory, position)
        except struct.error:
            raise SkillError("its directory is cut off") from None
        signature, _, _, flags, method, _, _, crc, packed, size, name_size = fields[:11]
        extra_size, comment_size, disk, _, attributes, offset = fields[11:]
        if signature != b"PK\1\2":
            raise SkillError("its directory is damaged")
        position += _DIRECTORY.size
        raw_name = directory[position : position + name_size]
        extra = directory[position + name_size : position + name_size + extra_size]
        position += name_size + extra_size + comment_size
        if position > len(directory):
            raise SkillError("its directory is cut off")
        name = _decode_name(raw_name, flags)
        if flags & _ENCRYPTED:
            raise SkillError(f"{show(name)} is encrypted")
        if flags & ~_KNOWN_FLAGS or method not in (_STORED, _DEFLATED):
            raise SkillError(f"{show(name)} is packed in an unusual way (method {method})")
        if disk or 0xFFFFFFFF in (packed, size, offset) or _has_zip64(extra):
            raise SkillError(f"{show(name)} is of the ZIP64 kind, which only huge files need")
        _check_kind(name, attributes >> 16, size)
        yield _Entry(name, raw_name, flags, method, crc, packed, size, offset, attributes >> 16)
    if position != len(directory):
        raise SkillError("its directory holds more than it counts")


def _decode_name(raw: bytes, flags: int) -> str:
    try:
        return raw.decode("utf-8" if flags & _UTF8 else "ascii")
    except UnicodeDecodeError:
        raise SkillError(f"the name {raw[:80]!r} is not marked as UTF-8, or is none") from None


def _has_zip64(extra: bytes) -> bool:
    position = 0
    while position + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, position)
        if kind == _ZIP64:
            return True
        position += 4 + size
    return False


def _check_kind(name: str, mode: int, size: int) -> None:
    """Raise SkillError for links, devices and the like, and for folders that are none."""
    kind = stat.S_IFMT(mode)
    if kind == stat.S_IFLNK:
        raise SkillError(f"{show(name)} is a symbolic link")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise SkillError(f"{show(name)} is a device, a pipe or a socket")
    is_folder = name.endswith("/")
    if (kind == stat.S_IFDIR and not is_folder) or (is_folder and (size or kind == stat.S_IFREG)):
        raise SkillError(f"{show(name)} is a file and a folder")


def _find_contents(data: bytes, entries: list[_Entry], directory_at: int) -> list[int]:
    """Where the content of each entry begins; entries must not overlap, and tell one story."""
    starts: list[int] = []
    ranges: list[tuple[int, int, str]] = []
    for entry in entries:
        try:
            fields = _LOCAL.unpack_from(data, entry.offset)
        except struct.error:
            raise SkillError(f"{show(entry.name)} lies beyond the end") from None
        signature, _, flags, method, _, _, crc, packed, size, name_size, extra_size = fields
        start = entry.offset + _LOCAL.size + name_size + extra_size
        raw_name = data[entry.offset + _LOCAL.size : start - extra_size]
        stated = (crc, packed, size)
        told = (entry.crc, entry.packed, entry.size)
        if (
            signature != b"PK\3\4"
            or (raw_name, flags, method) != (entry.raw_name, entry.flags, entry.method)
            or (stated != told and not (flags & _DESCRIPTOR and stated == (0, 0, 0)))
        ):
            raise SkillError(f"{show(entry.name)} says one thing in the directory, another itself")
        starts.append(start)
        ranges.append((entry.offset, start + entry.packed, entry.name))
    following = directory_at
    for begin, end, name in sorted(ranges, reverse=True):
        if end > following:
            raise SkillError(f"{show(name)} overlaps with what comes after it")
        following = begin
    return starts


def _unpack(data: bytes, entry: _Entry, start: int) -> bytes:
    packed = data[start : start + entry.packed]
    content, whole = packed, True
    if entry.method == _DEFLATED:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            content = inflater.decompress(packed, entry.size + 1)
        except zlib.error as error:
            raise SkillError(f"{show(entry.name)} is damaged ({error})") from None
        whole = inflater.eof and not inflater.unused_data
    if len(content) != entry.size or not whole:
        raise SkillError(f"{show(entry.name)} has another size than it says")
    if zlib.crc32(content) != entry.crc:
        raise SkillError(f"{show(entry.name)} has another checksum than it says")
    return content
