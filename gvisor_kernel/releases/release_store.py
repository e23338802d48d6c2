"""Stores of releases of runsc: what is installed, and what is chosen. Nothing uses the network.

    lock              locked while names change
    installing        locked while a release is installed
    chosen            the name of the release that kernels start with, or "system"
    partial/          downloads that have not ended
    <name>/           runsc, release.json, and gvisor-bin/ where a release has that
    new-<random>/     being written; ``gone-<random>/`` is being removed

Each user has a store, which is private. That of root serves all users: everything in it, and each
folder above it, belongs to root, and nobody else can write to it. No link is followed in either.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from gvisor_kernel.errors import ReleaseError
from gvisor_kernel.host.private_directories import (
    GONE,
    NEW,
    NotPrivate,
    check_parents,
    lock,
    locked_directory,
    make_directories,
    mark_for_removal,
    new_entry,
    own_data,
    replace_file,
    sweep,
    write_file,
)
from gvisor_kernel.releases import SYSTEM as SYSTEM
from gvisor_kernel.strict_json import JsonError
from gvisor_kernel.typed_json import read_json, write_json

# by path: below a store, whose folders only its owner or root can change

SHARED = Path("/var/lib/gvisor-kernel/runsc")
"""The store of root."""
PROGRAM, SIDECARS, FACTS, CHOSEN = "runsc", "gvisor-bin", "release.json", "chosen"
NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._+~-]{0,63}")
RESERVED = {SYSTEM, CHOSEN, "lock", "installing", "partial"}
MAX_FACTS = 16 * 1024
"""Bytes of release.json, which has some 400."""


@dataclass(frozen=True)
class Release:
    """An installed release. ``sha512``: of its runsc. ``installed``: seconds since the epoch.
    ``shared``: it is in root's store."""

    name: str
    directory: Path
    version: str
    sha512: str
    source: str
    installed: float
    shared: bool

    @property
    def program(self) -> Path:
        """Its runsc."""
        return self.directory / PROGRAM


def release_name(version: str) -> str:
    """Return the name of the release whose runsc prints ``version``: without ``release-``, and
    without the ``0.0~`` of Debian.

    :raises ReleaseError: when it can be no name of a folder
    """
    name = version.removeprefix("release-").removeprefix("0.0~")
    if not NAME.fullmatch(name) or name in RESERVED or name.startswith((NEW, GONE)):
        raise ReleaseError(f"A release of runsc cannot have the name {name!r}.")
    return name


def find_releases() -> list[Release]:
    """Return all releases that can be used, own ones first, each store's in the order of its names.

    :raises ReleaseError: when somebody else could change a store
    """
    found = []
    for root in _roots():
        names = os.listdir(root) if _check_store(root) else []  # noqa: PTH208
        for name in sorted(names):
            with suppress(ReleaseError):
                found.append(_load(root, release_name(name)))
    return found


def find_release(name: str) -> Release | None:
    """Return the release ``name``, an own one first; None if there is none. ``20240729`` finds
    ``20240729.0``, and of several points the last.

    :raises ReleaseError: when somebody else could change a store
    """
    found = find_releases()
    named = [release for release in found if release.name == name]
    points = [(*release.name.rpartition("."), release) for release in found]
    points = [it for it in points if it[0] == name and it[2].isdecimal()]
    if points and not named:
        return max(points, key=lambda point: int(point[2]))[3]
    return named[0] if named else None


def find_named(name: str) -> Release:
    """Return the release ``name``, as ``find_release``.

    :raises ReleaseError: when there is none, or somebody else could change a store
    """
    found = find_release(name)
    if found is None:
        raise ReleaseError(
            f"There is no release {name!r} of runsc.",
            "see what is there: gvisor-kernel runsc list; or gvisor-kernel runsc install RELEASE.",
        )
    return found


def find_chosen() -> Release | None:
    """Return the release that kernels start with: what this user has chosen, or else root; None if
    that is the system's runsc. Takes some system calls, so that each start can ask.

    :raises ReleaseError: when the chosen one cannot be used, or somebody else could change a store
    """
    for root in _roots():
        if not _check_store(root):
            continue
        try:
            chosen = _read(root / CHOSEN, 100).decode().strip()
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise ReleaseError(
                f"{root / CHOSEN} cannot be read: {error}.",
                "remove it, and choose again: gvisor-kernel runsc use RELEASE.",
            ) from error
        if chosen == SYSTEM:
            return None
        for place in dict.fromkeys((root, SHARED)):
            if _check_store(place) and (place / release_name(chosen)).exists():
                return _load(place, chosen)
        raise ReleaseError(
            f"The release {chosen} of runsc is chosen, but not installed.",
            f"gvisor-kernel runsc install {chosen}, or gvisor-kernel runsc use {SYSTEM}.",
        )
    return None


def choose(name: str) -> None:
    """Let kernels start with the release ``name``, or with the system's; as root, those of all
    users who have not chosen themselves.

    :raises ReleaseError: when there is no such release, or the store cannot be written
    """
    name = SYSTEM if name == SYSTEM else find_named(name).name
    root = make_store()
    with translated_errors(), locked_directory(root):
        replace_file(root / CHOSEN, name + "\n", 0o644)


@contextmanager
def write() -> Iterator[Path]:
    """Yield a folder for a new release in this user's store, to be filled and published. At the end
    it is removed, unless it was published.

    :raises ReleaseError: when the store cannot be used
    """
    root = make_store()
    with translated_errors():
        if os.statvfs(root).f_flag & os.ST_NOEXEC:
            raise ReleaseError(
                f"No program can be run in {root}: it is on a file system that is mounted noexec.",
                "mount it without noexec, or let XDG_DATA_HOME name a folder elsewhere.",
            )
        with locked_directory(root):
            sweep(root)
        with new_entry(root) as draft:
            draft.chmod(0o755)
            yield draft


def publish(draft: Path, name: str, version: str, sha512: str, source: str) -> Release:
    """Give a filled folder its name, on the disk. Return the release; if the same program was
    installed meanwhile, that one.

    :raises ReleaseError: when there is another one of the same name, or it cannot be written
    """
    root, name = draft.parent, release_name(name)
    made = Release(name, root / name, version, sha512, source, time.time(), root == SHARED)
    with translated_errors():
        write_file(draft / FACTS, write_json(made), 0o444)
        for folder, _, files in os.walk(draft, topdown=False):
            for path in (*(Path(folder, file) for file in files), Path(folder)):
                if path != draft / "lock":
                    path.chmod(0o755 if path.is_dir() else 0o444 if path.name == FACTS else 0o555)
                _sync(path)
        with locked_directory(root):
            there = next((it for it in find_releases() if it.directory == root / name), None)
            if there is not None and there.sha512 == sha512:
                return there
            if there is not None:
                raise ReleaseError(
                    f"There is another release {name} of runsc, from {there.source}.",
                    f"remove it first: gvisor-kernel runsc remove {name}.",
                )
            mark_for_removal(root / name)
            draft.rename(root / name)
            _sync(root)
            sweep(root)
    return made


def remove(release: Release, used: Collection[str] = ()) -> None:
    """Remove a release from this user's store. ``used``: the names of those that sandboxes use,
    beside those whose programs run; the caller blocks starts meanwhile.

    :raises ReleaseError: when it is used or chosen, or belongs to root
    """
    root = own_store()
    if release.directory.parent != root:
        raise ReleaseError(f"The release {release.name} is in root's store.", "ask root to do it.")
    if release.name in used or is_running(release):
        raise ReleaseError(
            f"Sandboxes run with the release {release.name}.",
            "end them first: gvisor-kernel list shows them.",
        )
    chosen = find_chosen()
    if chosen is not None and chosen.directory == release.directory:
        raise ReleaseError(
            f"New kernels start with the release {release.name}.",
            f"choose another one first: gvisor-kernel runsc use {SYSTEM}.",
        )
    with translated_errors(), locked_directory(root):
        mark_for_removal(release.directory)
        sweep(root)


def is_running(release: Release) -> bool:
    """Return whether a process runs a program of a release, of those that this user may see: as
    root, also other users' sandboxes."""
    # by inode: sandboxes have mount namespaces of their own, where the path may be another
    files = [it.stat() for it in release.directory.rglob("*")]
    meant = {(status.st_dev, status.st_ino) for status in files}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            status = (process / "exe").stat()
            if (status.st_dev, status.st_ino) in meant:
                return True
    return False


# -- the stores ------------------------------------------------------------------------------------


def own_store() -> Path:
    """Return this user's store, which may not exist: see ``make_store``."""
    return SHARED if os.geteuid() == 0 else own_data() / "runsc"


def make_store() -> Path:
    """Return this user's store. It is made if it is missing.

    :raises ReleaseError: when it cannot be made, or somebody else could change it
    """
    root = own_store()
    if root != SHARED:
        try:
            make_directories(own_data(), root)
        except NotPrivate as error:
            raise ReleaseError(
                str(error), f"make it your own: chmod go-w {error.folder}."
            ) from error
        return root
    with translated_errors():
        for folder in (root.parent, root):
            with suppress(FileExistsError):
                folder.mkdir()
                folder.chmod(0o755)
    _check_store(root)
    return root


@contextmanager
def translated_errors() -> Iterator[None]:
    """Raise a ReleaseError for what the disk refuses."""
    try:
        yield
    except OSError as error:
        raise ReleaseError(
            f"The store of releases {own_store()} cannot be used: {error.strerror or error}.",
            "look whether the disk is full or read-only: df.",
        ) from error


@contextmanager
def locked_install() -> Iterator[None]:
    """Hold the lock of installs in this user's store: one at a time.

    :raises ReleaseError: when another process holds it, or the store cannot be used
    """
    with ExitStack() as stack:
        how = fcntl.LOCK_EX | fcntl.LOCK_NB
        try:
            stack.enter_context(lock(make_store() / "installing", how, create=True))
        except BlockingIOError as error:
            raise ReleaseError(
                "Another process installs a release of runsc now.", "wait until it has ended."
            ) from error
        yield


def _roots() -> list[Path]:
    return list(dict.fromkeys((own_store(), SHARED)))


def _check_store(root: Path) -> bool:
    """Return whether a store exists.

    :raises ReleaseError: when somebody else could change it
    """
    try:
        root.lstat()  # where there is none, nothing is asked of the folders above
        if root != SHARED:
            check_parents(root)
            _check(root, os.geteuid(), folder=True)
        else:
            for folder in reversed(root.parents):
                _check(folder, 0, folder=True, above=True)
            _check(root, 0, folder=True)
    except FileNotFoundError:
        return False
    except (OSError, NotPrivate) as error:
        raise ReleaseError(
            f"The releases in {root} are not used: {error}",
            f"make it a folder that only {'root' if root == SHARED else 'you'} can change.",
        ) from error
    return True


def _load(root: Path, name: str) -> Release:
    """Read an entry of a store that was checked.

    :raises ReleaseError: when it cannot be used
    """
    directory, owner = root / name, 0 if root == SHARED else os.geteuid()
    try:
        _check(directory, owner, folder=True)
        _check(directory / PROGRAM, owner)
        _check(directory / FACTS, owner)
        with suppress(FileNotFoundError):
            _check(directory / SIDECARS, owner, folder=True)
            for path in (directory / SIDECARS).iterdir():
                _check(path, owner)
        release = read_json(_read(directory / FACTS, MAX_FACTS), Release, MAX_FACTS)
    except (OSError, JsonError) as error:
        raise ReleaseError(
            f"The release {name} in {root} cannot be used: {error}.",
            f"install it again: gvisor-kernel runsc install {name}.",
        ) from error
    return replace(release, name=name, directory=directory, shared=root == SHARED)


def _check(path: Path, owner: int, *, folder: bool = False, above: bool = False) -> None:
    """Check that only ``owner`` can change a file or a folder, and that it is no link. ``above``:
    it may be sticky instead, as /tmp: nobody else can rename there what is the owner's."""
    status = path.lstat()
    kind = stat.S_ISDIR if folder else stat.S_ISREG
    if not kind(status.st_mode):
        raise PermissionError(f"{path} is no {'folder' if folder else 'file'}")
    shared = status.st_mode & 0o022 and not (above and status.st_mode & stat.S_ISVTX)
    if status.st_uid != owner or shared:
        raise PermissionError(
            f"{path} belongs to uid {status.st_uid} and has the mode"
            f" {stat.S_IMODE(status.st_mode):o}"
        )


def _read(path: Path, most: int) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise PermissionError(f"{path} is no file")
        return file.read(most + 1)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
