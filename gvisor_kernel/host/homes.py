"""Whose home a folder is: no home of any account, nor a folder above one, is anybody's to lend out.

Looks and decides, for whoever runs the server. What is done with the answer stands elsewhere.
Nothing of another's home is touched: it may lie on a file system that does not answer. So homes are
compared as their accounts spell them, and whoever owns something in a folder is asked for by name.
"""

from __future__ import annotations

import os
import posixpath
import select
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

TOP = "/home"
"""What is directly in it counts as a home, with an account or without."""
SYSTEM = ("/bin/", "/boot/", "/dev/", "/etc/", "/lib/", "/proc/", "/sbin/", "/sys/", "/usr/")
"""Where accounts of services have a "home" that is none."""

KEEP_SECONDS = 10.0
MAX_SECONDS = 2.0
"""For the accounts' directory service to answer; what it has not said by then is not known."""
MAX_BYTES = 8 * 1024 * 1024
"""Of that answer: some 100,000 accounts."""
MAX_FOLDERS = 256
"""In a folder, whose owners are asked for."""
MAX_OWNERS = 64
READ_SIZE = 65536
PROGRAMS = ("/usr/bin/getent", "/bin/getent")

_known: dict[tuple[str, ...], tuple[float, frozenset[str]]] = {}
"""What was asked, until when it is known, and the answer. Without a lock: a process may fork."""


def find_home(path: str) -> str | None:
    """The home that ``path`` is, or that is somewhere below it; None if there is none.

    ``path``: absolute, without links. Milliseconds, and at most a few seconds where a directory
    service of accounts does not answer. Raises nothing.
    """
    above = path.rstrip("/") + "/"
    for home in ("/root", TOP, *own_homes()):
        real = _resolve(home)
        if f"{real}/".startswith(above):
            return home
        if home == TOP and posixpath.dirname(path) in (TOP, real):
            return path
    for home in _ask():
        if home == path or (home.startswith(above) and os.path.lexists(home)):
            return home
    owners = list(_find_owners(path))
    if owners:
        for home in _ask(*owners):
            if f"{_resolve(home)}/".startswith(above):
                return home
    return None


def own_homes() -> Iterator[str]:
    """Of the one who runs the server, by environment and by account."""
    home = os.path.expanduser("~")  # noqa: PTH111 - never raises
    if home != "/":  # as a uid without an account has it in a container
        yield home
    yield from _ask(str(os.geteuid()))


def _resolve(path: str) -> str:
    try:
        return os.path.realpath(path)
    except OSError:
        return path


def _find_owners(path: str) -> Iterator[str]:
    """The uids of whom ``path``, and the folders that are directly in it, belong to.

    But for this user's and root's, whose homes are known.
    """
    found = {0, os.geteuid()}
    with suppress(OSError), os.scandir(path) as entries:
        for uid in _uids(path, entries):
            if uid not in found:
                found.add(uid)
                yield str(uid)
            if len(found) >= MAX_OWNERS:
                return


def _uids(path: str, entries: Iterable[os.DirEntry[str]]) -> Iterator[int]:
    yield Path(path).stat().st_uid
    folders = 0
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield entry.stat(follow_symlinks=False).st_uid
            folders += 1
            if folders >= MAX_FOLDERS:
                return


def _ask(*uids: str) -> frozenset[str]:
    """The homes of the accounts that are listed, or of ``uids``: directory services list none."""
    now = time.monotonic()
    for key, (until, _) in list(_known.items()):
        if until < now:
            _known.pop(key, None)
    known = _known.get(uids)
    if known is None:
        homes = frozenset(_find_homes(_read_accounts(uids)))
        known = _known[uids] = now + KEEP_SECONDS, homes
    return known[1]


def _find_homes(accounts: str) -> Iterator[str]:
    for line in accounts.splitlines():
        fields = line.split(":")
        if len(fields) >= 6 and fields[5].startswith("/"):
            home = "/" + posixpath.normpath(fields[5]).lstrip("/")
            if home != "/" and not f"{home}/".startswith(SYSTEM):
                yield home


def _read_accounts(uids: tuple[str, ...]) -> str:
    """Lines as in ``/etc/passwd``, which is also what is read where no program can be asked."""
    for program in PROGRAMS:
        with suppress(OSError):
            return _run([program, "passwd", *uids])
    with suppress(OSError), Path("/etc/passwd").open("rb") as file:
        return file.read(MAX_BYTES).decode(errors="surrogateescape")
    return ""


def _run(argv: list[str]) -> str:
    """What a program prints within MAX_SECONDS. Raises OSError where it cannot be started."""
    end = time.monotonic() + MAX_SECONDS
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None  # it is a pipe
    printed = bytearray()
    waiting = select.poll()
    waiting.register(process.stdout, select.POLLIN)
    try:
        while len(printed) < MAX_BYTES and (left := end - time.monotonic()) > 0:
            if waiting.poll(1000 * left):
                data = os.read(process.stdout.fileno(), READ_SIZE)
                if not data:
                    break
                printed += data
        return printed.decode(errors="surrogateescape")
    finally:
        process.kill()
        process.stdout.close()
        with suppress(subprocess.TimeoutExpired):  # in the kernel, where nothing ends it
            process.wait(MAX_SECONDS)
