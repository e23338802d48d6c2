"""Two releases of runsc: the one of this machine, and the same with another date as its version."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from gvisor_kernel.releases import release_store
from gvisor_kernel.releases.release_store import PROGRAM, SIDECARS, Release
from gvisor_kernel.runtimes.runsc.command_line import find_runsc


@dataclass(frozen=True)
class Program:
    """A runsc in a folder of its own, and what it prints as its version."""

    path: Path
    version: str

    @property
    def name(self) -> str:
        return release_store.release_name(self.version)


def make_programs(folder: Path, years: int = 1) -> tuple[Program, Program]:
    """Return the runsc of this machine, copied, and a release that is later by ``years``."""
    found = find_runsc()
    day = re.search(r"20\d\d(?=\d{4})", found.version)
    assert day is not None, found.version
    other = str(int(day[0]) + years)
    programs = []
    for number, year in enumerate((day[0], other)):
        place = folder / str(number)
        place.mkdir()
        beside = Path(found.path).parent / SIDECARS
        if beside.is_dir():
            shutil.copytree(beside, place / SIDECARS)
        text = found.version.replace(day[0], year, 1)
        content = Path(found.path).read_bytes()
        content = content.replace(found.version.encode(), text.encode())
        (place / PROGRAM).write_bytes(content)
        (place / PROGRAM).chmod(0o755)
        said = subprocess.run([place / PROGRAM, "--version"], capture_output=True, text=True)
        assert text in said.stdout
        programs.append(Program(place / PROGRAM, text))
    return programs[0], programs[1]


def install(program: Program) -> Release:
    """Add a release to this user's store, without what an install asks and tries."""
    with release_store.write() as draft:
        copy_files(program, draft)
        digest = hashlib.sha512(program.path.read_bytes()).hexdigest()
        return release_store.publish(draft, program.name, program.version, digest, "a test")


def copy_files(program: Program, folder: Path) -> None:
    shutil.copyfile(program.path, folder / PROGRAM)
    (folder / PROGRAM).chmod(0o755)
    beside = program.path.parent / SIDECARS
    if beside.is_dir():
        shutil.copytree(beside, folder / SIDECARS, dirs_exist_ok=True)


def replace(place: Path, program: Program) -> None:
    """Put another program in the place of one, as a package manager does."""
    new = place.with_suffix(".new")
    shutil.copyfile(program.path, new)
    new.chmod(0o755)
    new.replace(place)
