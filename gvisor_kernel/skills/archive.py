"""Untrusted ZIP archives: read into memory as a whole, or refused as a whole with a reason.

``zipfile`` reads what was checked before: number and names of the entries, their kinds, and the
sizes that they state. Accepted is what ordinary programs write: one disk, no ZIP64, stored or
deflated, nothing before or after the archive. Nothing is written here, and nothing is specific to
skills.
"""

from __future__ import annotations

import io
import stat
import struct
import unicodedata
import zipfile
import zlib
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

MAX_DIRECTORY = MAX_ENTRIES * 1024
"""Bytes of the central directory, which ``zipfile`` reads whole, whatever number of entries it
states: an entry has 46, its name and some extra fields."""

_END = struct.Struct("<4sHHHHIIH")
_LOCAL_HEADER = 30
"""Bytes before the name of an entry."""
_ENCRYPTED = 1 << 0 | 1 << 6 | 1 << 13
_UTF8 = 1 << 11
_UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError)
_KNOWN_FLAGS = 1 << 1 | 1 << 2 | 1 << 3 | _UTF8


@dataclass(frozen=True)
class File:
    """A file of an archive: its content, and whether it is executable."""

    content: bytes
    executable: bool = False


def read_archive(data: bytes) -> dict[str, File]:
    """Return the files of a ZIP archive by their paths, which are safe to create in a new folder.

    All sizes, checksums and names are checked before it returns.

    :raises SkillError: when the archive is not accepted; ``fact`` is a clause without a full stop
    """
    if len(data) > MAX_PACKED:
        raise SkillError(f"the archive has more than {MAX_PACKED} bytes")
    count = _check_end(data)
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except UnicodeDecodeError:
        raise SkillError("a name is marked as UTF-8, but is not UTF-8") from None
    except (*_UNREADABLE, struct.error) as error:
        raise SkillError(f"the central directory is damaged ({error})") from None
    with archive:
        entries = archive.infolist()
        if len(entries) != count:
            raise SkillError("the central directory has more entries than it states")
        for entry in entries:
            _check_entry(entry)
        check_names([entry.orig_filename for entry in entries])
        _check_overlap(entries, archive.start_dir)
        total = sum(entry.file_size for entry in entries)
        if total > MAX_UNPACKED:
            raise SkillError(f"the files have {total} bytes together, more than {MAX_UNPACKED}")
        return {
            entry.filename: File(_read(archive, entry), bool(entry.external_attr >> 16 & 0o100))
            for entry in entries
            if not entry.is_dir()
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


def _check_end(data: bytes) -> int:
    """Check the end of the archive; return the number of entries that it states."""
    end = len(data) - _END.size
    if end < 0 or data[:2] != b"PK":
        raise SkillError("the file is not a ZIP archive")
    signature, disk, first_disk, here, count, size, offset, comment = _END.unpack_from(data, end)
    if signature != b"PK\5\6" or comment:
        raise SkillError(
            "the file is not a ZIP archive, is truncated, or has a comment or data after its end"
        )
    if (
        0xFFFF in (disk, count)
        or 0xFFFFFFFF in (size, offset)
        or data[end - 20 : end - 16] == b"PK\6\7"
    ):
        raise SkillError("the archive uses ZIP64, which is not supported")
    if disk or first_disk or here != count:
        raise SkillError("the archive is split into several files")
    if count > MAX_ENTRIES:
        raise SkillError(f"the archive has {count} entries, more than {MAX_ENTRIES}")
    if offset + size != end:
        raise SkillError("the central directory is not at its stated position")
    if size > MAX_DIRECTORY:
        raise SkillError("the central directory has more entries than it states, or long ones")
    return int(count)


def _check_entry(entry: zipfile.ZipInfo) -> None:
    """Refuse links, devices, pipes and sockets, kinds that contradict the name, and bombs."""
    name, shown = entry.orig_filename, show(entry.orig_filename)
    kind, is_folder = stat.S_IFMT(entry.external_attr >> 16), name.endswith("/")
    size, packed, method = entry.file_size, entry.compress_size, entry.compress_type
    if not entry.flag_bits & _UTF8 and not name.isascii():
        raise SkillError(f"the name {shown} is not marked as UTF-8, but is not ASCII")
    if entry.flag_bits & _ENCRYPTED:
        raise SkillError(f"{shown} is encrypted")
    if entry.flag_bits & ~_KNOWN_FLAGS or method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise SkillError(f"{shown} has unsupported flags or compression (method {method})")
    if 0xFFFFFFFF in (size, packed) or entry.extract_version >= 45:
        raise SkillError(f"{shown} uses ZIP64, which is not supported")
    if kind == stat.S_IFLNK:
        raise SkillError(f"{shown} is a symbolic link")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise SkillError(f"{shown} is a device, a pipe or a socket")
    if (kind == stat.S_IFDIR and not is_folder) or (is_folder and (size or kind == stat.S_IFREG)):
        raise SkillError(f"{shown} is both a file and a folder")
    if size > max(RATIO_FROM, MAX_RATIO * packed):
        raise SkillError(
            f"{shown} would grow from {packed} to {size} bytes, more than {MAX_RATIO} times"
        )
    if method == zipfile.ZIP_STORED and size != packed:
        raise SkillError(f"{shown} does not have its stated size or checksum")


def _check_overlap(entries: list[zipfile.ZipInfo], directory_at: int) -> None:
    """Refuse entries that share content: of a small archive they make a huge one."""
    following = directory_at
    for entry in sorted(entries, key=lambda entry: -entry.header_offset):
        size = _LOCAL_HEADER + len(entry.orig_filename.encode()) + entry.compress_size
        if entry.header_offset + size > following:
            raise SkillError(f"{show(entry.orig_filename)} overlaps with the next entry")
        following = entry.header_offset


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    try:
        content = archive.read(entry)
    except _UNREADABLE:
        content = None
    if content is None or len(content) != entry.file_size:
        raise SkillError(
            f"{show(entry.orig_filename)} is damaged, does not have its stated size or checksum, or"
            " has a local header that contradicts the directory"
        )
    return content
