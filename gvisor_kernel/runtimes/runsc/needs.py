"""The needs of a kernel: all that a machine must have so that it goes on there from its image.

Beside its image there is a file with the digests of what it has mapped: it maps that again by its
path, and half of another version would end it hours later. All functions block.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gvisor_kernel.config.validators import GIB
from gvisor_kernel.errors import RuntimeMissing, SnapshotError
from gvisor_kernel.host.private_directories import read_file
from gvisor_kernel.host.processor import read_processor
from gvisor_kernel.runtimes.runsc.command_line import find_runsc
from gvisor_kernel.runtimes.runsc.kept_programs import find_files
from gvisor_kernel.runtimes.state.kept_packages import Packages, list_installed
from gvisor_kernel.runtimes.state.saved import NEEDS
from gvisor_kernel.runtimes.state.shown_files import Stamps
from gvisor_kernel.shown_text import printable_name
from gvisor_kernel.typed_json import read_json

MAX_NEEDS = 1024 * 1024
MAX_READ = 16 * GIB
"""Bytes of programs and libraries that are read for one kernel."""
MAX_NAMED = 4


@dataclass(frozen=True)
class Needs:
    """``program``: the runsc that has saved the kernel, by its name there, and ``runsc``: its
    digest. ``cpu``: as ``read_processor`` gives it. ``files``: digests of programs and libraries.
    ``packages``: what is installed in folders of packages."""

    program: str
    version: str
    runsc: str
    cpu: tuple[str, ...]
    files: dict[str, str]
    packages: dict[str, tuple[str, ...]]


def find_needs(program: str, files: Stamps, packages: Packages) -> Needs:
    """Return the needs of a kernel of this machine. ``program``: its runsc, ``Runsc.program``.

    :raises SnapshotError: when something of it cannot be read
    """
    own, runsc = find_files(program), find_runsc(program)
    digests = _digest_all([*(path for path in files if path not in own), runsc.executable])
    used = digests.pop(runsc.executable)
    names = {folder: tuple(sorted(found)) for folder, found in packages.items()}
    return Needs(program, runsc.version, used, read_processor(), digests, names)


def read_needs(text: bytes) -> Needs:
    """:raises SnapshotError: when they cannot be read"""
    try:
        return read_json(text, Needs, MAX_NEEDS)
    except ValueError as error:
        raise SnapshotError("What the kernel needs cannot be read.") from error


def check_image(image: Path, choice: str) -> str:
    """As ``check_needs``, for the folder of an image."""
    try:
        return check_needs(read_needs(read_file(image / NEEDS, MAX_NEEDS)), choice)
    except OSError as error:
        raise SnapshotError(f"What the kernel needs cannot be read in {image}.") from error


def check_needs(needs: Needs, choice: str = "") -> str:
    """Check that this machine has all of it; return its runsc for the kernel, ``Runsc.program``.

    ``choice``: the setting ``runsc``.

    :raises SnapshotError: when it lacks something, which is named
    """
    lacks = sorted(set(needs.cpu) - set(read_processor()))
    if lacks:
        raise SnapshotError(
            f"The CPU of this machine lacks what the kernel may use: {_name(lacks)}.",
            "choose a machine with the same CPU, or run the notebook again there.",
        )
    for name in (needs.program, choice):
        with suppress(RuntimeMissing, OSError):
            runsc = find_runsc(name)
            if digest_file(runsc.executable) == needs.runsc:
                break
    else:
        raise SnapshotError(
            f"This machine has not the runsc that saved the kernel ({needs.version}), and only that"
            " one restores it.",
            "install that release there: gvisor-kernel runsc install.",
        )
    found = _digest_all(path for path in needs.files if Path(path).is_file())
    changed = [path for path, digest in needs.files.items() if found.get(path) != digest]
    for folder, names in needs.packages.items():
        changed += sorted(set(names) - set(list_installed(folder)))
    if changed:
        raise SnapshotError(
            f"This machine has not what the kernel uses, or another version: {_name(changed)}.",
            "install the same there, at the same paths, or use a file system that both share.",
        )
    return runsc.program


def _name(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return printable_name(", ".join(names[:MAX_NAMED])) + more


def _digest_all(paths: Iterable[str]) -> dict[str, str]:
    """:raises SnapshotError: when they cannot be read, or are too large"""
    digests, left = dict[str, str](), MAX_READ
    for path in paths:
        try:
            left -= Path(path).stat().st_size
            if left < 0:
                raise SnapshotError(f"The kernel has libraries of more than {MAX_READ} bytes open.")
            digests[path] = digest_file(path)
        except OSError as error:
            raise SnapshotError(f"{path} cannot be read: {error.strerror}.") from error
    return digests


def digest_file(path: str) -> str:
    """Return the SHA-256 of a regular file.

    :raises OSError: when it is none, or cannot be read
    """
    # by path: what a kernel has mapped is looked for by its path; only read
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise FileNotFoundError(path)
        return hashlib.file_digest(file, "sha256").hexdigest()
