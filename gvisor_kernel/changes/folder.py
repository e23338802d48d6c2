"""The folder on disk: looked at and changed by descriptors, and no link is followed.

A sandbox, or another user, may change it meanwhile. So each step opens the folder that a path is
in, does everything by that descriptor, and compares what it has replaced or removed with what it
was to be, before it is given up.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import IO, Literal

from gvisor_kernel.changes.change import OnDisk
from gvisor_kernel.host.descriptors import closing_fd
from gvisor_kernel.host.folders import Opened, open_below

_libc = ctypes.CDLL(None, use_errno=True)
_NOREPLACE, _EXCHANGE = 1, 2
PART = 1024 * 1024
PREFIX = ".gvisor-kernel-"
"""Prefix of the names of files that are being written."""
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NOT_SUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)


class Changed(OSError):
    """A file on disk is not what it was to be; nothing was done."""

    def __init__(self, path: str) -> None:
        super().__init__(errno.ESTALE, "it has changed on disk meanwhile", path)


class Kept(OSError):
    """Nothing was done, but somebody has saved the file twice meanwhile: both are there."""

    def __init__(self, path: str, saved: str) -> None:
        text = f"another program has saved it just now; one of its contents is in {saved}"
        super().__init__(errno.EBUSY, text, path)


Phase = Literal["begun", "planned", "done"]
Note = Callable[[Phase, str | None, OnDisk | None], None]
"""Called with what a step is about to do, before it does it, with the name beside the path and what
will be there. ``begun``: a file is about to be written with that name. ``planned``: the exchange or
removal is next; the old file will have that name, and what will be there is known but for its time
of change."""


def tell_nobody(phase: Phase, aside: str | None, after: OnDisk | None) -> None:
    """The ``Note`` of a step that is not undone."""


def look(root: Opened, path: str) -> OnDisk | None:
    """Return what the folder has at ``path``; None if there is nothing.

    :raises OSError: when that cannot be seen, as a part of the path is a link
    """
    try:
        with open_parent(root, path) as parent:
            return _look_at(parent, name_of(path))
    except (FileNotFoundError, NotADirectoryError):
        return None


def list_files(root: Opened, path: str, limit: int) -> Iterator[tuple[str, OnDisk]]:
    """Yield what is below a folder, at most ``limit`` entries, those of a folder after it.

    :raises OSError: when it cannot be read
    """
    left = [path]
    while left:
        folder = left.pop()
        with open_below(root, folder) as opened:
            with closing_fd(opened.read()) as fd:
                names = os.listdir(fd)  # noqa: PTH208 - by descriptor
            for name in names:
                found = _look_at(opened, name)
                if found is None or is_aside(name):  # another apply is at work
                    continue
                limit -= 1
                if limit < 0:
                    return
                yield f"{folder}/{name}", found
                if found.type == "folder":
                    left.append(f"{folder}/{name}")


def open_file(root: Opened, path: str) -> IO[bytes]:
    """Open a regular file for reading.

    :raises OSError: when it cannot be opened, or is none
    """
    with open_parent(root, path) as parent:
        return _open_regular(parent, name_of(path))


def find_digest(root: Opened, path: str, limit: int) -> str | None:
    """Return the SHA-256 of a file; None if it has more than ``limit`` bytes or cannot be read."""
    digest = hashlib.sha256()
    with suppress(OSError), open_file(root, path) as file:
        while data := file.read(PART):
            limit -= len(data)
            if limit < 0:
                return None
            digest.update(data)
        return digest.hexdigest()
    return None


def put(
    root: Opened,
    path: str,
    content: IO[bytes] | None,
    *,
    mode: int | None = None,
    expected: OnDisk | None = None,
    note: Note = tell_nobody,
) -> OnDisk:
    """Put a file, or an empty folder if ``content`` is None, in place of ``expected``, or where
    there is nothing. What is replaced gives its owner, and to the same type its rights; a folder
    that is replaced must be empty. ``mode``: its rights else.

    :raises Changed: when something else is there
    :raises OSError: when it cannot be written
    """
    name = name_of(path)
    with open_parent(root, path) as parent:
        old = None
        if expected is not None:
            old = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
            if OnDisk.of(old).text != expected.text:
                raise Changed(path)
            if old.st_uid != os.geteuid() and os.geteuid() != 0:
                text = f"it belongs to another user (uid {old.st_uid})"
                raise OSError(errno.EPERM, text, path)
        with _temporary(parent, content, old, mode, note) as (written, fd):
            planned = OnDisk.of(os.fstat(fd))
            note("planned", written, planned)
            if expected is None:
                _rename(parent, written, name, _NOREPLACE)
            else:
                _exchange(parent, written, name, expected, planned)
            return OnDisk.of(os.fstat(fd))


def remove(root: Opened, path: str, expected: OnDisk, note: Note = tell_nobody) -> None:
    """Remove the file ``expected``, or an empty folder.

    :raises Changed: when another one is there
    :raises OSError: when it cannot be removed
    """
    name = name_of(path)
    with open_parent(root, path) as parent:
        found = _look_at(parent, name)
        if found is None or found.text != expected.text:
            raise Changed(path)
        if expected.type == "folder":
            note("planned", None, None)
            os.rmdir(name, dir_fd=parent.fd)
            return
        taken = new_name()
        note("planned", taken, None)
        os.rename(name, taken, src_dir_fd=parent.fd, dst_dir_fd=parent.fd)
        if not matches(_look_at(parent, taken), expected):
            _give_back(parent, taken, name)
            raise Changed(path)
        try:
            os.unlink(taken, dir_fd=parent.fd)
        except OSError:
            _give_back(parent, taken, name)
            raise


def clear_aside(
    root: Opened, path: str, aside: str, before: OnDisk | None, after: OnDisk | None, *, new: bool
) -> None:
    """Remove what a step that was interrupted has left beside ``path``: what it was writing
    (``new``: it had written no more than a part), or what it had replaced or removed already. What
    anybody else has saved in that moment comes back.

    :raises OSError: when that fails
    """
    if not is_aside(aside):
        return
    with open_parent(root, path) as parent:
        found = _look_at(parent, aside)
        if found is None:
            return
        if new or matches(found, after) or matches(found, before):
            _drop(parent, aside, found)
            return
        name = name_of(path)
        if after is not None and matches(_look_at(parent, name), after):
            _rename(parent, aside, name, _EXCHANGE)
            found = _look_at(parent, aside)
            if not matches(found, after):
                _save(parent, aside, name)
            _drop(parent, aside, found)
        else:
            _give_back(parent, aside, name)


def matches(found: OnDisk | None, expected: OnDisk | None) -> bool:
    """Return whether a file is the one that was looked at; a rename changes its time of change."""
    if found is None or expected is None:
        return False
    if expected.type == "folder":
        return found.text == expected.text
    names = ("type", "device", "inode", "size", "modified")
    return all(getattr(found, name) == getattr(expected, name) for name in names)


def new_name() -> str:
    """Return a name for a file that is being written, or taken away."""
    return f"{PREFIX}{secrets.token_hex(8)}"


def is_aside(name: str) -> bool:
    """Return whether ``new_name`` may have made a name."""
    return re.fullmatch(rf"{re.escape(PREFIX)}[0-9a-f]{{16}}", name) is not None


def name_of(path: str) -> str:
    """Return the last part of a path."""
    return path.rpartition("/")[2]


def open_parent(root: Opened, path: str) -> Opened:
    """Open the folder that ``path`` is in.

    :raises OSError: when it cannot be opened; ELOOP if a part of the path is a link
    """
    above = path.rpartition("/")[0]
    return open_below(root, above) if above else root.duplicate()


# -- inner -----------------------------------------------------------------------------------------


def _look_at(parent: Opened, name: str) -> OnDisk | None:
    try:
        return OnDisk.of(os.stat(name, dir_fd=parent.fd, follow_symlinks=False))
    except FileNotFoundError:
        return None


def _open_regular(parent: Opened, name: str) -> IO[bytes]:
    fd = os.open(name, _READ, dir_fd=parent.fd)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is no regular file", name)
    return os.fdopen(fd, "rb")


@contextlib.contextmanager
def _temporary(
    parent: Opened,
    content: IO[bytes] | None,
    old: os.stat_result | None,
    mode: int | None,
    note: Note,
) -> Iterator[tuple[str, int]]:
    """Write a file, or make a folder, with a name that nothing has; yield that and a descriptor.
    At the end it is removed, if it still has that name."""
    name = new_name()
    note("begun", name, None)
    fd = _make_file(parent, name, old) if content is not None else _make_directory(parent, name)
    try:
        while content is not None and (data := content.read(PART)):
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
        if os.geteuid() == 0:  # whose folder it is, not root's
            owner = parent.status() if old is None else old
            os.fchown(fd, owner.st_uid, owner.st_gid)
        if old is not None and stat.S_ISDIR(old.st_mode) == (content is None):
            mode = stat.S_IMODE(old.st_mode)
        if mode is not None:
            os.fchmod(fd, mode & 0o777)
        os.fsync(fd)  # some file systems tell only now that they are full
        yield name, fd
    finally:
        with suppress(OSError):
            own, found = os.fstat(fd), _look_at(parent, name)
            if found is not None and (found.device, found.inode) == (own.st_dev, own.st_ino):
                _drop(parent, name, found)
        with suppress(OSError):  # what it could tell, fsync has told
            os.close(fd)


def _make_file(parent: Opened, name: str, old: os.stat_result | None) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    is_new = old is None or stat.S_ISDIR(old.st_mode)
    return os.open(name, flags, 0o666 if is_new else 0o600, dir_fd=parent.fd)


def _make_directory(parent: Opened, name: str) -> int:
    os.mkdir(name, dir_fd=parent.fd)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags, dir_fd=parent.fd)
    except OSError:
        os.rmdir(name, dir_fd=parent.fd)
        raise


def _drop(parent: Opened, name: str, found: OnDisk | None) -> None:
    """Remove a file or an empty folder; nothing if there is none."""
    if found is not None and found.type == "folder":
        os.rmdir(name, dir_fd=parent.fd)
    elif found is not None:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=parent.fd)


def _exchange(parent: Opened, written: str, name: str, expected: OnDisk, planned: OnDisk) -> None:
    """Exchange ``written`` and ``name``, and remove what had the name, if that was ``expected``.

    Else all is as before. What somebody saves between the two exchanges is kept beside it.
    """
    try:
        _rename(parent, written, name, _EXCHANGE)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED or expected.type == "folder":
            raise
        if planned.type == "folder":
            raise
        _rename_over(parent, written, name, expected)
        return
    reason: OSError = Changed(name)
    if matches(_look_at(parent, written), expected):
        try:
            _drop(parent, written, expected)
            return
        except OSError as error:  # a folder that is not empty any more
            reason = error
    try:
        _rename(parent, written, name, _EXCHANGE)
    except FileNotFoundError:  # somebody has removed what was just put there
        _give_back(parent, written, name)
        raise reason from None
    if not matches(_look_at(parent, written), planned):
        _save(parent, written, name)
    raise reason


def _give_back(parent: Opened, aside: str, name: str) -> None:
    """Give a file its name again; another one, if somebody has saved a new one meanwhile."""
    try:
        _rename(parent, aside, name, _NOREPLACE)
    except FileExistsError:
        _save(parent, aside, name)


def _save(parent: Opened, aside: str, name: str) -> None:
    """Keep a file that nothing here has made, beside the file ``name``.

    :raises Kept: always
    """
    if _look_at(parent, aside) is None:
        return
    end = f".saved-{secrets.token_hex(4)}"
    saved = os.fsdecode(os.fsencode(name)[: 255 - len(end)]) + end
    _rename(parent, aside, saved, _NOREPLACE)
    raise Kept(name, saved)


def _rename(parent: Opened, name: str, target: str, flags: int) -> None:
    """Call renameat2(2).

    :raises OSError: with the error of the system call
    """
    call = getattr(_libc, "renameat2", None)
    code = errno.ENOSYS
    if call is not None:
        if call(parent.fd, os.fsencode(name), parent.fd, os.fsencode(target), flags) == 0:
            return
        code = ctypes.get_errno()
    if flags == _NOREPLACE and code in _NOT_SUPPORTED:
        os.link(name, target, src_dir_fd=parent.fd, dst_dir_fd=parent.fd, follow_symlinks=False)
        os.unlink(name, dir_fd=parent.fd)
        return
    raise OSError(code, os.strerror(code), target)


def _rename_over(parent: Opened, written: str, name: str, expected: OnDisk) -> None:
    """Replace a file where two names cannot be exchanged: a change just now is lost."""
    found = _look_at(parent, name)
    if found is None or found.text != expected.text:
        raise Changed(name)
    os.rename(written, name, src_dir_fd=parent.fd, dst_dir_fd=parent.fd)
