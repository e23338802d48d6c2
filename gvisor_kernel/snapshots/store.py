"""Stores snapshots on disk: one private directory per user, with one directory per snapshot.

    images/                       0700
      lock                        held while snapshots are added or removed
      <key>/  lock                shared during a restore, exclusive during a removal
              meta.json           0600, written last; the first line is the checksum of the rest
              image/              0700, what the runtime wrote; meta.json has its stamps and sums
              used                its modification time is the last use of the snapshot
      new-<random>/               being written, as long as its lock is held
      gone-<random>/              being removed

A snapshot contains the memory of a kernel, and so its sandbox's key. No other user may enter the
store, and nothing is read through a symbolic link or from another user's directory. A restore has
no time to read a snapshot twice: it compares only what stat says of the files. ``find_damage``
compares their contents.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from gvisor_kernel.config.validators import GIB
from gvisor_kernel.errors import SnapshotError
from gvisor_kernel.host import private_directories
from gvisor_kernel.snapshots.key import KEY_DIGITS, SnapshotKey
from gvisor_kernel.snapshots.manifest import Manifest

log = logging.getLogger(__name__)

FORMAT = 3
"""Format of meta.json. Snapshots of older formats may contain values that the setting
``environment`` passed on, so they are removed."""
MAX_STORE = 4 * GIB
"""Bytes of all snapshots together: about forty kernels with numpy and pandas imported."""
DISK_SHARE = 0.2
"""Share of the disk space that would be free without snapshots, as another bound on their size."""
MAX_META = 16 * 1024 * 1024
"""Bytes of meta.json."""
BUSY_SECONDS = 5.0
"""How long a removal waits for a restore, which holds the snapshot for a second or two."""
MAX_REPLACED = 3
"""How often a snapshot may be replaced while this process waits for its lock."""

_KEY = re.compile(f"[0-9a-f]{{{KEY_DIGITS}}}")


@dataclass(frozen=True)
class Meta:
    """What is known about a snapshot.

    ``parts`` are those of its ``SnapshotKey``. ``run`` is the number of the kernel's run on the
    link. ``sandbox_key`` signs messages inside the sandbox and is secret. ``label`` is text for
    people, such as the kernelspec's name. ``facts`` is JSON for those who restore it. ``created``
    is in seconds since the epoch.
    """

    key: str
    parts: dict[str, str]
    run: int
    sandbox_key: str = field(repr=False)
    manifest: Manifest = field(repr=False)
    label: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    created: float = 0.0


@dataclass(frozen=True)
class Snapshot:
    """A snapshot in the store.

    ``size`` is in bytes on disk, ``used`` in seconds since the epoch. ``sums`` are the checksums
    of its files, by name.
    """

    meta: Meta
    directory: Path
    size: int
    used: float
    sums: dict[str, str]

    @property
    def files(self) -> Path:
        """The directory that a runtime restores from."""
        return self.directory / "image"

    def find_damage(self) -> str | None:
        """Return which file is damaged, or None. Reads all files, which takes seconds."""
        for name, digest in self.sums.items():
            try:
                if _checksum(self.files / name) != digest:
                    return f"{self.files / name} is damaged"
            except OSError as error:
                return f"{self.files / name} cannot be read: {error.strerror}"
        return None


@dataclass(frozen=True)
class Draft:
    """A snapshot that is being written. Its directories are empty at first."""

    directory: Path

    @property
    def files(self) -> Path:
        """The directory that the runtime writes the snapshot into."""
        return self.directory / "image"

    @property
    def scratch(self) -> Path:
        """The notebook's folder of the kernel that the snapshot is taken of."""
        return self.directory / "scratch"


class Unusable(Exception):
    """A directory in the store is not a usable snapshot; the text says why."""


class Store:
    """The snapshots of this user, shared by all processes of the user.

    All methods block: they may wait for another process for a moment.
    """

    def __init__(self, root: Path, max_size: int = MAX_STORE) -> None:
        self.root = root
        self.max_size = max_size

    @classmethod
    def open(cls) -> Store:
        """Open this user's store, and create it if it does not exist.

        :raises SnapshotError: when its directory is not private
        """
        cache = user_cache_path("gvisor-kernel")
        fix = "make it a directory that only you can enter, or set XDG_CACHE_HOME to another place."
        try:
            private_directories.make_directories(cache, cache / "images")
        except private_directories.NotPrivate as error:
            raise SnapshotError(str(error), fix) from error
        return cls(cache / "images")

    # -- reading ---------------------------------------------------------------------------------

    def snapshots(self) -> list[Snapshot]:
        """Return all usable snapshots, the last used first."""
        found = []
        for name in self._keys():
            with contextlib.suppress(Unusable, FileNotFoundError):
                found.append(self._read(name))
        return sorted(found, key=lambda snapshot: snapshot.used, reverse=True)

    def unusable(self) -> dict[str, str]:
        """Return why each unusable snapshot is so, by key. The next ``sweep`` removes them."""
        reasons = {}
        for name in self._keys():
            with contextlib.suppress(FileNotFoundError):
                try:
                    self._read(name)
                except Unusable as error:
                    reasons[name] = str(error)
        return reasons

    def _keys(self) -> list[str]:
        return sorted(filter(_KEY.fullmatch, os.listdir(self.root)))  # noqa: PTH208

    @contextlib.contextmanager
    def use(self, key: str) -> Iterator[Snapshot | None]:
        """Yield the snapshot of ``key``, or None. Meanwhile it is not removed to make room.

        Another process may still replace or discard it; then its files are not found any more.
        Marks the snapshot as used. Discards it if it is not usable.
        """
        with contextlib.ExitStack() as stack:
            try:
                snapshot = self._open_locked(key, stack)
            except Unusable as error:
                stack.close()
                self.discard(key, str(error))
                snapshot = None
            yield snapshot

    def _open_locked(self, key: str, stack: contextlib.ExitStack) -> Snapshot | None:
        """:raises Unusable: when a snapshot exists, but cannot be used"""
        lock = self.root / key / "lock"
        if not _KEY.fullmatch(key):
            return None
        try:
            for _ in range(MAX_REPLACED):
                check_private(self.root / key)
                fd = stack.enter_context(private_directories.lock(lock, fcntl.LOCK_SH))
                if os.path.samestat(os.fstat(fd), lock.lstat()):
                    snapshot = self._read(key)
                    os.utime(snapshot.directory / "used", follow_symlinks=False)
                    return snapshot
        except OSError as error:
            if os.path.lexists(self.root / key):
                raise Unusable(f"{error.filename} cannot be used: {error.strerror}") from error
        return None

    def _read(self, key: str) -> Snapshot:
        """:raises Unusable, FileNotFoundError: when it cannot be used, or does not exist"""
        directory = self.root / key
        check_private(directory)
        found = check_private(directory / "image")
        try:
            digest, _, text = private_directories.read_file(
                directory / "meta.json", MAX_META
            ).partition(b"\n")
            if hashlib.sha256(text).hexdigest().encode() != digest:
                raise Unusable(f"{directory / 'meta.json'} is damaged, or of another release")
            content = json.loads(text)
            if content.pop("format") != FORMAT or content["key"] != key:
                raise Unusable(
                    f"{directory / 'meta.json'} belongs to another snapshot or another release"
                )
            content["manifest"] = Manifest.from_json(content["manifest"])
            sums, stamps = content.pop("sums"), content.pop("stamps")
            meta = Meta(**content)
            used = (directory / "used").lstat().st_mtime
        except FileNotFoundError:
            raise
        except OSError as error:
            raise Unusable(f"{directory / 'meta.json'} cannot be read: {error}") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise Unusable(f"{directory / 'meta.json'} cannot be parsed: {error!r}") from error
        for name in sorted({*stamps, *found}):
            if stamps.get(name) != found.get(name):
                raise Unusable(f"{directory / 'image' / name} was changed after it was written")
        return Snapshot(meta, directory, measure(directory / "image"), used, sums)

    # -- writing ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def write(self) -> Iterator[Draft]:
        """Yield a draft of a new snapshot, which is removed at the end unless ``keep`` was called.

        :raises SnapshotError: when the disk is full, or when an OSError is raised meanwhile
        """
        self.sweep()
        if self.capacity() <= 0:
            raise SnapshotError(
                f"The disk of {self.root} is too full for snapshots of kernels.",
                "free disk space there.",
            )
        try:
            with private_directories.new_entry(self.root) as directory:
                draft = Draft(directory)
                draft.files.mkdir(mode=0o700)
                draft.scratch.mkdir(mode=0o700)
                yield draft
        except OSError as error:
            raise SnapshotError(
                f"The snapshot cannot be written below {self.root}: {error.strerror}."
            ) from error

    def keep(self, draft: Draft, key: SnapshotKey, meta: Meta) -> None:
        """Add a written snapshot to the store, and replace one of the same key.

        The least recently used snapshots are removed until all fit.

        :raises SnapshotError: when this snapshot alone is too large
        """
        assert meta.key == key.name
        size = measure(draft.files)
        if size > self.capacity():
            raise SnapshotError(
                f"The snapshot has {size} bytes, but there is room for {self.capacity()}.",
                "preload fewer modules, or free disk space.",
            )
        for folder, _, names in os.walk(draft.files):
            for name in names:
                Path(folder, name).chmod(0o600)
        shutil.rmtree(draft.scratch, ignore_errors=True)
        (draft.directory / "used").touch(mode=0o600)
        stamps = check_private(draft.files)
        content = {
            "format": FORMAT,
            **vars(meta),
            "manifest": meta.manifest.to_json(),
            "sums": {name: _checksum(draft.files / name) for name in stamps},
            "stamps": stamps,
        }
        text = json.dumps(content)
        digest = hashlib.sha256(text.encode()).hexdigest()
        private_directories.write_file(draft.directory / "meta.json", f"{digest}\n{text}")
        place = self.root / meta.key
        with private_directories.locked_directory(self.root):
            private_directories.mark_for_removal(place)
            self._evict(size)
            draft.directory.rename(place)
        self.sweep()

    def remove(self, key: str) -> bool:
        """Remove a snapshot. Return False if there is none, or if it is in use for BUSY_SECONDS."""
        deadline = time.monotonic() + BUSY_SECONDS
        lock = self.root / key / "lock"
        while True:
            try:
                held = private_directories.lock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with held, private_directories.locked_directory(self.root):
                    private_directories.mark_for_removal(self.root / key)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.02)  # flock has no timeout
            except OSError:
                return False
        self.sweep()
        return True

    def discard(self, key: str, reason: str) -> None:
        """Remove a snapshot that cannot be restored any more, also while it is in use."""
        log.debug("Snapshot %s is no longer usable: %s", key, reason)
        with contextlib.suppress(OSError):
            with private_directories.locked_directory(self.root):
                private_directories.mark_for_removal(self.root / key)
            self.sweep()

    def sweep(self) -> None:
        """Remove unusable snapshots, and what dead processes have left half written or removed."""
        with private_directories.locked_directory(self.root):
            for name in self._keys():
                try:
                    self._read(name)
                except (Unusable, FileNotFoundError):
                    private_directories.mark_for_removal(self.root / name)
            private_directories.sweep(self.root)

    def capacity(self) -> int:
        """Return how many bytes all snapshots together may have."""
        free = shutil.disk_usage(self.root).free
        return min(self.max_size, int(DISK_SHARE * (free + self._measure_all())))

    def _measure_all(self) -> int:
        return sum(measure(self.root / name / "image") for name in os.listdir(self.root))  # noqa: PTH208

    def _evict(self, size: int) -> None:
        """Make room for ``size`` bytes. Snapshots in use stay, so the store may grow too large."""
        snapshots = self.snapshots()
        held = sum(snapshot.size for snapshot in snapshots)
        for snapshot in reversed(snapshots):
            if held + size <= self.capacity():
                return
            lock = snapshot.directory / "lock"
            with (
                contextlib.suppress(OSError),
                private_directories.lock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB),
            ):
                private_directories.mark_for_removal(snapshot.directory)
                held -= snapshot.size


def check_private(directory: Path) -> dict[str, list[int]]:
    """Return size, times and inode of the files in ``directory``, by name.

    :raises Unusable: when a file is a symbolic link, belongs to another user or is writable by one
    :raises FileNotFoundError: when there is no such directory
    """
    found = {}
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise Unusable(f"{directory} is not a directory")
    _check_owner(str(directory), status)
    with os.scandir(directory) as entries:
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                raise Unusable(f"{entry.path} is a symbolic link")
            _check_owner(entry.path, status)
            if stat.S_ISREG(status.st_mode):
                times = (status.st_mtime_ns, status.st_ctime_ns)
                found[entry.name] = [status.st_size, *times, status.st_ino]
    return found


def _check_owner(path: str, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid():
        raise Unusable(f"{path} belongs to another user (uid {status.st_uid})")
    if status.st_mode & 0o022:
        raise Unusable(f"{path} is writable by other users")


def _checksum(path: Path) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with os.fdopen(fd, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def measure(directory: Path) -> int:
    """Return the bytes that the files in ``directory`` take on disk; 0 if it cannot be read."""
    try:
        with os.scandir(directory) as entries:
            return sum(entry.stat(follow_symlinks=False).st_blocks * 512 for entry in entries)
    except OSError:
        return 0
