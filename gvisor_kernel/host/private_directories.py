"""Directories that only one user can access, whose entries are shared by the user's processes.

An entry gets its name in one step, after all of it was written. An unfinished entry is called
``new-<random>``, one that is being removed ``gone-<random>``. The file ``lock`` of the directory is
locked while names change, the file ``lock`` in a new entry while a process fills it. Nothing here
follows a symbolic link. What an entry contains, and when it is removed, is decided by the stores.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path

from platformdirs import user_cache_path, user_data_path, user_state_path

from gvisor_kernel.errors import StateError
from gvisor_kernel.host.descriptors import closing_fd
from gvisor_kernel.host.locks import MAX_LOCK_SECONDS, locked_file

# by path: below a private store of this user

NEW, GONE = "new-", "gone-"


class NotPrivate(Exception):
    """A directory belongs to another user, can be replaced by one, or cannot be made; the text says
    which and why. ``folder``: the one that is to be changed."""

    def __init__(self, text: str, folder: Path) -> None:
        self.folder = folder
        super().__init__(text)


def make_directories(*directories: Path) -> None:
    """Make nested directories with mode 0700, or check that existing ones belong to this user.

    :raises NotPrivate: when one of them is a link, belongs to another user, or cannot be made; or
        another user could replace the first one
    """
    try:
        check_parents(directories[0])
        directories[0].parent.mkdir(parents=True, exist_ok=True)
        for directory in directories:
            with contextlib.suppress(FileExistsError):
                directory.mkdir(mode=0o700)
            status = directory.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
                raise NotPrivate(
                    f"{directory} is a symbolic link, or belongs to another user (uid"
                    f" {status.st_uid}).",
                    directory,
                )
            if status.st_mode & 0o077:
                directory.chmod(0o700)
    except OSError as error:
        raise NotPrivate(
            f"{error.filename} cannot be used: {error.strerror}.", Path(str(error.filename))
        ) from error


def check_parents(root: Path) -> None:
    """Check that no other user could replace ``root`` by another directory.

    Names below it are trusted afterwards. So each folder above it has to belong to this user or
    root, and nobody else may write to it. Exceptions: sticky folders such as /tmp, where nobody can
    rename what is another's, and a group with the owner's number, whose only member is the owner.

    :raises NotPrivate: when another user could
    :raises OSError: when a folder cannot be looked at
    """
    real = str(root.resolve())
    if real in _checked:
        return
    for folder in Path(real).parents:
        try:
            status = folder.stat()
        except FileNotFoundError:
            continue  # this process will make it
        owners = {0, os.geteuid(), _overflow_uid()}
        group = status.st_mode & stat.S_IWGRP and (
            status.st_gid not in (0, status.st_uid) or _has_acl(folder)
        )
        others = status.st_mode & stat.S_IWOTH
        shared = (group or others) and not status.st_mode & stat.S_ISVTX
        if status.st_uid not in owners or shared:
            raise NotPrivate(
                f"The folder {folder} contains {root}, and other users can change it: it belongs to"
                f" uid {status.st_uid} and has the mode {stat.S_IMODE(status.st_mode):o}.",
                folder,
            )
    _checked.add(real)


def _has_acl(folder: Path) -> bool:
    """Return whether there is an access control list; the group bits are only its mask then."""
    try:
        return "system.posix_acl_access" in os.listxattr(folder)
    except OSError:  # this file system has none
        return False


_checked: set[str] = set()
"""Directories that this process has checked. Only this user or root could change that later."""


@cache
def _overflow_uid() -> int:
    """Return the uid that a container shows for the files of users that it has no number for."""
    try:
        return int(Path("/proc/sys/kernel/overflowuid").read_text())
    except (OSError, ValueError):
        return 65534


# -- entries of a directory ------------------------------------------------------------------------


def own_state() -> Path:
    """Return where this user's sandboxes are kept: records, logs, backups of changes. It is not
    made: see ``state_root``. Kernels see nothing of it (``runtimes/mounts/covers.py``)."""
    return user_state_path("gvisor-kernel")


def own_data() -> Path:
    """Return where this user keeps images, environments, skills and what pages keep. Kernels see
    what is mounted of it; a folder that they must not see is named in ``covers.py``."""
    return user_data_path("gvisor-kernel")


def own_cache() -> Path:
    """Return where this user keeps what can be made again: snapshots, lists of imports, packages
    of indexes. Kernels see nothing of it."""
    return user_cache_path("gvisor-kernel")


def state_root() -> Path:
    """Return the directory of all of this user's sandboxes; make it if it is missing.

    :raises StateError: when it cannot be made, or another user could change it
    """
    root = own_state()
    fix = "make it a directory of your own (mode 0700), or set XDG_STATE_HOME to another one."
    try:
        check_parents(root)
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for status in (root.lstat(), root.stat()):  # a symbolic link, and its target
            if status.st_uid != os.geteuid():
                raise StateError(f"The state directory {root} belongs to uid {status.st_uid}.", fix)
        if status.st_mode & 0o077:
            root.chmod(0o700)
        (root / "sandboxes").mkdir(mode=0o700, exist_ok=True)
    except NotPrivate as error:
        raise StateError(
            str(error),
            f"make it your own (chmod go-w {error.folder}), or set XDG_STATE_HOME to another"
            " directory.",
        ) from error
    except OSError as error:
        raise StateError(
            f"Could not use the state directory {root}: {error.strerror}.", fix
        ) from error
    return root


def locked_directory(root: Path) -> AbstractContextManager[int]:
    """Hold the lock of the directory ``root``: no other process changes names in it.

    :raises OSError: when the lock cannot be had within MAX_LOCK_SECONDS
    """
    return lock(root / "lock", fcntl.LOCK_EX, create=True)


@contextlib.contextmanager
def new_entry(root: Path) -> Iterator[Path]:
    """Make an unfinished entry. At the end it is removed, unless it was renamed.

    :raises OSError: when it cannot be made
    """
    directory = root / f"{NEW}{secrets.token_hex(8)}"
    with contextlib.ExitStack() as stack:
        with locked_directory(root):
            directory.mkdir(mode=0o700)
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
            stack.enter_context(lock(directory / "lock", fcntl.LOCK_SH, create=True))
        yield directory


def mark_for_removal(entry: Path) -> None:
    """Rename an entry so that ``sweep`` removes it. The caller holds the lock of the directory."""
    with contextlib.suppress(FileNotFoundError):
        if entry.is_symlink() or not entry.is_dir():
            entry.unlink()
        else:
            entry.rename(entry.parent / f"{GONE}{secrets.token_hex(8)}")


def sweep(root: Path) -> None:
    """Remove what ``mark_for_removal`` renamed, and what ended processes left unfinished.

    The caller holds the lock of the directory ``root``.
    """
    for name in os.listdir(root):  # noqa: PTH208
        if name.startswith((NEW, GONE)):
            held = lock(root / name / "lock", fcntl.LOCK_EX | fcntl.LOCK_NB, create=True)
            with contextlib.suppress(OSError), held:
                shutil.rmtree(root / name, ignore_errors=True)


def remove_at_any_depth(directory: Path) -> None:
    """Remove a folder that a sandbox has filled, of any depth and with any modes. Never raises.

    Each folder is emptied from the top one, to which its own folders are moved: no path is long,
    and nothing recurses. No link is followed. Another process may do the same meanwhile.
    """
    last: list[str] = []
    with contextlib.suppress(OSError):
        if not directory.is_symlink():
            directory.chmod(0o700)
        with closing_fd(os.open(directory, _FOLDER)) as top:
            while (names := os.listdir(top)) and names != last:  # noqa: PTH208 - a descriptor
                last = names
                for name in names:
                    with contextlib.suppress(FileNotFoundError):
                        if _remove_file(top, name):
                            continue
                        _flatten(top, name)
                        os.rmdir(name, dir_fd=top)
        directory.rmdir()


_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def _flatten(top: int, name: str) -> None:
    """Remove the files of a folder, and move its folders to ``top``."""
    with closing_fd(os.open(name, _FOLDER, dir_fd=top)) as folder:
        for below in os.listdir(folder):  # noqa: PTH208 - a descriptor
            with contextlib.suppress(FileNotFoundError):
                if not _remove_file(folder, below):
                    os.rename(below, secrets.token_hex(16), src_dir_fd=folder, dst_dir_fd=top)


def _remove_file(folder: int, name: str) -> bool:
    """Remove a file, and return True; let the owner of a folder enter and change it."""
    if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        os.chmod(name, 0o700, dir_fd=folder)
        return False
    os.unlink(name, dir_fd=folder)
    return True


# -- files -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def lock(
    path: Path, how: int, *, create: bool = False, seconds: float = MAX_LOCK_SECONDS
) -> Iterator[int]:
    """Hold a lock on the file ``path``. Blocks. ``how``: as for ``flock``.

    :raises TimeoutError: when another process holds the lock for ``seconds``
    :raises BlockingIOError: with LOCK_NB, when another process holds the lock
    :raises OSError: when the file cannot be opened, or is a symbolic link
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
    fd = os.open(path, flags, 0o600)
    with locked_file(fd, how, seconds):
        yield fd


def read_file(path: Path, most: int, owner: int | None = None) -> bytes:
    """Read a file that belongs to this user, or to ``owner``, and has at most ``most`` bytes.

    :raises OSError: when it cannot be read, or is not such a file
    """
    # A named pipe would wait for a writer without O_NONBLOCK.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise PermissionError(f"{path} is no file")
        if status.st_uid != (os.geteuid() if owner is None else owner) or status.st_size > most:
            raise PermissionError(f"{path} belongs to another user, or has more than {most} bytes")
        return file.read()


def replace_file(path: Path, content: str | bytes, mode: int = 0o600) -> None:
    """Write a file in one step: it has its old content, or all of ``content``.

    :raises OSError: when it cannot be written; nothing is left then
    """
    new = path.with_name(f".{secrets.token_hex(8)}")
    try:
        write_file(new, content, mode)
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def write_file(path: Path, content: str | bytes, mode: int = 0o600) -> None:
    """Create a file and sync it to the disk.

    :raises OSError: when the file exists, or cannot be written
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        os.fchmod(fd, mode)  # whatever the umask is
        file.write(content if isinstance(content, bytes) else content.encode())
        file.flush()
        os.fsync(fd)
