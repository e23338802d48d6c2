"""Keeps what was downloaded from package indexes, for all kernels of this user.

Files are named by their SHA-256, so nobody can put another content under a name: a file gets its
name after its digest was computed here. Pages of indexes are kept as the index sent them, and read
by another process (``page_writer``). All of it is private to the user, survives processes, and is
shared by them: a name appears in one step, and a file that is removed stays readable for who has it
open. The files that were used longest ago are removed first.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import tempfile
import time
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from gvisor_kernel.config.validators import GIB, MIB
from gvisor_kernel.egress.package_pages import STRONG
from gvisor_kernel.host.private_directories import lock, make_directories, read_file
from gvisor_kernel.strict_json import parse_json

MAX_CACHE = 5 * GIB
TRIMMED = 0.9
"""The part of the limit that is left after files were removed."""
TRIM_EVERY = 64 * MIB
"""Bytes that this process adds before it looks at the size of all again."""
UNFINISHED_SECONDS = 86400.0
"""When an unfinished download is left over from a process that has ended."""
TOUCH_SECONDS = 60.0
MAX_FOOTER = 65536
FOOTER_DIGITS = 8
KEY_BYTES = 32
_FOLDERS = ("files", "pages", "known", "new")


class HashMismatch(Exception):
    """A file is not the one that its index describes; the text says how it differs."""


class OpenFile:
    """A descriptor that is closed when nobody has this object any more."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        weakref.finalize(self, os.close, fd)


@dataclass(frozen=True)
class StoredPage:
    """What an index answered: its body is the first ``size`` bytes of ``file``, which stay as they
    are. ``fetched`` is in seconds since the epoch, ``max_age`` in seconds."""

    url: str
    content_type: str
    fetched: float
    max_age: float
    etag: str | None
    modified: str | None
    file: OpenFile = field(compare=False)
    size: int


class IncomingPage:
    """A page that is being written. It is removed at the end, unless ``keep`` was called. All
    methods block."""

    def __init__(self, cache: PackageCache, path: Path) -> None:
        self._cache = cache
        self._path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self.size = 0

    def write(self, data: bytes) -> None:
        """Append to the body.

        :raises OSError: when the disk is full
        """
        self._append(data)
        self.size += len(data)

    def copy(self, page: StoredPage) -> None:
        """Append the body of another page.

        :raises OSError: when the disk is full
        """
        while self.size < page.size:
            count = os.sendfile(self._fd, page.file.fd, self.size, page.size - self.size)
            if not count:
                raise OSError(errno.EIO, "a page of the cache ended early")
            self.size += count

    def keep(self, key: str, **fields: Any) -> StoredPage:
        """Put the page in the place of an older one under ``key``, and return it. A page that
        cannot be kept is not an error. ``fields``: the others of StoredPage.

        :raises OSError: when the page cannot be used, either
        """
        fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        page = StoredPage(**fields, file=OpenFile(fd), size=self.size)
        footer = json.dumps({**fields, "size": self.size}).encode()
        if len(footer) <= MAX_FOOTER and self.size <= self._cache.limit // 10:
            with contextlib.suppress(OSError):
                self._append(footer + b"%0*d" % (FOOTER_DIGITS, len(footer)))
                self._cache.adopt_page(self._path, key, self.size)
        return page

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def close(self) -> None:
        """Close it, and remove it unless it has got a name."""
        os.close(self._fd)
        with contextlib.suppress(OSError):
            self._path.unlink()


class Incoming:
    """A file that is being written. It is removed at the end, unless ``keep`` was called."""

    def __init__(self, cache: PackageCache, path: Path, hashes: Mapping[str, str]) -> None:
        self._cache = cache
        self._path = path
        self._expected = dict(hashes)
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self.size = 0
        self._digests = {
            name: hashlib.new(name, usedforsecurity=False) for name in {"sha256", *hashes}
        }

    def write(self, data: bytes) -> None:
        """Append. Blocks.

        :raises OSError: when the disk is full
        """
        view = memoryview(data)
        while view:
            view = view[os.write(self.fd, view) :]
        for digest in self._digests.values():
            digest.update(data)
        self.size += len(data)

    def check(self) -> str:
        """Return the file's SHA-256, once it is complete.

        :raises HashMismatch: when it has not the digests that were expected
        """
        for name, expected in self._expected.items():
            actual = self._digests[name].hexdigest()
            if actual != expected:
                raise HashMismatch(f"its {name} is {actual}, and the index says {expected}")
        return self._digests["sha256"].hexdigest()

    def keep(self, source: str) -> None:
        """Give the file its name, once it is complete. ``source``: where it came from.

        :raises HashMismatch: see ``check``
        :raises OSError: when it cannot be kept
        """
        name = self.check()
        self._cache.adopt(self._path, name, self.size)
        for known in _names_of(self._expected, source):
            self._cache.note(known, name)

    def close(self) -> None:
        """Close it, and remove it unless it has got a name."""
        os.close(self.fd)
        with contextlib.suppress(OSError):
            self._path.unlink()


class PackageCache:
    """The cache in one directory. All methods block, and may be called from any thread."""

    def __init__(self, root: Path, limit: int = MAX_CACHE) -> None:
        self.root = root
        self.limit = limit
        self._added = TRIM_EVERY  # so that the first file makes it look
        self._verified: dict[str, tuple[int, int]] = {}

    @classmethod
    def open(cls, root: Path | None = None, limit: int = MAX_CACHE) -> PackageCache:
        """Open the cache of this user; make it if there is none.

        :raises NotPrivate: when its directory is not the user's alone
        """
        if root is None:
            base = user_cache_path("gvisor-kernel")
            make_directories(base)
            root = base / "packages"
        make_directories(root)
        for name in _FOLDERS:
            make_directories(root / name)
        return cls(root, limit)

    def read_key(self) -> bytes:
        """Return the key with which addresses of files are made; it stays the same.

        :raises OSError: when it can be neither read nor made
        """
        path = self.root / "key"
        with lock(self.root / "lock", fcntl.LOCK_EX, create=True):
            with contextlib.suppress(FileNotFoundError):
                key = read_file(path, KEY_BYTES)
                if len(key) == KEY_BYTES:
                    return key
                path.unlink()
            key = secrets.token_bytes(KEY_BYTES)
            self._write(path, key)
        return key

    def new_answer(self) -> OpenFile:
        """Return a file without a name, on the disk of the cache, for a page that is made.

        :raises OSError: when it cannot be made
        """
        with tempfile.TemporaryFile(dir=self.root / "new", buffering=0) as file:
            return OpenFile(os.dup(file.fileno()))

    # -- files -------------------------------------------------------------------------------------

    def new_file(self, hashes: Mapping[str, str]) -> Incoming:
        """Begin a file that is to have these digests.

        :raises OSError: when it cannot be made
        """
        return Incoming(self, self.root / "new" / secrets.token_hex(16), hashes)

    def open_file(self, hashes: Mapping[str, str], source: str) -> int | None:
        """Return a descriptor of the file with these digests. Without a strong one: of the file
        that came from ``source`` last. None if there is none, or it is damaged.
        """
        name = hashes.get("sha256") or self._find_known(hashes, source)
        if name is None or len(name) != 64:
            return None
        path = self._place("files", name)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        status = os.fstat(fd)
        state = (status.st_ino, status.st_size)
        if self._verified.get(name) != state:  # once in each process: the disk may have lost it
            if hash_file(fd) != name:
                os.close(fd)
                with contextlib.suppress(OSError):
                    path.unlink()
                return None
            self._verified[name] = state
        if time.time() - status.st_mtime > TOUCH_SECONDS:
            with contextlib.suppress(OSError):
                os.utime(path)
        return fd

    def adopt(self, path: Path, name: str, size: int) -> None:
        """Give the complete file ``path`` its name.

        :raises OSError: when it cannot be renamed
        """
        place = self._place("files", name)
        place.parent.mkdir(mode=0o700, exist_ok=True)
        path.rename(place)
        self._note_added(size)

    def note(self, known: str, name: str) -> None:
        """Remember that what ``known`` stands for is the file ``name``.

        :raises OSError: when it cannot be written
        """
        place = self._place("known", known)
        place.parent.mkdir(mode=0o700, exist_ok=True)
        self._write(place, name.encode("ascii"))

    def _find_known(self, hashes: Mapping[str, str], source: str) -> str | None:
        for known in _names_of(hashes, source):
            with contextlib.suppress(OSError, UnicodeDecodeError):
                return read_file(self._place("known", known), 64).decode("ascii")
        return None

    # -- pages -------------------------------------------------------------------------------------

    def open_page(self, key: str) -> StoredPage | None:
        """Return the page that was kept under ``key``. After its body the file has the other
        fields, and their length in FOOTER_DIGITS digits."""
        path = self._place("pages", _digest(key))
        try:
            file = OpenFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
            end = os.fstat(file.fd).st_size - FOOTER_DIGITS
            length = int(os.pread(file.fd, FOOTER_DIGITS, max(0, end)))
            if not 0 < length <= min(MAX_FOOTER, end):
                return None
            fields = parse_json(os.pread(file.fd, length, end - length), MAX_FOOTER)
            if fields["size"] != end - length:
                return None
            page = StoredPage(file=file, **fields)
        except (OSError, ValueError, TypeError, KeyError):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return page

    def new_page(self) -> IncomingPage:
        """Begin a page.

        :raises OSError: when it cannot be made
        """
        return IncomingPage(self, self.root / "new" / secrets.token_hex(16))

    def adopt_page(self, path: Path, key: str, size: int) -> None:
        """Give the complete page ``path`` its name.

        :raises OSError: when it cannot be renamed
        """
        place = self._place("pages", _digest(key))
        place.parent.mkdir(mode=0o700, exist_ok=True)
        path.rename(place)
        self._note_added(size)

    # -- size --------------------------------------------------------------------------------------

    def _note_added(self, size: int) -> None:
        self._added += size
        if self._added >= TRIM_EVERY:
            self._added = 0
            self.trim()

    def trim(self) -> None:
        """Remove what was used longest ago until the cache is below its limit."""
        held = lock(self.root / "lock", fcntl.LOCK_EX | fcntl.LOCK_NB, create=True)
        with contextlib.suppress(OSError), held:
            found = sorted(self._entries())
            total = sum(size for _, size, _ in found)
            if total <= self.limit:
                return
            for _, size, path in found:
                with contextlib.suppress(OSError):
                    path.unlink()
                total -= size
                if total <= TRIMMED * self.limit:
                    return

    def measure(self) -> int:
        """Return the size of all in bytes."""
        return sum(size for _, size, _ in self._entries())

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        now = time.time()
        for folder in _FOLDERS:
            for directory, _, names in os.walk(self.root / folder):
                for name in names:
                    path = Path(directory) / name
                    try:
                        status = path.lstat()
                    except OSError:
                        continue
                    if folder != "new":
                        yield status.st_mtime, max(status.st_size, 512), path
                    elif now - status.st_mtime > UNFINISHED_SECONDS:
                        with contextlib.suppress(OSError):
                            path.unlink()

    def _place(self, folder: str, name: str) -> Path:
        if not name.isalnum():
            raise ValueError("not a digest")
        return self.root / folder / name[:2] / name

    def _write(self, path: Path, data: bytes) -> None:
        new = self.root / "new" / secrets.token_hex(16)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
            new.rename(path)
        except BaseException:
            with contextlib.suppress(OSError):
                new.unlink()
            raise


def hash_file(fd: int) -> str:
    """Return the SHA-256 of an open file. Blocks."""
    digest = hashlib.sha256()
    at = 0
    while data := os.pread(fd, MIB, at):
        digest.update(data)
        at += len(data)
    return digest.hexdigest()


def is_strong(hashes: Mapping[str, str]) -> bool:
    """Whether the digests can be those of one file only."""
    return any(name in hashes for name in STRONG)


def _names_of(hashes: Mapping[str, str], source: str) -> tuple[str, ...]:
    """Return what a file is known by: its strong digests, or its source if it has none."""
    strong = [f"{name}:{hashes[name]}" for name in STRONG if name in hashes]
    weak = json.dumps([source, sorted(hashes.items())])
    return tuple(_digest(text) for text in strong or [weak])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
