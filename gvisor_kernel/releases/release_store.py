"""Stores of releases of runsc: what is installed, and what is chosen. Nothing uses the network.

    lock              locked while names change
    installing        locked while a release is installed
    chosen            the name of the release that kernels start with, or "system"
    partial/          downloads that have not ended
    <name>/           runsc, release.json, and gvisor-bin/ where a release has that
    new-<random>/     being written; ``gone-<random>/`` is being removed

Each user has a store, which is private. That of root serves all users: what is in it belongs to
root, the folders above it to root or to whoever asks, and nobody else can write to either. No link
is followed.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from gvisor_kernel.errors import ReleaseError
from gvisor_kernel.host.descriptors import closing_fd
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
    read_file,
    replace_file,
    sweep,
    write_file,
)
from gvisor_kernel.releases import DATE
from gvisor_kernel.releases import SYSTEM as SYSTEM
from gvisor_kernel.strict_json import JsonError
from gvisor_kernel.typed_json import read_json, write_json

# by path: below a store, whose folders only its owner or root can change

SHARED = Path("/var/lib/gvisor-kernel/runsc")
"""The store of root."""
PROGRAM = "runsc"  # no runtime: the name of the program
SIDECARS, FACTS, CHOSEN = "gvisor-bin", "release.json", "chosen"
NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._+~-]{0,63}")
RESERVED = {SYSTEM, CHOSEN, "lock", "installing", "partial"}
MAX_FACTS = 16 * 1024
"""Bytes of release.json, which has some 400."""


@dataclass(frozen=True)
class Release:
    """An installed release. ``sha512``: of its runsc. ``installed``: seconds since the epoch."""

    name: str
    directory: Path
    version: str
    sha512: str
    source: str
    installed: float

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


def release_order(version: str) -> tuple[int, int] | None:
    """Return what is larger the later a release is: its date and its point; None without a date."""
    found = re.match(r"(?:release-|0\.0~)?([0-9]{8})(?:\.([0-9]{1,3}))?(?![0-9A-Za-z])", version)
    return (int(found[1]), int(found[2] or 0)) if found else None


def find_releases() -> list[Release]:
    """Return all releases that can be used, own ones first, each store's in the order of its names.

    :raises ReleaseError: when somebody else could change a store
    """
    found = []
    for root in _stores():
        for name in sorted(os.listdir(root)):  # noqa: PTH208
            with suppress(ReleaseError):
                found.append(_load(root, release_name(name)))
    return found


def find_release(name: str) -> Release:
    """Return the release ``name``, an own one first. ``20240729`` finds ``20240729.0``, and of
    several points the last.

    :raises ReleaseError: when there is none, or somebody else could change a store
    """
    found = [
        it
        for it in find_releases()
        if it.name == name
        or (it.name.startswith(f"{name}.") and it.name[len(name) + 1 :].isdecimal())
    ]
    if not found:
        install = f"gvisor-kernel runsc install {name}; or " if DATE.fullmatch(name) else ""
        raise ReleaseError(
            f"The release {name} of runsc is not installed.",
            f"{install}see what is there: gvisor-kernel runsc list.",
        )
    return max(found, key=lambda release: (release.name == name, len(release.name), release.name))


def suggest_release(other_than: str = "") -> str:
    """Return the command that chooses the newest of the other releases, or installs one."""
    with suppress(ReleaseError):
        names = {release.name for release in find_releases()} - {other_than}
        if names:
            return f"gvisor-kernel runsc use {max(names)}"
    return "gvisor-kernel runsc install"


def find_chosen() -> Release | None:
    """Return the release that kernels start with: what this user has chosen, or else root; None if
    that is the system's runsc. Takes some system calls, so that each start can ask.

    :raises ReleaseError: when the chosen one cannot be used, or somebody else could change a store
    """
    for root in _stores():
        try:
            chosen = read_file(root / CHOSEN, 100, _owner(root)).decode().strip()
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise ReleaseError(
                f"{root / CHOSEN} cannot be read: {error}.",
                "remove it, and choose again: gvisor-kernel runsc use RELEASE.",
            ) from error
        if chosen == SYSTEM:
            return None
        for place in _stores(root):
            if (place / release_name(chosen)).exists():
                return _load(place, chosen)
        raise ReleaseError(
            f"The release {chosen} of runsc is chosen, but not installed.",
            f"{suggest_release()}; or see what is there: gvisor-kernel runsc list.",
        )
    return None


def choose(name: str) -> None:
    """Let kernels start with the release ``name``, or with the system's; as root, those of all
    users who have not chosen themselves.

    :raises ReleaseError: when there is no such release, or the store cannot be written
    """
    root = make_store()
    with translated_errors(), locked_directory(root):
        name = SYSTEM if name == SYSTEM else find_release(name).name
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
    made = Release(name, root / name, version, sha512, source, time.time())
    with translated_errors():
        write_file(draft / FACTS, write_json(made))
        for path in (*draft.rglob("*"), draft):
            if path != draft / "lock":
                path.chmod(0o755 if path.is_dir() else 0o444 if path.name == FACTS else 0o555)
            _sync(path)
        with locked_directory(root):
            there = next((it for it in find_releases() if it.directory == made.directory), None)
            if there is not None and there.sha512 == sha512:
                return there
            if there is not None:
                raise ReleaseError(
                    f"There is another release {name} of runsc, from {there.source}.",
                    f"remove it first: gvisor-kernel runsc remove {name}.",
                )
            mark_for_removal(made.directory)
            draft.rename(made.directory)
            _sync(root)
            sweep(root)
    return made


def remove(release: Release) -> None:
    """Remove a release from this user's store. The caller blocks starts meanwhile.

    :raises ReleaseError: when it is used or chosen, or belongs to root
    """
    root = own_store()
    if release.directory.parent != root:
        raise ReleaseError(f"The release {release.name} is in root's store.", "ask root to do it.")
    running = find_processes(release)
    if running:
        names = ", ".join(f"{pid} (uid {uid})" for pid, uid in running.items())
        raise ReleaseError(
            f"Sandboxes run with the release {release.name}: processes {names}.",
            "end them first; gvisor-kernel list shows those of the user who runs it.",
        )
    with translated_errors(), locked_directory(root):
        if find_chosen() == release:
            raise ReleaseError(
                f"New kernels start with the release {release.name}.",
                f"choose another one first: {suggest_release(release.name)}.",
            )
        mark_for_removal(release.directory)
        sweep(root)


def find_processes(release: Release) -> dict[int, int]:
    """Return the processes that run a program of a release, and the uid of each, of those that this
    user may see: as root, also other users' sandboxes."""

    def find_inode(path: Path) -> tuple[int, int]:
        status = path.stat()
        return status.st_dev, status.st_ino

    # by inode: sandboxes have mount namespaces of their own, where the path may be another
    programs = {find_inode(path) for path in release.directory.rglob("*")}
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if find_inode(process / "exe") in programs:
                found[int(process.name)] = process.stat().st_uid
    return found


# -- the stores ------------------------------------------------------------------------------------


def own_store() -> Path:
    """Return this user's store, which may not exist: see ``make_store``."""
    return SHARED if os.geteuid() == 0 else own_data() / "runsc"  # no runtime: the name of a folder


def make_store() -> Path:
    """Return this user's store. It is made if it is missing.

    :raises ReleaseError: when it cannot be made, or somebody else could change it
    """
    root = own_store()
    if root != SHARED:
        try:
            make_directories(own_data(), root)
        except NotPrivate as error:
            fix = f"make it your own: chmod go-w {error.folder}."
            raise ReleaseError(str(error), fix) from error
        return root
    with translated_errors():
        for folder in (root.parent, root):
            with suppress(FileExistsError):
                folder.mkdir()
                folder.chmod(0o755)
    return next(_stores())


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
    with ExitStack() as held:
        path, how = make_store() / "installing", fcntl.LOCK_EX | fcntl.LOCK_NB
        try:
            held.enter_context(lock(path, how, create=True))
        except BlockingIOError as error:
            raise ReleaseError(
                "Another process installs a release of runsc now.", "wait until it has ended."
            ) from error
        yield


def _stores(first: Path | None = None) -> Iterator[Path]:
    """Yield the stores that exist: ``first`` or this user's, and root's.

    :raises ReleaseError: when somebody else could change one
    """
    for root in dict.fromkeys((first or own_store(), SHARED)):
        try:
            _check(root, _owner(root))  # where there is none, nothing is asked of those above
            check_parents(root)
            if not root.is_dir():
                raise NotADirectoryError(f"{root} is no folder")
        except FileNotFoundError:
            continue
        except (OSError, NotPrivate) as error:
            raise ReleaseError(
                f"The releases in {root} are not used: {error}",
                f"make it a folder that only {'root' if root == SHARED else 'you'} can change.",
            ) from error
        yield root


def _owner(root: Path) -> int:
    """Return the owner of a store."""
    return 0 if root == SHARED else os.geteuid()


def _load(root: Path, name: str) -> Release:
    """Read an entry of a store that was checked.

    :raises ReleaseError: when it cannot be used
    """
    directory = root / name
    try:
        for path in (directory, directory / PROGRAM, *directory.rglob("*")):
            _check(path, _owner(root))
        data = read_file(directory / FACTS, MAX_FACTS, _owner(root))
        release = read_json(data, Release, MAX_FACTS)
    except (OSError, JsonError) as error:
        raise ReleaseError(
            f"The release {name} in {root} cannot be used: {error}.",
            f"install it again: gvisor-kernel runsc install {name}.",
        ) from error
    return replace(release, name=name, directory=directory)


def _check(path: Path, owner: int) -> None:
    """Check that only ``owner`` can change a file or a folder, and that it is no link."""
    status = path.lstat()
    mode = status.st_mode
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise PermissionError(f"{path} is no folder or file")
    if status.st_uid != owner or mode & 0o022:
        raise PermissionError(
            f"{path} belongs to uid {status.st_uid} and has the mode {stat.S_IMODE(mode):o}"
        )


def _sync(path: Path) -> None:
    with closing_fd(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)) as fd:
        os.fsync(fd)
