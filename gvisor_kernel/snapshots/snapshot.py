"""One snapshot on disk: its directory, what ``meta.json`` says of it, and whether it is usable.

    <key>/  lock                shared during a restore, exclusive during a removal
            meta.json           0600, written last; the first line is the checksum of the rest
            image/              0700, what the runtime wrote; meta.json has its stamps and sums
            used                its modification time is the last use of the snapshot

A snapshot contains the memory of a kernel, and so its sandbox's key: nothing is read through a
symbolic link or from another user's directory. A restore has no time to read a snapshot twice: it
compares only what stat says of the files. ``find_damage`` compares their contents. Which snapshots
there are, and which are removed, is up to ``snapshot_store``; it also has the lock.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gvisor_kernel.host import private_directories
from gvisor_kernel.snapshots.manifest import Manifest

# by path: below a private store of this user

FORMAT = 3
"""Format of meta.json. Snapshots of older formats may contain values that the setting
``environment`` passed on, so they are removed."""
PRELOADED = "preloaded"
"""The fact of ``Meta`` that says what was imported ahead; see ``learned.Preloaded``."""
MAX_META = 16 * 1024 * 1024
"""Bytes of meta.json."""


class Unusable(Exception):
    """A directory in the store is not a usable snapshot; the text says why."""


@dataclass(frozen=True)
class Meta:
    """The metadata of a snapshot.

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

    def finish(self, meta: Meta) -> None:
        """Write what makes the directory a snapshot, and remove the scratch directory.

        :raises OSError: when it cannot be written
        """
        for folder, _, names in os.walk(self.files):
            for name in names:
                Path(folder, name).chmod(0o600)
        shutil.rmtree(self.scratch, ignore_errors=True)
        (self.directory / "used").touch(mode=0o600)
        stamps = check_private(self.files)
        content = {
            "format": FORMAT,
            **vars(meta),
            "manifest": meta.manifest.to_json(),
            "sums": {name: _checksum(self.files / name) for name in stamps},
            "stamps": stamps,
        }
        text = json.dumps(content)
        digest = hashlib.sha256(text.encode()).hexdigest()
        private_directories.write_file(self.directory / "meta.json", f"{digest}\n{text}")


def read_snapshot(directory: Path) -> Snapshot:
    """Return the snapshot in ``directory``, whose files are as they were written.

    :raises Unusable, FileNotFoundError: when it cannot be used, or does not exist
    """
    try:
        check_private(directory)
        found = check_private(directory / "image")
        digest, _, text = private_directories.read_file(
            directory / "meta.json", MAX_META
        ).partition(b"\n")
        if hashlib.sha256(text).hexdigest().encode() != digest:
            raise Unusable(f"{directory / 'meta.json'} is damaged, or of another release")
        content = json.loads(text)
        if content.pop("format") != FORMAT or content["key"] != directory.name:
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
        raise Unusable(f"{directory} cannot be read: {error}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Unusable(f"{directory / 'meta.json'} cannot be parsed: {error!r}") from error
    for name in sorted({*stamps, *found}):
        if stamps.get(name) != found.get(name):
            raise Unusable(f"{directory / 'image' / name} was changed after it was written")
    return Snapshot(meta, directory, measure(directory / "image"), used, sums)


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
