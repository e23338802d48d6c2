"""Programs of a release: those in its file that this machine can run.

The file is an archive with runsc, gvisor-bin/ with what runsc starts, and a program for
containerd that is left out; or runsc alone.
"""

from __future__ import annotations

import bz2
import os
import platform
from pathlib import Path
from typing import IO

from gvisor_kernel.archive.tar import CHUNK, Kind, Stream, TarReader, quote_name
from gvisor_kernel.errors import ArchiveError, ReleaseError
from gvisor_kernel.releases.release_store import PROGRAM, SIDECARS

# by path: below this user's store of releases

MACHINES = {"x86_64": 62, "aarch64": 183}
"""Those that gVisor is built for, by the number that the head of their programs has."""
MAX_FILE = 512 * 1024 * 1024
"""Bytes of a file that is fetched (166 MB), and of a program in it."""
MAX_UNPACKED = 4 * MAX_FILE
MAX_ENTRIES = 100
"""Of an archive, which has 8."""


def find_machine() -> str:
    """Return the name of this machine in the bucket.

    :raises ReleaseError: when there is no gVisor for it
    """
    machine = platform.machine()
    if machine not in MACHINES:
        raise ReleaseError(f"There is no gVisor for machines of the kind {machine}.")
    return machine


def unpack(file: Path, draft: Path) -> None:
    """Write the programs in ``file`` into the folder ``draft``. Takes seconds.

    :raises ReleaseError: when it has none, or those of another machine
    :raises OSError: when it cannot be read or written
    """
    with file.open("rb") as raw:
        is_archive = raw.read(3) == b"BZh"
        raw.seek(0)
        if not is_archive:
            _write(draft / PROGRAM, raw)
            return
        try:
            with bz2.open(raw) as stream:
                _unpack(stream, draft)
        except (ArchiveError, EOFError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            why = f"The archive with the release cannot be unpacked: {error}."
            raise ReleaseError(why) from error


def _unpack(stream: IO[bytes], draft: Path) -> None:
    reader = TarReader(stream)
    for number, entry in enumerate(reader):
        if number > MAX_ENTRIES or reader.position > MAX_UNPACKED:
            raise ArchiveError("it has too many files")
        name = quote_name(entry.name)
        if entry.size > MAX_FILE:  # also if it is only read over: a bomb takes hours for that
            raise ArchiveError(f"{name} is too large")
        if entry.kind is Kind.DIRECTORY or entry.parts[0] not in (PROGRAM, SIDECARS):
            continue
        place, depth = draft.joinpath(*entry.parts), 1 if entry.parts[0] == PROGRAM else 2
        if entry.kind is not Kind.FILE or len(entry.parts) != depth:
            raise ArchiveError(f"{name} is no program")
        if place.exists():
            raise ArchiveError(f"it has {name} twice")
        place.parent.mkdir(exist_ok=True)
        place.parent.chmod(0o755)
        _write(place, reader)
    if not (draft / PROGRAM).exists():
        raise ArchiveError("it has no runsc")


def _write(path: Path, source: Stream) -> None:
    """Write a program that this machine can run.

    :raises ReleaseError: when it is none
    """
    head = source.read(CHUNK)
    machine = int.from_bytes(head[18:20], "little")
    if len(head) < 20 or head[:6] != b"\x7fELF\x02\x01" or head[16] not in (2, 3):
        raise ReleaseError(
            f"{path.name} is no program: it begins with {head[:40].decode('ascii', 'replace')!r}.",
            "take a gvisor.tar.bz2, or a runsc, of gVisor's releases.",
        )
    if machine != MACHINES[find_machine()]:
        names = {number: name for name, number in MACHINES.items()}
        raise ReleaseError(
            f"{path.name} is a program for {names.get(machine, 'another kind of machine')}, and"
            f" this one is {find_machine()}."
        )
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:  # no other user can open it to write
        while head:
            file.write(head)
            head = source.read(CHUNK)
        os.fchmod(file.fileno(), 0o555)  # runsc starts itself as nobody, whatever the umask is
