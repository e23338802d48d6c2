"""Stores snapshots on disk: one private directory per user, with one directory per snapshot.

    images/                       0700
      lock                        held while snapshots are added or removed
      <key>/                      a snapshot: see ``snapshot``
      new-<random>/               being written, as long as its lock is held
      gone-<random>/              being removed

No other user may enter the store. The files of a snapshot are read and written by ``snapshot``;
its lock, and the time of its last use, by this module.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from gvisor_kernel.config.validators import GIB
from gvisor_kernel.errors import NoSnapshot, SnapshotError
from gvisor_kernel.host import private_directories
from gvisor_kernel.host.private_directories import own_cache
from gvisor_kernel.runtimes.base import Sandbox
from gvisor_kernel.snapshots.key import KEY_DIGITS, PARTS, SnapshotKey
from gvisor_kernel.snapshots.snapshot import (
    Draft,
    Meta,
    Snapshot,
    Unusable,
    check_private,
    measure,
    read_snapshot,
)

# by path: below a private store of this user

log = logging.getLogger(__name__)

MAX_STORE = 4 * GIB
"""Bytes of all snapshots together: about forty kernels with numpy and pandas imported."""
DISK_SHARE = 0.2
"""Share of the disk space that would be free without snapshots, as another bound on their size."""
BUSY_SECONDS = 5.0
"""Seconds that a removal waits for a restore, which holds the snapshot for a second or two, and a
restore for a removal, which takes milliseconds unless its process is stopped (Ctrl-Z)."""
MAX_REPLACED = 3
"""Times that a snapshot may be replaced while this process waits for its lock."""

MAX_BUILD_SECONDS = 900.0
"""Seconds that making one snapshot may take, with many imports on a busy machine."""

_KEY = re.compile(f"[0-9a-f]{{{KEY_DIGITS}}}")


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

        :raises SnapshotError: when its directory is not private, or cannot be read
        """
        cache = own_cache()
        root = cache / "images"
        fix = "make it a directory that only you can enter, or set XDG_CACHE_HOME to another place."
        try:
            private_directories.make_directories(cache, root)
        except private_directories.NotPrivate as error:
            raise SnapshotError(str(error), fix) from error
        if not os.access(root, os.R_OK | os.X_OK):
            raise SnapshotError(f"The directory {root} cannot be read by its own user.", fix)
        return cls(root)

    # -- reading ---------------------------------------------------------------------------------

    def snapshots(self) -> list[Snapshot]:
        """Return all usable snapshots, the last used first."""
        found = []
        for name in self._keys():
            with contextlib.suppress(Unusable, FileNotFoundError):
                found.append(read_snapshot(self.root / name))
        return sorted(found, key=lambda snapshot: snapshot.used, reverse=True)

    def unusable(self) -> dict[str, str]:
        """Return why each unusable snapshot is so, by key. The next ``sweep`` removes them."""
        reasons = {}
        for name in self._keys():
            with contextlib.suppress(FileNotFoundError):
                try:
                    read_snapshot(self.root / name)
                except Unusable as error:
                    reasons[name] = str(error)
        return reasons

    def _keys(self) -> list[str]:
        return sorted(filter(_KEY.fullmatch, os.listdir(self.root)))  # noqa: PTH208

    @contextlib.contextmanager
    def use(self, key: str) -> Iterator[Snapshot | None]:
        """Yield the snapshot of ``key``, or None. Meanwhile it is not removed to make room.

        Another process may still replace or discard it; then its files are not found any more.
        Marks the snapshot as used. Discards it if it is not usable. None also if another process
        has begun to remove it, and does not go on for BUSY_SECONDS.
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
                held = private_directories.lock(lock, fcntl.LOCK_SH, seconds=BUSY_SECONDS)
                fd = stack.enter_context(held)
                if os.path.samestat(os.fstat(fd), lock.lstat()):
                    snapshot = read_snapshot(self.root / key)
                    os.utime(snapshot.directory / "used", follow_symlinks=False)
                    return snapshot
        except TimeoutError:
            return None
        except OSError as error:
            if os.path.lexists(self.root / key):
                raise Unusable(f"{error.filename} cannot be used: {error.strerror}") from error
        return None

    # -- writing ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def write(self) -> Iterator[Draft]:
        """Yield a draft of a new snapshot, which is removed at the end unless ``keep`` was called.

        :raises SnapshotError: when the disk is full, or when an OSError is raised meanwhile
        """
        try:
            self.sweep()
            if self.capacity() <= 0:
                raise SnapshotError(
                    f"The disk of {self.root} is too full for snapshots of kernels.",
                    "free disk space there.",
                )
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
        draft.finish(meta)
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
                    read_snapshot(self.root / name)
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


@contextlib.contextmanager
def builder_lock(store: Store, *, wait: bool = False) -> Iterator[bool]:
    """Hold the lock on making snapshots; yield False if another process of this user holds it.

    With ``wait``, wait up to MAX_BUILD_SECONDS for it. Blocks.

    :raises SnapshotError: when the other process holds it for longer than that, or the store is
        read-only
    """
    how = fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)
    turn = private_directories.lock(
        store.root / "builder", how, create=True, seconds=MAX_BUILD_SECONDS
    )
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(turn)
            mine = True
        except BlockingIOError:
            mine = False
        except TimeoutError as error:
            raise SnapshotError(
                f"No snapshot can be made while another one is being made: {error.strerror}.",
                "look at what that process does; if it was stopped (Ctrl-Z), resume it.",
            ) from error
        except OSError as error:
            raise SnapshotError(
                f"No snapshot can be made: {error.filename} cannot be opened: {error.strerror}.",
                "make the folder writable, or set XDG_CACHE_HOME to another place.",
            ) from error
        yield mine


def restore_by_key(
    store: Store, key: SnapshotKey, start: Callable[[Snapshot], Sandbox]
) -> tuple[Sandbox, Meta]:
    """Return a sandbox that ``start(snapshot)`` has restored, and what is known of its kernel.

    Blocks. A snapshot that does not fit any more, or for which ``start`` raises SnapshotError, is
    discarded.

    :raises NoSnapshot: when there is none, it was discarded, or the store cannot be read; its fact
        says why
    :raises GvisorKernelError: as ``start`` does
    """
    try:
        with store.use(key.name) as snapshot:
            if snapshot is None:
                raise NoSnapshot(f"no snapshot fits: {describe_miss(store, key)}")
            reason = snapshot.meta.manifest.find_change()
            if reason is None:
                try:
                    return start(snapshot), snapshot.meta
                except SnapshotError as error:
                    reason = str(error)
        store.discard(key.name, reason)
    except OSError as error:
        raise NoSnapshot(f"the snapshots in {store.root} cannot be used: {error}") from error
    raise NoSnapshot(reason)


def describe_miss(store: Store, key: SnapshotKey) -> str:
    """Return how the snapshot that is most like ``key`` differs, for a log. Blocks."""
    differences = [
        [part for part in key.parts if snapshot.meta.parts.get(part) != key.parts[part]]
        for snapshot in store.snapshots()
    ]
    if not differences:
        return "there is none yet"
    nearest = min(differences, key=len)
    if not nearest:
        return "another process is removing the one that did"
    return f"the nearest has other {', '.join(PARTS.get(part, part) for part in nearest)}"
