"""Untrusted tar archives, read once from front to back: each entry and its content.

Accepts what Docker, GNU tar and Python write (ustar, pax, GNU's long names), in bounded memory.
Refuses whatever two programs could read differently. Nothing is written here.

https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html#tag_20_94_13
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from gvisor_kernel.errors import ArchiveError

BLOCK = 512
CHUNK = 256 * 1024
MAX_HEADER = 1024 * 1024
"""Bytes of one extended header (a long name, or pax records). It is held in memory; real ones have
some hundred bytes."""
MAX_EXTRA_BYTES = 256 * 1024 * 1024
"""Bytes of all extended headers of one archive. An archive with 300,000 files has some 50 MB."""
MAX_EXTRAS = 8
"""Extended headers before one entry. There are four kinds."""
MAX_RECORDS = 1000
"""pax records in one extended header. Real ones have a dozen."""
MAX_PADDING = 16 * 1024 * 1024
"""Zero bytes after the end of an archive. Tape drives wrote blocks of one or two MiB."""
MAX_NAME = 4095
"""Bytes of a path: the limit of Linux."""
# Bytes of a part of a path: the limit of Linux.
MAX_PART = 255
MAX_DEPTH = 100
MAX_MTIME = 2**33


class Stream(Protocol):
    """A source of bytes. ``read`` returns fewer bytes than requested only near the end."""

    def read(self, size: int, /) -> bytes: ...


class Kind(Enum):
    """The kind of an entry of an archive; the value is its name in messages."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symbolic link"
    HARD_LINK = "hard link"
    DEVICE = "device"
    FIFO = "pipe"


@dataclass(frozen=True)
class Entry:
    """An entry of an archive.

    ``parts`` are the parts of the name below the root; the root itself has none. ``mtime`` is in
    seconds since the epoch. ``target`` is the text of a symbolic link, ``target_parts`` the name
    that a hard link refers to.
    """

    parts: tuple[str, ...]
    kind: Kind
    mode: int
    mtime: int
    size: int = 0
    target: str = ""
    target_parts: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name below the root, with slashes; empty for the root."""
        return "/".join(self.parts)


def quote_name(name: str) -> str:
    """Return a name for a message: quoted, escaped, and shortened."""
    return ascii(name) if len(name) <= 80 else ascii(name[:80]) + "…"


def split_name(name: str, what: str = "the name") -> tuple[str, ...]:
    """Split a name of an archive into its parts below the root.

    A leading ``./`` and a trailing ``/`` are ignored. ``what`` names it in messages.

    :raises ArchiveError: when it is absolute, contains ``..`` or control characters, is not
        UTF-8, or is too long or too deep
    """
    shown = f"{what} {quote_name(name)}"
    if name.startswith("/"):
        raise ArchiveError(f"{shown} is absolute")
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts:
        raise ArchiveError(f"{shown} leads out of the root directory")
    _check_text(name, shown)
    if len(parts) > MAX_DEPTH or any(len(part.encode()) > MAX_PART for part in parts):
        raise ArchiveError(
            f"{shown} is too long or too deep (at most {MAX_DEPTH} parts of {MAX_PART} bytes)"
        )
    return parts


def check_target(target: str, name: str) -> str:
    """Return the target of the symbolic link ``name``. It is only ever followed inside the image.

    :raises ArchiveError: when it is empty or too long, contains control characters, is not UTF-8
    """
    if not target:
        raise ArchiveError(f"the symbolic link {quote_name(name)} has no target")
    _check_text(target, f"the target {quote_name(target)} of {quote_name(name)}")
    return target


def _check_text(text: str, shown: str) -> None:
    if any(char < " " or char == "\x7f" for char in text):
        raise ArchiveError(f"{shown} contains a control character")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ArchiveError(f"{shown} is not UTF-8") from None
    if size > MAX_NAME:
        raise ArchiveError(f"{shown} is too long (at most {MAX_NAME} bytes)")


class TarReader:
    """The entries of the tar archive in ``stream``. ``read`` returns the current one's content.

    With ``on_left_out``, an entry whose name or kind is refused is skipped, and this is called with
    the reason.
    """

    def __init__(self, stream: Stream, on_left_out: Callable[[str], None] | None = None) -> None:
        self._stream = stream
        self._on_left_out = on_left_out
        self._left = 0
        """Bytes of the current entry's content that were not read yet."""
        self._padding = 0
        self._extra_bytes = 0
        self.position = 0
        """Bytes read from the stream. While an entry is current: where its content begins."""

    def __iter__(self) -> Iterator[Entry]:
        """Yield the entries in order.

        :raises ArchiveError: when the archive is damaged, truncated, ambiguous, or has data after
            its end
        """
        extra: dict[str, str] = {}
        skip_next = False
        extras = 0
        while (header := self._next_header()) is not None:
            kind = header[156:157]
            size = self._parse_size(header)
            if kind in (b"L", b"K", b"x", b"g"):
                extras += 1
                if extras > MAX_EXTRAS:
                    raise ArchiveError(f"an entry has more than {MAX_EXTRAS} extended headers")
                content = self._read_extra_header(size)
                try:
                    extra |= _parse_extra_header(kind, content)
                except ArchiveError as error:
                    self._leave_out(error)
                    skip_next = True
                continue
            extras = 0
            if "size" in extra:
                size = _parse_decimal(extra["size"])
            self._left, self._padding = size, -size % BLOCK
            if skip_next:
                extra, skip_next = {}, False
                continue
            try:
                entry = self._parse_entry(header, kind, extra)
            except ArchiveError as error:
                self._leave_out(error)
            else:
                yield entry
            extra = {}
        if extra:
            raise ArchiveError(
                "the archive ends after an extended header, without the entry for it"
            )
        self._check_end()

    def _leave_out(self, error: ArchiveError) -> None:
        if self._on_left_out is None:
            raise error
        self._on_left_out(str(error))

    def read(self, size: int) -> bytes:
        """Return at most ``size`` bytes of the current entry's content; empty at its end.

        :raises ArchiveError: when the archive is truncated
        """
        wanted = min(size, self._left)
        if not wanted:
            return b""
        # no timeout: a file; a pipe ends with its writer, or with Ctrl-C
        data = self._stream.read(wanted)
        if not data:
            raise ArchiveError("the archive is truncated in the middle of a file")
        self._left -= len(data)
        self.position += len(data)
        return data

    # -- headers ---------------------------------------------------------------------------------

    def _next_header(self) -> bytes | None:
        """Return the next header block; None for the block of zeros that ends an archive."""
        while self.read(CHUNK):
            pass
        if self._padding:
            self._read_exactly(self._padding)
            self._padding = 0
        header = self._read_exactly(BLOCK)
        if not any(header):
            return None
        stated = _parse_number(header[148:156])
        if stated != 256 + sum(header[:148]) + sum(header[156:]):
            raise ArchiveError(f"{_NOT_TAR}: the checksum of a header is wrong")
        return header

    def _parse_size(self, header: bytes) -> int:
        size = _parse_number(header[124:136])
        if size < 0:
            raise ArchiveError("an entry has a negative size")
        return size

    def _read_extra_header(self, size: int) -> bytes:
        if size > MAX_HEADER:
            raise ArchiveError(f"an extended header has {size} bytes, more than {MAX_HEADER}")
        self._extra_bytes += size
        if self._extra_bytes > MAX_EXTRA_BYTES:
            raise ArchiveError(
                f"the extended headers have more than {MAX_EXTRA_BYTES} bytes together"
            )
        content = self._read_exactly(size)
        self._read_exactly(-size % BLOCK)
        return content

    def _parse_entry(self, header: bytes, kind: bytes, extra: dict[str, str]) -> Entry:
        size = self._left
        raw = header[:100].partition(b"\0")[0]
        if header[257:263] == b"ustar\0" and (prefix := header[345:500].partition(b"\0")[0]):
            raw = prefix + b"/" + raw
        name = extra.get("path")
        name = _decode(raw) if name is None else name
        target = extra.get("linkpath")
        target = _decode(header[157:257].partition(b"\0")[0]) if target is None else target
        if not name:
            raise ArchiveError("the archive has an entry without a name")
        if kind in (b"0", b"\0", b"7"):
            found = Kind.DIRECTORY if name.endswith("/") else Kind.FILE
        elif kind in _KINDS:
            found = _KINDS[kind]
        else:
            raise ArchiveError(f"{quote_name(name)} has the unsupported entry type {kind!r}")
        if size and found is Kind.DIRECTORY:
            raise ArchiveError(f"{quote_name(name)} is a directory with content")
        if found is not Kind.FILE:
            size = 0  # POSIX: a link has no content, whatever its header says
            self._left = self._padding = 0
        parts = split_name(name)
        if not parts and found is not Kind.DIRECTORY:
            raise ArchiveError("the root of the archive is not a directory")
        if "mtime" in extra:
            mtime = _parse_decimal(extra["mtime"])
        else:
            mtime = _parse_number(header[136:148])
        return Entry(
            parts=parts,
            kind=found,
            mode=_parse_number(header[100:108]) & 0o7777,
            mtime=min(max(mtime, 0), MAX_MTIME),
            size=size,
            target=check_target(target, name) if found is Kind.SYMLINK else "",
            target_parts=_split_target(target) if found is Kind.HARD_LINK else (),
        )

    # -- bytes -----------------------------------------------------------------------------------

    def _read_exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            # no timeout: a file; a pipe ends with its writer, or with Ctrl-C
            more = self._stream.read(size - len(data))
            if not more:
                raise ArchiveError("the archive is truncated, or it is not a tar archive")
            data += more
        self.position += size
        return bytes(data)

    def _check_end(self) -> None:
        """Accept padding only. A second archive here would be read by some other programs."""
        left = MAX_PADDING
        # no timeout: a file; a pipe ends with its writer, or with Ctrl-C
        while data := self._stream.read(CHUNK):
            left -= len(data)
            if data.count(0) != len(data):
                raise ArchiveError("the archive has data after its end")
            if left < 0:
                raise ArchiveError(f"the archive has more than {MAX_PADDING} bytes after its end")


_NOT_TAR = "the data is not a tar archive, or is damaged"

_KINDS = {
    b"1": Kind.HARD_LINK,
    b"2": Kind.SYMLINK,
    b"3": Kind.DEVICE,
    b"4": Kind.DEVICE,
    b"5": Kind.DIRECTORY,
    b"6": Kind.FIFO,
}


def _split_target(target: str) -> tuple[str, ...]:
    parts = split_name(target, "the hard link target")
    if not parts:
        raise ArchiveError("a hard link has the root directory as its target")
    return parts


def _decode(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise ArchiveError(f"the name {raw[:80]!r} is not UTF-8") from None


def _parse_number(field: bytes) -> int:
    """Parse a number of a header: octal digits, or GNU's binary form."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:], signed=field[0] == 0xFF)
    text = field.partition(b"\0")[0].strip()
    if not text:
        return 0
    if text.strip(b"01234567"):
        raise ArchiveError(f"{_NOT_TAR}: a number in a header is {text!r}")
    return int(text, 8)


def _parse_decimal(text: str) -> int:
    """Return the whole part of a number in a pax record."""
    whole = text.partition(".")[0]
    digits = whole.removeprefix("-")
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 20):
        raise ArchiveError(f"a pax record that should be a number is {quote_name(text)}")
    return int(whole)


def _parse_extra_header(kind: bytes, content: bytes) -> dict[str, str]:
    """Return what an extended header of this type says about the entry that follows."""
    if kind == b"x":
        return _parse_pax(content)
    if kind == b"g":
        _check_global(content)
        return {}
    return {"linkpath" if kind == b"K" else "path": _decode(content.rstrip(b"\0"))}


def _parse_pax(content: bytes) -> dict[str, str]:
    """Return the pax records that are used. Owners and extended attributes are dropped."""
    found: dict[str, str] = {}
    for key, value in _pax_records(content):
        if key.startswith("GNU.sparse"):
            raise ArchiveError(
                "the archive has a sparse file in GNU tar's format, which is unsupported"
            )
        if key in ("path", "linkpath", "mtime", "size"):
            if key in found:
                raise ArchiveError(f"an entry has two pax records named {key}")
            found[key] = _decode(value)
            if "\0" in found[key]:
                raise ArchiveError(f"the pax record {key} contains a NUL: {quote_name(found[key])}")
    if "size" in found and _parse_decimal(found["size"]) < 0:
        raise ArchiveError("an entry has a negative size")
    return found


def _check_global(content: bytes) -> None:
    for key, _ in _pax_records(content):
        if key in ("path", "linkpath", "size") or key.startswith("GNU.sparse"):
            raise ArchiveError(f"a global header sets {key} for all entries")


def _pax_records(content: bytes) -> Iterator[tuple[str, bytes]]:
    position = 0
    count = 0
    while position < len(content):
        count += 1
        if count > MAX_RECORDS:
            raise ArchiveError(f"an entry has more than {MAX_RECORDS} pax records")
        length, space, _ = content[position : position + 20].partition(b" ")
        if not space or not length.isdigit():
            raise ArchiveError("the pax records of an entry are damaged")
        end = position + int(length)
        record = content[position + len(length) + 1 : end]
        key, equals, value = record[:-1].partition(b"=")
        if end > len(content) or record[-1:] != b"\n" or not equals:
            raise ArchiveError("the pax records of an entry are damaged")
        yield key.decode("utf-8", "replace"), value
        position = end
