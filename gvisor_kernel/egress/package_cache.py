"""Keeps what was downloaded from package indexes, for all kernels of this user.

Files are named by a digest, so nobody can put another content under a name: a file gets its name
after its digest was computed here. A page is kept as the index sent it, and as it was made for
sandboxes (``page_reader``). All of it is private to the user, survives processes, and is shared by
them: a name appears in one step, and a file that is removed stays readable for who has it open. The
files that were used longest ago are removed first.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import time
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gvisor_kernel.config.validators import GIB, MIB
from gvisor_kernel.egress.package_pages import MAX_FOOTER, STRONG, make_footer, read_footer
from gvisor_kernel.host.private_directories import lock, make_directories, own_cache

# by path: below a private store of this user

MAX_CACHE = 5 * GIB
TRIMMED = 0.9
"""The part of the limit that is left after files were removed."""
TRIM_EVERY = 64 * MIB
"""Bytes that this process adds before it looks at the size of all again."""
UNFINISHED_SECONDS = 86400.0
"""When an unfinished download is left over from a process that has ended."""
TOUCH_SECONDS = 60.0
_FOLDERS = ("files", "pages", "new")


class HashMismatch(Exception):
    """A file is not the one that its index describes; the text says how it differs."""


class OpenFile:
    """A descriptor that is closed when nobody has this object any more."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        weakref.finalize(self, os.close, fd)


@dataclass(frozen=True)
class StoredPage:
    """A page: the first ``size`` bytes of ``file``, which stay as they are; ``fields`` say more.

    ``checked``: when it was fetched or asked for last, in seconds since the epoch.
    """

    file: OpenFile = field(compare=False)
    size: int
    checked: float
    fields: Mapping[str, Any]


class Incoming:
    """A file or a page that is being written. It is removed at the end, unless it has got a name.
    All methods block."""

    def __init__(self, cache: PackageCache, hashes: Mapping[str, str]) -> None:
        self._cache = cache
        self._path = cache.root / "new" / secrets.token_hex(16)
        self._expected = dict(hashes)
        self.fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self.size = 0
        self._digests = {
            name: hashlib.new(name, usedforsecurity=False) for name in {"sha256", *hashes}
        }

    def write(self, data: bytes) -> None:
        """Append.

        :raises OSError: when the disk is full
        """
        view = memoryview(data)
        while view:
            view = view[os.write(self.fd, view) :]
        for digest in self._digests.values():
            digest.update(data)
        self.size += len(data)

    def check(self) -> None:
        """Check that the complete file has the digests that were expected.

        :raises HashMismatch: when it has not
        """
        for name, expected in self._expected.items():
            actual = self._digests[name].hexdigest()
            if actual != expected:
                raise HashMismatch(f"its {name} is {actual}, and the index says {expected}")

    def keep(self, source: str) -> None:
        """Give the complete file its name. ``source``: where it came from.

        :raises HashMismatch: see ``check``
        :raises OSError: when it cannot be kept
        """
        self.check()
        self._cache.adopt(self._path, "files", _name_of(self._expected, source), self.size)

    def keep_page(self, name: str, fields: Mapping[str, Any] | None = None) -> StoredPage:
        """Put the page in the place of an older one, and return it.

        ``fields``: of the page, with its ``digest``; None if another process has written them.

        :raises OSError: when it cannot be kept
        """
        if fields is not None:
            digest = self._digests["sha256"].hexdigest()
            os.write(self.fd, make_footer({**fields, "digest": digest}))
        page = _open_page(os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
        self._cache.adopt(self._path, "pages", name, page.size)
        return page

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
            base = own_cache()
            make_directories(base)
            root = base / "packages"
        make_directories(root)
        for name in _FOLDERS:
            make_directories(root / name)
        return cls(root, limit)

    def begin(self, hashes: Mapping[str, str] = {}) -> Incoming:
        """Begin a page, or a file that is to have these digests.

        :raises OSError: when it cannot be made
        """
        return Incoming(self, hashes)

    def open_file(self, hashes: Mapping[str, str], source: str) -> OpenFile | None:
        """Return the file with these digests. Without a strong one: that which came from ``source``
        last. None if there is none, or it is damaged.
        """
        name = _name_of(hashes, source)
        path = self.place("files", name)
        try:
            file = OpenFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
        except OSError:
            return None
        status = os.fstat(file.fd)
        state = (status.st_ino, status.st_size)
        if self._verified.get(name) != state:  # once in each process: the disk may have lost it
            algorithm = next((each for each in STRONG if each in hashes), None)
            if algorithm is not None and hash_file(file.fd, algorithm) != hashes[algorithm]:
                with contextlib.suppress(OSError):
                    path.unlink()
                return None
            self._verified[name] = state
        if time.time() - status.st_mtime > TOUCH_SECONDS:
            with contextlib.suppress(OSError):
                os.utime(path)
        return file

    def open_page(self, name: str, *, touch: bool = False) -> StoredPage | None:
        """Return a page; None if there is none, or it is damaged. ``touch``: it was asked for."""
        path = self.place("pages", name)
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            page = _open_page(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
            if touch:
                os.utime(path)
            return page
        return None

    def adopt(self, path: Path, folder: str, name: str, size: int) -> None:
        """Give the complete file ``path`` its name. One that is larger than the cache gets none.

        :raises OSError: when it cannot be renamed
        """
        if size > self.limit:
            return
        place = self.place(folder, name)
        place.parent.mkdir(mode=0o700, exist_ok=True)
        path.rename(place)
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

    def place(self, folder: str, name: str) -> Path:
        """Return where the file with this digest is, or would be."""
        if not name.isalnum() or not name.isascii():
            raise ValueError("not a digest")
        return self.root / folder / name[:2] / name


def _open_page(fd: int) -> StoredPage:
    """Read the fields at the end of a page.

    :raises OSError: they cannot be read
    :raises ValueError: it is damaged
    """
    file = OpenFile(fd)
    status = os.fstat(fd)
    begin = max(0, status.st_size - MAX_FOOTER)
    fields, length = read_footer(os.pread(fd, MAX_FOOTER, begin))
    size = status.st_size - length
    if fields["size"] != size:
        raise ValueError("a part of the page is missing")
    return StoredPage(file, size, status.st_mtime, fields)


def hash_file(fd: int, algorithm: str) -> str:
    """Return the digest of an open file. Blocks."""
    digest = hashlib.new(algorithm)
    at = 0
    while data := os.pread(fd, MIB, at):
        digest.update(data)
        at += len(data)
    return digest.hexdigest()


def is_strong(hashes: Mapping[str, str]) -> bool:
    """Return whether the digests can be those of one file only."""
    return any(name in hashes for name in STRONG)


def _name_of(hashes: Mapping[str, str], source: str) -> str:
    """Return a strong digest of a file; if it has none, a name of its source."""
    strong = next((hashes[name] for name in STRONG if name in hashes), None)
    return strong or "source" + make_name([source, sorted(hashes.items())])


def make_name(key: object) -> str:
    """Return a name for what ``key``, as JSON, stands for."""
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()
