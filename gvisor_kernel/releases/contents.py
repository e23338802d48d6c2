"""Programs of a release: those in its file that this machine can run.

The file is an archive with runsc, gvisor-bin/ with what runsc starts, and a program for
containerd that is left out; or runsc alone.
"""

from __future__ import annotations

import bz2
import os
import platform
from pathlib import Path
from typing import BinaryIO

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
        if is_archive:
            _unpack(raw, draft)
        else:
            _write(draft / PROGRAM, raw)


def _unpack(raw: BinaryIO, draft: Path) -> None:
    try:
        with bz2.open(raw) as stream:
            reader = TarReader(stream)
            for number, entry in enumerate(reader):
                if number > MAX_ENTRIES or reader.position > MAX_UNPACKED:
                    raise ArchiveError("it has too many files")
                place = draft.joinpath(*entry.parts)
                if entry.kind is Kind.DIRECTORY or entry.parts[0] not in (PROGRAM, SIDECARS):
                    continue
                if entry.kind is not Kind.FILE or place.parent not in (draft, draft / SIDECARS):
                    raise ArchiveError(f"{quote_name(entry.name)} is no program")
                if entry.size > MAX_FILE:
                    raise ArchiveError(f"{quote_name(entry.name)} is too large")
                if place.exists():
                    raise ArchiveError(f"it has {quote_name(entry.name)} twice")
                place.parent.mkdir(exist_ok=True)
                place.parent.chmod(0o755)
                _write(place, reader)
    except (ArchiveError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ReleaseError(f"The archive with the release cannot be unpacked: {error}.") from error
    if not (draft / PROGRAM).exists():
        raise ReleaseError("The archive has no runsc.")


def _write(path: Path, source: Stream) -> None:
    """Write a program that this machine can run.

    :raises ReleaseError: when it is none
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW)
    with os.fdopen(fd, "wb") as file:
        os.fchmod(fd, 0o555)  # runsc starts itself as nobody, whatever the umask is
        data = source.read(CHUNK)
        machine = int.from_bytes(data[18:20], "little")
        if len(data) < 20 or data[:6] != b"\x7fELF\x02\x01" or data[16] not in (2, 3):
            raise ReleaseError(f"{path.name} is no program: it begins with {data[:40]!r}.")
        if machine != MACHINES[find_machine()]:
            names = {number: name for name, number in MACHINES.items()}
            raise ReleaseError(
                f"{path.name} is a program for {names.get(machine, 'another kind of machine')}, and"
                f" this one is {find_machine()}."
            )
        while data:
            file.write(data)
            data = source.read(CHUNK)
