"""Tar archives of strangers, read once from front to back: what each entry is, and its content.

Takes what Docker, GNU tar and Python write (ustar, pax, GNU's long names), in bounded memory, and
refuses whatever could mean two things. Nothing is written here.

https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html#tag_20_94_13
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from gvisor_kernel.archive.refusal import Refused

BLOCK = 512
CHUNK = 256 * 1024
MAX_HEADER = 1024 * 1024
"""Bytes of a long name or of pax's records, which are held in memory. Real ones have hundreds."""
MAX_EXTRA_BYTES = 256 * 1024 * 1024
"""Bytes of these in one archive. One with 300,000 files has some 50 MB."""
MAX_EXTRAS = 8
"""Of these before one entry; there are four kinds."""
MAX_RECORDS = 1000
"""Of pax's in one of these; real ones have a dozen."""
MAX_PADDING = 16 * 1024 * 1024
"""Bytes of zeros after the end; tape drives had blocks of one or two MiB."""
MAX_NAME = 4095
"""Bytes of a path, as Linux has it."""
MAX_PART = 255
MAX_DEPTH = 100
MAX_MTIME = 2**33


class Stream(Protocol):
    """Bytes from somewhere; ``read`` gives fewer than asked for only near the end."""

    def read(self, size: int, /) -> bytes: ...


class Kind(Enum):
    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symbolic link"
    HARD_LINK = "hard link"
    DEVICE = "device"
    FIFO = "pipe"


@dataclass(frozen=True)
class Entry:
    """``parts`` of the name, below the root; the root itself has none. ``mtime`` in seconds.

    ``target``: of a symbolic link, as it is written. ``target_parts``: of a hard link.
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
        return "/".join(self.parts)


def show(name: str) -> str:
    """A name for an error: quoted, escaped, and not long."""
    return ascii(name) if len(name) <= 80 else ascii(name[:80]) + "…"


def split_name(name: str, what: str = "the name") -> tuple[str, ...]:
    """The parts of a name in an archive, below its root. Raises Refused unless it is plain.

    A leading ``./`` and a trailing ``/`` mean nothing.
    """
    shown = f"{what} {show(name)}"
    if name.startswith("/"):
        raise Refused(f"{shown} is absolute")
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts:
        raise Refused(f"{shown} leads out of the image")
    _check_text(name, shown)
    if len(parts) > MAX_DEPTH or any(len(part.encode()) > MAX_PART for part in parts):
        raise Refused(f"{shown} is too long or too deep")
    return parts


def check_target(target: str, name: str) -> str:
    """What a symbolic link says; it is never followed but inside the image."""
    if not target:
        raise Refused(f"the symbolic link {show(name)} leads nowhere")
    _check_text(target, f"the target {show(target)} of {show(name)}")
    return target


def _check_text(text: str, shown: str) -> None:
    if any(char < " " or char == "\x7f" for char in text):
        raise Refused(f"{shown} has a control character in it")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise Refused(f"{shown} is not UTF-8") from None
    if size > MAX_NAME:
        raise Refused(f"{shown} is too long or too deep")


class TarReader:
    """The entries of the archive in ``stream``, each with its content to be read meanwhile.

    ``leave_out``: told of an entry that would be refused for its name or kind, and is passed by.
    """

    def __init__(self, stream: Stream, leave_out: Callable[[str], None] | None = None) -> None:
        self._stream = stream
        self._leave_out = leave_out
        self._left = 0
        """Bytes of the present entry's content that were not read."""
        self._padding = 0
        self._extra_bytes = 0
        self.position = 0
        """Bytes that were read of the stream: in the loop over the entries, where one's content
        begins."""

    def __iter__(self) -> Iterator[Entry]:
        """Raises Refused for all that is not an archive, whole and in order."""
        longer: dict[str, str] = {}
        odd = ""
        extras = 0
        while (header := self._next_header()) is not None:
            kind = header[156:157]
            size = self._size(header)
            if kind in (b"L", b"K", b"x", b"g"):
                extras += 1
                if extras > MAX_EXTRAS:
                    raise Refused(f"an entry has more than {MAX_EXTRAS} headers")
                content = self._take_header(size)
                try:
                    longer |= _read_longer(kind, content)
                except Refused as error:
                    odd = self._pass_by(error)
                continue
            extras = 0
            if "size" in longer:
                size = _decimal(longer["size"])
            self._left, self._padding = size, -size % BLOCK
            if odd:
                longer, odd = {}, ""
                continue
            try:
                entry = self._entry(header, kind, longer)
            except Refused as error:
                self._pass_by(error)
            else:
                yield entry
            longer = {}
        if longer:
            raise Refused("it ends after the longer name of an entry, without the entry")
        self._finish()

    def _pass_by(self, error: Refused) -> str:
        """Leave out the entry at hand. Raises ``error`` where that is not wanted."""
        if self._leave_out is None:
            raise error
        self._leave_out(str(error))
        return str(error)

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes of the present entry's content; none at its end."""
        wanted = min(size, self._left)
        if not wanted:
            return b""
        data = self._stream.read(wanted)
        if not data:
            raise Refused("it is cut off in the middle of a file")
        self._left -= len(data)
        self.position += len(data)
        return data

    # -- headers ---------------------------------------------------------------------------------

    def _next_header(self) -> bytes | None:
        """The next header block; None for the block of zeros that ends an archive."""
        while self.read(CHUNK):
            pass
        if self._padding:
            self._exactly(self._padding)
            self._padding = 0
        header = self._exactly(BLOCK)
        if not any(header):
            return None
        stated = _number(header[148:156])
        if stated != 256 + sum(header[:148]) + sum(header[156:]):
            raise Refused("it is no tar archive, or damaged")
        return header

    def _size(self, header: bytes) -> int:
        size = _number(header[124:136])
        if size < 0:
            raise Refused("an entry has a negative size")
        return size

    def _take_header(self, size: int) -> bytes:
        if size > MAX_HEADER:
            raise Refused(f"an entry's name or attributes have {size} bytes")
        self._extra_bytes += size
        if self._extra_bytes > MAX_EXTRA_BYTES:
            raise Refused(f"names and attributes in it have more than {MAX_EXTRA_BYTES} bytes")
        content = self._exactly(size)
        self._exactly(-size % BLOCK)
        return content

    def _entry(self, header: bytes, kind: bytes, longer: dict[str, str]) -> Entry:
        size = self._left
        raw = header[:100].partition(b"\0")[0]
        if header[257:263] == b"ustar\0" and (prefix := header[345:500].partition(b"\0")[0]):
            raw = prefix + b"/" + raw
        name = longer.get("path")
        name = _decode(raw) if name is None else name
        target = longer.get("linkpath")
        target = _decode(header[157:257].partition(b"\0")[0]) if target is None else target
        if not name:
            raise Refused("it has an entry without a name")
        if kind in (b"0", b"\0", b"7"):
            found = Kind.DIRECTORY if name.endswith("/") else Kind.FILE
        elif kind in _KINDS:
            found = _KINDS[kind]
        else:
            raise Refused(f"{show(name)} is of the unknown or unusual kind {kind!r}")
        if size and found is Kind.DIRECTORY:
            raise Refused(f"{show(name)} is a file and a folder")
        if found is not Kind.FILE:
            size = 0  # what POSIX says of links, whatever their headers do
            self._left = self._padding = 0
        parts = split_name(name)
        if not parts and found is not Kind.DIRECTORY:
            raise Refused("its root is not a folder")
        mtime = _decimal(longer["mtime"]) if "mtime" in longer else _number(header[136:148])
        return Entry(
            parts=parts,
            kind=found,
            mode=_number(header[100:108]) & 0o7777,
            mtime=min(max(mtime, 0), MAX_MTIME),
            size=size,
            target=check_target(target, name) if found is Kind.SYMLINK else "",
            target_parts=_split_target(target) if found is Kind.HARD_LINK else (),
        )

    # -- bytes -----------------------------------------------------------------------------------

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self._stream.read(size - len(data))
            if not more:
                raise Refused("it is cut off, or no tar archive")
            data += more
        self.position += size
        return data

    def _finish(self) -> None:
        """What follows the end is padding, or a second archive that other programs would show."""
        left = MAX_PADDING
        while data := self._stream.read(CHUNK):
            left -= len(data)
            if data.count(0) != len(data):
                raise Refused("something follows after its end")
            if left < 0:
                raise Refused(f"more than {MAX_PADDING} bytes follow after its end")


_KINDS = {
    b"1": Kind.HARD_LINK,
    b"2": Kind.SYMLINK,
    b"3": Kind.DEVICE,
    b"4": Kind.DEVICE,
    b"5": Kind.DIRECTORY,
    b"6": Kind.FIFO,
}


def _split_target(target: str) -> tuple[str, ...]:
    parts = split_name(target, "the target of a hard link,")
    if not parts:
        raise Refused("a hard link leads to the root")
    return parts


def _decode(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise Refused(f"the name {raw[:80]!r} is not UTF-8") from None


def _number(field: bytes) -> int:
    """A number of a header: octal, or GNU's binary kind."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:], signed=field[0] == 0xFF)
    text = field.partition(b"\0")[0].strip()
    if not text:
        return 0
    if text.strip(b"01234567"):
        raise Refused("it is no tar archive, or damaged: a number is none")
    return int(text, 8)


def _decimal(text: str) -> int:
    """The whole part of one of pax's numbers."""
    whole = text.partition(".")[0]
    digits = whole.removeprefix("-")
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 20):
        raise Refused(f"an attribute that should be a number is {show(text)}")
    return int(whole)


def _read_longer(kind: bytes, content: bytes) -> dict[str, str]:
    """What an entry of this kind says of the one that follows."""
    if kind == b"x":
        return _read_pax(content)
    if kind == b"g":
        _check_global(content)
        return {}
    return {"linkpath" if kind == b"K" else "path": _decode(content.rstrip(b"\0"))}


def _read_pax(content: bytes) -> dict[str, str]:
    """Those of pax's records that say what an entry is. Owners and attributes are not kept."""
    found: dict[str, str] = {}
    for key, value in _pax_records(content):
        if key.startswith("GNU.sparse"):
            raise Refused("it has a file with holes, in a form of GNU tar's own")
        if key in ("path", "linkpath", "mtime", "size"):
            if key in found:
                raise Refused(f"an entry has two {key}s")
            found[key] = _decode(value)
            if "\0" in found[key]:
                raise Refused(f"a name has a NUL in it: {show(found[key])}")
    if "size" in found and _decimal(found["size"]) < 0:
        raise Refused("an entry has a negative size")
    return found


def _check_global(content: bytes) -> None:
    for key, _ in _pax_records(content):
        if key in ("path", "linkpath", "size") or key.startswith("GNU.sparse"):
            raise Refused(f"it says {key} for all its entries at once")


def _pax_records(content: bytes) -> Iterator[tuple[str, bytes]]:
    position = 0
    count = 0
    while position < len(content):
        count += 1
        if count > MAX_RECORDS:
            raise Refused(f"an entry has more than {MAX_RECORDS} attributes")
        length, space, _ = content[position : position + 20].partition(b" ")
        if not space or not length.isdigit():
            raise Refused("an entry's attributes are damaged")
        end = position + int(length)
        record = content[position + len(length) + 1 : end]
        key, equals, value = record[:-1].partition(b"=")
        if end > len(content) or record[-1:] != b"\n" or not equals:
            raise Refused("an entry's attributes are damaged")
        yield key.decode("utf-8", "replace"), value
        position = end
