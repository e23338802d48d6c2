"""Finds out whether a folder is the home of an account, or contains one. The callers decide.

Nothing in another user's home is accessed, because it may be on a file system that does not answer.
So paths are compared with the homes as the accounts spell them, and for the owners of a folder's
entries the accounts are looked up by uid.
"""

from __future__ import annotations

import os
import posixpath
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from gvisor_kernel.host.descriptors import is_ready

# by path: the system's list of accounts

TOP = "/home"
"""Each entry of this folder counts as a home, even without an account."""
SYSTEM = ("/bin/", "/boot/", "/dev/", "/etc/", "/lib/", "/proc/", "/sbin/", "/sys/", "/usr/")
"""Service accounts have a "home" here that is not a home."""

KEEP_SECONDS = 10.0
"""Seconds that an answer about accounts is cached."""
MAX_SECONDS = 2.0
"""Time limit for getent, which may ask a directory service; later output is ignored."""
MAX_BYTES = 8 * 1024 * 1024
"""Limit for the output of getent: about 100,000 accounts."""
MAX_FOLDERS = 256
"""Folders in a folder that are checked for their owners, at most."""
MAX_OWNERS = 64
"""Different owners that are looked up, at most."""
READ_SIZE = 65536
PROGRAMS = ("/usr/bin/getent", "/bin/getent")

_cache: dict[tuple[str, ...], tuple[float, frozenset[str]]] = {}
"""Uids that were looked up (none: all accounts), the time when the entry expires, and the homes.

It has no lock, because the process may fork while a thread holds one."""


def find_home(path: str) -> str | None:
    """Return the home that ``path`` is or that is below ``path``; None if there is none.

    ``path``: absolute, without links. Blocks for milliseconds, or a few seconds if the directory
    service of accounts does not answer. Never raises.
    """
    above = path.rstrip("/") + "/"
    for home in ("/root", TOP, *own_homes()):
        real = _resolve(home)
        if f"{real}/".startswith(above):
            return home
        if home == TOP and posixpath.dirname(path) in (TOP, real):
            return path
    for home in _look_up_homes():
        if home == path or (home.startswith(above) and os.path.lexists(home)):
            return home
    owners = list(_find_owners(path))
    if owners:
        for home in _look_up_homes(*owners):
            if f"{_resolve(home)}/".startswith(above):
                return home
    return None


def own_homes() -> Iterator[str]:
    """Yield the homes of this process's user, from HOME and from the account."""
    home = os.path.expanduser("~")  # noqa: PTH111 - never raises
    if home != "/":  # the value for a uid without an account in a container
        yield home
    yield from _look_up_homes(str(os.geteuid()))


def _resolve(path: str) -> str:
    try:
        return os.path.realpath(path)
    except OSError:
        return path


def _find_owners(path: str) -> Iterator[str]:
    """Yield the uids that own ``path`` and the folders directly in it.

    Root and this user are left out, because their homes are known.
    """
    found = {0, os.geteuid()}
    with suppress(OSError), os.scandir(path) as entries:
        for uid in _read_owners(path, entries):
            if uid not in found:
                found.add(uid)
                yield str(uid)
            if len(found) >= MAX_OWNERS:
                return


def _read_owners(path: str, entries: Iterable[os.DirEntry[str]]) -> Iterator[int]:
    yield Path(path).stat().st_uid
    folders = 0
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield entry.stat(follow_symlinks=False).st_uid
            folders += 1
            if folders >= MAX_FOLDERS:
                return


def _look_up_homes(*uids: str) -> frozenset[str]:
    """Return the homes of the accounts ``uids``, or without ``uids`` of all listed accounts.

    Directory services often do not list their accounts, so those have to be looked up by uid.
    """
    now = time.monotonic()
    for key, (until, _) in list(_cache.items()):
        if until < now:
            _cache.pop(key, None)
    cached = _cache.get(uids)
    if cached is None:
        homes = frozenset(_parse_homes(_read_accounts(uids)))
        cached = _cache[uids] = now + KEEP_SECONDS, homes
    return cached[1]


def _parse_homes(accounts: str) -> Iterator[str]:
    for line in accounts.splitlines():
        fields = line.split(":")
        if len(fields) >= 6 and fields[5].startswith("/"):
            home = "/" + posixpath.normpath(fields[5]).lstrip("/")
            if home != "/" and not f"{home}/".startswith(SYSTEM):
                yield home


def _read_accounts(uids: tuple[str, ...]) -> str:
    """Return lines of getent in the format of /etc/passwd; without getent, that file's content."""
    for program in PROGRAMS:
        with suppress(OSError):
            return _run([program, "passwd", *uids])
    with suppress(OSError), Path("/etc/passwd").open("rb") as file:
        return file.read(MAX_BYTES).decode(errors="surrogateescape")
    return ""


def _run(argv: list[str]) -> str:
    """Return what a program prints within MAX_SECONDS.

    :raises OSError: when it cannot be started
    """
    end = time.monotonic() + MAX_SECONDS
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None  # it is a pipe
    printed = bytearray()
    try:
        while len(printed) < MAX_BYTES and (left := end - time.monotonic()) > 0:
            if is_ready(process.stdout.fileno(), left):
                # no timeout: it is ready, or does not block
                data = os.read(process.stdout.fileno(), READ_SIZE)
                if not data:
                    break
                printed += data
        return printed.decode(errors="surrogateescape")
    finally:
        process.kill()
        process.stdout.close()
        with suppress(subprocess.TimeoutExpired):  # it hangs in a system call
            process.wait(MAX_SECONDS)
