"""Where images are kept: one private directory a user, one directory in it for each image.

    images/                       0700
      lock                        held while images come and go
      <key>/  lock                shared: somebody restores from it; exclusive: it goes
              meta.json           0600, written last; its first line is the rest's checksum
              image/              what the runtime wrote, 0700; as meta.json says it was
              used                its time of change: when the image was used last
      new-<random>/               being written, as long as its lock is held
      gone-<random>/              being removed

An image holds the memory of a kernel, its sandbox's key among it. So nobody else may enter, and
nothing is read through a link, or from a directory of somebody else's. A restore has no time to
read an image twice: it compares what the file system says of its files, and ``find_damage`` what
is in them.
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
"""Those below may hold values that the setting ``environment`` passed on: they are removed."""
MAX_STORE = 4 * GIB
"""Bytes of all images together: about forty kernels with numpy and pandas imported."""
DISK_SHARE = 0.2
"""Of what the disk has free, or would have without images, no more than this."""
MAX_META = 16 * 1024 * 1024
BUSY_SECONDS = 5.0
"""A restore holds its image for a second or two; longer than this nobody waits for one to end."""
MAX_REPLACED = 3
"""How often in a row an image may be replaced while somebody waits for it."""

_KEY = re.compile(f"[0-9a-f]{{{KEY_DIGITS}}}")


@dataclass(frozen=True)
class Meta:
    """What is known of an image. ``sandbox_key`` signs messages inside: it is secret.

    ``run`` is the number of the kernel's run in the link. ``parts``: of the image's key, see
    ``SnapshotKey``. ``label``: text for people, such as the kernelspec's name. ``facts``: JSON that
    those who make and restore images keep with them.
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
    """An image in the store. ``size`` in bytes of the disk, ``used``: seconds since the epoch.

    ``sums``: of the content of its files, by their names.
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
        """Words for the first file that is not as it was written. Reads them all: seconds."""
        for name, digest in self.sums.items():
            try:
                if _checksum(self.files / name) != digest:
                    return f"{self.files / name} is damaged"
            except OSError as error:
                return f"{self.files / name} cannot be read: {error.strerror}"
        return None


@dataclass(frozen=True)
class Draft:
    """An image that is being written. Its directories are empty at first."""

    directory: Path

    @property
    def files(self) -> Path:
        """For the runtime to write the image into."""
        return self.directory / "image"

    @property
    def scratch(self) -> Path:
        """In the place of a notebook's folder, as long as the image is made."""
        return self.directory / "scratch"


class Unusable(Exception):
    """What is in the place of an image is none; the text says why."""


class Store:
    """The images of this user, shared by all of the user's processes. Every method may wait for
    another process for moments, and none is for an event loop.
    """

    def __init__(self, root: Path, max_size: int = MAX_STORE) -> None:
        self.root = root
        self.max_size = max_size

    @classmethod
    def open(cls) -> Store:
        """This user's, made if need be. Raises SnapshotError where it is not private."""
        cache = user_cache_path("gvisor-kernel")
        fix = "let it be a directory of yours alone, or let XDG_CACHE_HOME name another place."
        try:
            private_directories.make_directories(cache, cache / "images")
        except private_directories.NotPrivate as error:
            raise SnapshotError(str(error), fix) from error
        return cls(cache / "images")

    # -- reading ---------------------------------------------------------------------------------

    def snapshots(self) -> list[Snapshot]:
        """Every image, the one that was used last first. What is none any more is left out."""
        found = []
        for name in os.listdir(self.root):  # noqa: PTH208
            with contextlib.suppress(Unusable, FileNotFoundError):
                if _KEY.fullmatch(name):
                    found.append(self._read(name))
        return sorted(found, key=lambda image: image.used, reverse=True)

    @contextlib.contextmanager
    def use(self, key: str) -> Iterator[Snapshot | None]:
        """The image of ``key`` if there is one; it stays as it is meanwhile, and counts as used.

        What is there and is no image, or a damaged one, is discarded.
        """
        with contextlib.ExitStack() as stack:
            try:
                image = self._open_locked(key, stack)
            except Unusable as error:
                stack.close()
                self.discard(key, str(error))
                image = None
            yield image

    def _open_locked(self, key: str, stack: contextlib.ExitStack) -> Snapshot | None:
        """Raises Unusable."""
        lock = self.root / key / "lock"
        if not _KEY.fullmatch(key):
            return None
        try:
            for _ in range(MAX_REPLACED):
                check_private(self.root / key)
                fd = stack.enter_context(private_directories.lock(lock, fcntl.LOCK_SH))
                if os.path.samestat(os.fstat(fd), lock.lstat()):
                    image = self._read(key)
                    os.utime(image.directory / "used", follow_symlinks=False)
                    return image
        except OSError as error:
            if os.path.lexists(self.root / key):
                raise Unusable(f"{error.filename} cannot be used: {error.strerror}") from error
        return None

    def _read(self, key: str) -> Snapshot:
        """Raises Unusable, or FileNotFoundError."""
        directory = self.root / key
        check_private(directory)
        found = check_private(directory / "image")
        try:
            digest, _, text = private_directories.read_file(
                directory / "meta.json", MAX_META
            ).partition(b"\n")
            if hashlib.sha256(text).hexdigest().encode() != digest:
                raise Unusable(f"{directory / 'meta.json'} is damaged, or another release's")
            content = json.loads(text)
            if content.pop("format") != FORMAT or content["key"] != key:
                raise Unusable(f"{directory / 'meta.json'} is another image's, or release's")
            content["manifest"] = Manifest.from_json(content["manifest"])
            sums, stamps = content.pop("sums"), content.pop("stamps")
            meta = Meta(**content)
            used = (directory / "used").lstat().st_mtime
        except FileNotFoundError:
            raise
        except OSError as error:
            raise Unusable(f"{directory / 'meta.json'} cannot be read: {error}") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise Unusable(f"{directory / 'meta.json'} cannot be used: {error!r}") from error
        for name in sorted({*stamps, *found}):
            if stamps.get(name) != found.get(name):
                raise Unusable(f"{directory / 'image' / name} is not as it was written")
        return Snapshot(meta, directory, measure(directory / "image"), used, sums)

    # -- writing ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def write(self) -> Iterator[Draft]:
        """A new image in the making; gone at the end, unless ``keep`` was called with it.

        Raises SnapshotError where the disk has no room for any.
        """
        self.sweep()
        if self.capacity() <= 0:
            raise SnapshotError(
                f"The disk of {self.root} is too full for images of kernels.", "make room there."
            )
        try:
            with private_directories.new_entry(self.root) as directory:
                draft = Draft(directory)
                draft.files.mkdir(mode=0o700)
                draft.scratch.mkdir(mode=0o700)
                yield draft
        except OSError as error:
            raise SnapshotError(
                f"The image of a kernel cannot be written below {self.root}: {error.strerror}."
            ) from error

    def keep(self, draft: Draft, key: SnapshotKey, meta: Meta) -> None:
        """Put a written image in its place; older ones go where there is no room for all.

        One that is there for the key is replaced. Raises SnapshotError where the image alone
        is larger than the store may be.
        """
        assert meta.key == key.name
        size = measure(draft.files)
        if size > self.capacity():
            raise SnapshotError(
                f"The image of a kernel has {size} bytes, and there is room for {self.capacity()}.",
                "preload less, or make room on the disk.",
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
        with private_directories.alone(self.root):
            private_directories.take_away(place)
            self._evict(size)
            draft.directory.rename(place)
        self.sweep()

    def remove(self, key: str) -> bool:
        """Remove an image, once nobody restores from it. False: there is none, or it is in use."""
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                held = private_directories.lock(
                    self.root / key / "lock", fcntl.LOCK_EX | fcntl.LOCK_NB
                )
                with held, private_directories.alone(self.root):
                    private_directories.take_away(self.root / key)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.02)  # nothing tells of a lock's end but waiting without end
            except OSError:
                return False
        self.sweep()
        return True

    def discard(self, key: str, reason: str) -> None:
        """Let nobody use an image any more: it does not restore, or what it was made of is gone."""
        log.warning("An image of a kernel is not used any more (%s): %s", key, reason)
        with contextlib.suppress(OSError):
            with private_directories.alone(self.root):
                private_directories.take_away(self.root / key)
            self.sweep()

    def sweep(self) -> None:
        """Remove what was half written, or half removed, by processes that are gone.

        And what is no image any more, such as those of another release.
        """
        with private_directories.alone(self.root):
            for name in os.listdir(self.root):  # noqa: PTH208
                if _KEY.fullmatch(name):
                    try:
                        self._read(name)
                    except (Unusable, FileNotFoundError):
                        private_directories.take_away(self.root / name)
            private_directories.sweep(self.root)

    def capacity(self) -> int:
        """How many bytes all images together may have."""
        free = shutil.disk_usage(self.root).free
        return min(self.max_size, int(DISK_SHARE * (free + self._measure_all())))

    def _measure_all(self) -> int:
        return sum(measure(self.root / name / "image") for name in os.listdir(self.root))  # noqa: PTH208

    def _evict(self, size: int) -> None:
        """For ``size`` bytes more. What is in use stays: the store may be too large for a while."""
        images = self.snapshots()
        held = sum(image.size for image in images)
        for image in reversed(images):
            if held + size <= self.capacity():
                return
            with (
                contextlib.suppress(OSError),
                private_directories.lock(image.directory / "lock", fcntl.LOCK_EX | fcntl.LOCK_NB),
            ):
                private_directories.take_away(image.directory)
                held -= image.size


def check_private(directory: Path) -> dict[str, list[int]]:
    """What the file system says of the files in ``directory``, by their names.

    Raises Unusable unless all of it is this user's, with no links in it, and nobody else may
    write there; FileNotFoundError if it is not there.
    """
    found = {}
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise Unusable(f"{directory} is no directory")
    _check_owner(str(directory), status)
    with os.scandir(directory) as entries:
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                raise Unusable(f"{entry.path} is a link")
            _check_owner(entry.path, status)
            if stat.S_ISREG(status.st_mode):
                times = (status.st_mtime_ns, status.st_ctime_ns)
                found[entry.name] = [status.st_size, *times, status.st_ino]
    return found


def _check_owner(path: str, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid():
        raise Unusable(f"{path} is another user's ({status.st_uid})")
    if status.st_mode & 0o022:
        raise Unusable(f"{path} may be written by others")


def _checksum(path: Path) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with os.fdopen(fd, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def measure(directory: Path) -> int:
    """The bytes that the files in ``directory`` take on the disk."""
    try:
        with os.scandir(directory) as entries:
            return sum(entry.stat(follow_symlinks=False).st_blocks * 512 for entry in entries)
    except OSError:
        return 0
