"""Images of one kernel's memory, page by page: what several of them have is on the disk once.

    checkpoints/.pages/N.pages    pages, one after the other
    checkpoints/.pages/N.digests  16 bytes of SHA-256 for each
    checkpoints/NAME/image/       an image as the runtime wrote it, whole if it has this name
    checkpoints/NAME/packed       in its place: which pages make up its files, and their digests

Pages are written, then digests, then ``packed``, each flushed before the next, and only then the
image goes. So whoever ends this at any step leaves the image or ``packed``, and what is too much is
cut off or removed by the next one. A whole image is compared with nothing: it was on the disk
before it had its name. What is damaged in the store stays so: the digests of files are those of the
images as they were saved, and pages that an image needs get their numbers once. Nothing here knows
what is in an image. It is packed by a process of the lowest priority, as a thread would hold the
interpreter's lock (``packer``).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

from gvisor_kernel.errors import SnapshotError
from gvisor_kernel.runtimes.state.saved import IMAGE, SEALED, flush, remove

log = logging.getLogger(__name__)

# by path: below the state directory, whose parents only this user can change

FOLDER, STORE, PACKED = "checkpoints", ".pages", "packed"
PAGE, CHUNK, DIGEST = 4096, 4 * 1024 * 1024, 16
ZERO = hashlib.sha256(bytes(PAGE)).digest()[:DIGEST]
MAX_PAGES = 1 << 19
"""Pages of one kernel that are different: their digests are in memory as an image is packed. One
that would make them more stays as it is."""
MIN_DEAD = 4096
"""Pages that nothing needs any more, below which they stay."""
MAX_HEADER = 64 * 1024


@dataclass(frozen=True)
class _File:
    """A file of an image. ``pages``: numbers from 1 in the store; 0: a page of zeros."""

    name: str
    size: int
    digest: str
    pages: array[int]


@dataclass(frozen=True)
class _Packed:
    store: int
    files: tuple[_File, ...]


class _Unreadable(OSError):
    """A page cannot be read."""


class _Store:
    """N.pages and N.digests, to add to. One process at a time."""

    def __init__(self, folder: Path, number: int) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        self.number = number
        self._pages = _open(folder / f"{number}.pages")
        self._digests = _open(folder / f"{number}.digests")
        digests = (folder / f"{number}.digests").read_bytes()
        pages = os.fstat(self._pages).st_size // PAGE
        self.count = min(len(digests) // DIGEST, pages)
        os.ftruncate(self._pages, self.count * PAGE)
        os.ftruncate(self._digests, self.count * DIGEST)
        starts = range(0, self.count * DIGEST, DIGEST)
        self._known = {digests[at : at + DIGEST]: n for n, at in enumerate(starts, 1)}
        self._known[ZERO] = 0
        self._new = bytearray()

    def add(self, data: bytes, numbers: array[int]) -> None:
        """Add the pages of ``data`` that are new; append the numbers of all to ``numbers``."""
        data += bytes(-len(data) % PAGE)
        view, fresh = memoryview(data), []
        for at in range(0, len(data), PAGE):
            page = view[at : at + PAGE]
            digest = hashlib.sha256(page).digest()[:DIGEST]
            number = self._known.get(digest)
            if number is None:
                self.count += 1
                number = self._known[digest] = self.count
                self._new += digest
                fresh.append(page)
            numbers.append(number)
        _write(self._pages, b"".join(fresh))

    def flush(self) -> None:
        """Wait until all is on the disk."""
        os.fsync(self._pages)
        _write(self._digests, self._new)
        os.fsync(self._digests)
        self._new.clear()

    def close(self) -> None:
        os.close(self._pages)
        os.close(self._digests)


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(path, flags, 0o600)


def _write(fd: int, data: bytes | bytearray | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def measure_image(place: Path) -> int:
    """Return the bytes of an image, packed or not; 0 if there is none that can be read."""
    try:
        return sum(path.stat().st_size for path in (place / IMAGE).iterdir())
    except OSError:
        packed = _read(place)
        return 0 if packed is None else sum(file.size for file in packed.files)


def pack(place: Path) -> None:
    """Pack the image of a checkpoint, which nobody uses meanwhile.

    :raises OSError: when that fails: the image stays as it is
    """
    image = place / IMAGE
    if not (place / PACKED).exists():
        paths = sorted(image.iterdir())
        if any(path.suffix == SEALED for path in paths):
            return  # no page of it is like another one
        number = _choose_store(place.parent, _find_packed(place.parent))
        with closing(_Store(place.parent / STORE, number)) as store:
            if store.count + sum(path.stat().st_size for path in paths) // PAGE > MAX_PAGES:
                return
            _pack(place, store, {path.name: _read_plain(path) for path in paths})
        if not _is_whole(place):
            log.warning("%s stays as it is: a page that it shares is damaged on the disk", place)
            (place / PACKED).unlink()
            return
    remove(image)


def _pack(
    place: Path,
    store: _Store,
    files: Mapping[str, Iterable[bytes]],
    digests: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write ``packed``. ``digests``: of files that are packed already."""
    header, indexes = [], []
    for name, chunks in files.items():
        whole, size, numbers = hashlib.sha256(), 0, array("I")
        for chunk in chunks:
            whole.update(chunk)
            size += len(chunk)
            store.add(chunk, numbers)
        header.append((name, size, digests.get(name, whole.hexdigest())))
        indexes.append(numbers.tobytes())
    store.flush()
    made = place / f"{PACKED}.new"
    with made.open("wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(json.dumps({"store": store.number, "files": header}).encode() + b"\n")
        file.writelines(indexes)
        file.flush()
        os.fsync(file.fileno())
    made.replace(place / PACKED)
    flush(place)


def _read_plain(path: Path) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            # A short read would shift the pages after it.
            while len(chunk) % PAGE and (more := file.read(CHUNK - len(chunk))):
                chunk += more
            yield chunk


def _is_whole(place: Path) -> bool:
    packed = _read(place)
    return packed is not None and all(_is_as_saved(place, packed, file) for file in packed.files)


def _is_as_saved(
    place: Path, packed: _Packed, file: _File, use: Callable[[memoryview], object] = len
) -> bool:
    """Call ``use`` for each part of a file; return whether all of them are what was saved."""
    whole = hashlib.sha256()
    for chunk in _read_packed(place.parent, packed.store, file):
        whole.update(chunk)
        use(chunk)
    return whole.hexdigest() == file.digest


def _read(place: Path) -> _Packed | None:
    """Return what is packed; None if nothing is, or it makes no sense.

    :raises OSError: when it cannot be read now
    """
    try:
        with (place / PACKED).open("rb") as file:
            header = json.loads(file.readline(MAX_HEADER))
            files = []
            for name, size, digest in header["files"]:
                pages = array("I")
                pages.fromfile(file, -(-size // PAGE))
                files.append(_File(name, size, digest, pages))
            return _Packed(header["store"], tuple(files))
    except (FileNotFoundError, ValueError, LookupError, TypeError, EOFError):
        return None
    except (MemoryError, OverflowError):  # of a size that is damaged
        return None


def _read_packed(folder: Path, store: int, file: _File) -> Iterator[memoryview]:
    """Yield the content of a file, as it is.

    :raises _Unreadable: when there is a page that cannot be read
    """
    try:
        yield from _read_pages(folder / STORE / f"{store}.pages", file)
    except OSError as error:
        raise _Unreadable(str(error)) from error


def _read_pages(path: Path, file: _File) -> Iterator[memoryview]:
    left, many = file.size, CHUNK // PAGE
    with path.open("rb", buffering=0) as pages:
        for first in range(0, len(file.pages), many):
            numbers = file.pages[first : first + many].tolist()
            chunk, at = memoryview(bytearray(len(numbers) * PAGE)), 0
            while at < len(numbers):
                number, end = numbers[at], at + 1
                while end < len(numbers) and numbers[end] == (number and number + end - at):
                    end += 1
                part = chunk[at * PAGE : end * PAGE]
                if number and os.preadv(pages.fileno(), [part], (number - 1) * PAGE) != len(part):
                    raise OSError(f"{pages.name} has no page {number}")
                at = end
            yield chunk[:left]
            left -= len(chunk)


def unpack(place: Path) -> None:
    """Write the image of a checkpoint anew if it is packed, and wait until it is on the disk.

    An image that is there was flushed before it had its name, and is not compared.

    :raises SnapshotError: when it cannot be written, or is not what it was
    """
    image, making = place / IMAGE, place / f"{IMAGE}.new"
    if image.is_dir():
        return
    shutil.rmtree(making, ignore_errors=True)
    try:
        packed = _read(place)
        if packed is None:
            raise SnapshotError(f"The image in {place} cannot be read.", "use another checkpoint.")
        making.mkdir(mode=0o700)
        for file in packed.files:
            with (making / file.name).open("xb", buffering=0) as written:
                os.fchmod(written.fileno(), 0o600)
                is_whole = _is_as_saved(place, packed, file, partial(_write, written.fileno()))
                os.fsync(written.fileno())
            if not is_whole:
                raise SnapshotError(f"The image in {place} is damaged.", "use another checkpoint.")
        flush(making)
        making.rename(image)
    except OSError as error:
        raise SnapshotError(
            f"The image of the checkpoint in {place} cannot be written: {error}.",
            "check whether the disk is full or read-only.",
        ) from error
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _find_stores(folder: Path) -> set[int]:
    names = (path.stem for path in (folder / STORE).glob("*"))
    return {int(name) for name in names if name.isdecimal()}


def _find_packed(folder: Path) -> dict[Path, _Packed]:
    found = ((path.parent, _read(path.parent)) for path in folder.glob(f"*/{PACKED}"))
    return {place: packed for place, packed in found if packed is not None}


def _count(folder: Path, store: int) -> int:
    """Return the number of pages in a store."""
    place = folder / STORE
    with suppress(FileNotFoundError):
        pages, digests = (place / f"{store}.{kind}" for kind in ("pages", "digests"))
        return min(pages.stat().st_size // PAGE, digests.stat().st_size // DIGEST)
    return 0


def _choose_store(folder: Path, images: Mapping[Path, _Packed]) -> int:
    """Return the number of the store to write to: a new one if the last lacks pages of ``images``.

    They would get the numbers of those that it lacks.
    """
    last = max(_find_stores(folder) | {packed.store for packed in images.values()}, default=1)
    files = (file for packed in images.values() if packed.store == last for file in packed.files)
    needed = max((max(file.pages, default=0) for file in files), default=0)
    return last if needed <= _count(folder, last) else last + 1


def measure_folder(folder: Path) -> int:
    """Return the bytes on disk of all files in a folder."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat(follow_symlinks=False).st_blocks * 512
    return total


def measure_needed(places: Iterable[Path]) -> Iterator[int]:
    """Yield, for each checkpoint, the bytes on disk that it and all before it need together.

    Pages that none of them has do not count: they are given back.
    """
    live: dict[int, set[int]] = {}
    total = 0
    for place in places:
        packed = None if (place / IMAGE).is_dir() else _read(place)
        if packed is not None:
            pages = live.setdefault(packed.store, {0})
            before = len(pages)
            pages.update(*(file.pages for file in packed.files))
            total += (len(pages) - before) * PAGE
        total += measure_folder(place)
        yield total


def reclaim(folder: Path) -> None:
    """Write pages anew when more than half of them are in no image of ``folder`` any more.

    An image that cannot be read keeps the pages that it has.

    :raises OSError: when that fails: all images can still be unpacked
    """
    stores, images = _find_stores(folder), _find_packed(folder)
    if not stores:
        return
    last = _choose_store(folder, images)
    found = (file for packed in images.values() if packed.store == last for file in packed.files)
    live, count = set[int]().union(*(file.pages for file in found)), _count(folder, last)
    if not images or (count > MIN_DEAD and 2 * len(live) < count):
        last += 1
    moved = {place: packed for place, packed in images.items() if packed.store != last}
    kept = _move(folder, moved, last) if moved else set()
    for number in stores - kept - {last}:
        for kind in ("pages", "digests"):
            (folder / STORE / f"{number}.{kind}").unlink(missing_ok=True)


def _move(folder: Path, images: Mapping[Path, _Packed], number: int) -> set[int]:
    """Write the pages of ``images`` to a store; return the stores of those that cannot be read."""
    kept, unread = set(), []
    with closing(_Store(folder / STORE, number)) as store:
        for place, packed in images.items():
            files = {
                file.name: map(bytes, _read_packed(folder, packed.store, file))
                for file in packed.files
            }
            try:
                _pack(place, store, files, {file.name: file.digest for file in packed.files})
            except _Unreadable as error:
                kept.add(packed.store)
                unread.append(f"{place.name} ({error})")
    if unread:
        log.warning("Checkpoints in %s cannot be read: %s", folder, ", ".join(unread))
    return kept


def pack_all(folder: Path) -> None:
    """Pack what is not packed in ``folder``, and reclaim what is not needed.

    :raises OSError: when that fails: all images can still be restored, or unpacked
    """
    for place in sorted(folder.glob(f"[!.]*/{IMAGE}"), key=lambda it: it.stat().st_mtime):
        if not place.parent.name.endswith((".new", ".old")):
            pack(place.parent)
    reclaim(folder)
