"""The folder of a user's skills, which every kernel sees read-only at /mnt/skills.

Its folders ``public`` and ``examples`` contain one folder for each skill: the installed ones, and
those that come with this package, which are copied there when a kernel starts. A name is used only
once in both. ``shipped.json`` records the package's own skills, so that a newer version replaces
them, and those of them that the user has replaced or removed, so that it leaves them alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec

from gvisor_kernel import __version__
from gvisor_kernel.errors import SkillError
from gvisor_kernel.host.locks import locked_file
from gvisor_kernel.host.private_directories import own_data, replace_file
from gvisor_kernel.skills.archive import show
from gvisor_kernel.skills.package import NAME, Skill, read_folder

# by path: the folder of this user's skills, which no kernel can write

log = logging.getLogger(__name__)

FOLDERS = ("public", "examples")
RECORD = "shipped.json"
TEMPORARY = ".new-"


@dataclass(frozen=True)
class Installed:
    """A skill in a folder of skills. ``problem`` says why it is not valid, or is empty."""

    name: str
    folder: str
    directory: Path
    shipped: bool
    description: str = ""
    problem: str = ""


class _Record(msgspec.Struct):
    """Digests of the package's skills as copied; None for one that the user replaced or removed."""

    version: str = ""
    skills: dict[str, str | None] = {}


def default_folder() -> Path:
    """Return this user's folder of skills, which the setting ``skills`` can replace."""
    return own_data() / "skills"


def find_shipped() -> Path:
    """Return the folder of the skills that come with the package.

    :raises SkillError: when the installation has none
    """
    package = Path(__file__).parent.parent
    for folder in (package / "skills_data", package.parent / "skills"):
        if all((folder / name).is_dir() for name in FOLDERS):
            return folder
    raise SkillError(
        "This installation of gvisor-kernel has no skills.", "install gvisor-kernel again."
    )


@cache
def shipped_skills() -> dict[str, tuple[str, Skill]]:
    """Return the package's own skills by name: the folder (``public``, ``examples``) and the skill.

    :raises SkillError: when the installation has none, or one is not valid
    """
    shipped = find_shipped()
    return {
        directory.name: (name, read_folder(directory))
        for name in FOLDERS
        for directory in sorted((shipped / name).iterdir())
        if directory.is_dir() and NAME.fullmatch(directory.name)
    }


def prepare_skills() -> Path | None:
    """Return the folder to mount for a starting kernel, with the package's own skills up to date.

    If this user's folder cannot be used, this is the package's own, and the log says so; None if
    there is none. Does not raise.
    """
    try:
        store = SkillStore.of_user()
        store.refresh()
        return store.folder
    except (SkillError, OSError) as error:
        log.warning("Kernels see only the skills that come with gvisor-kernel. %s", error)
    try:
        return find_shipped()
    except SkillError:
        return None


class SkillStore:
    """A folder of skills. Several processes may use it at the same time.

    With ``keeps_shipped`` it is this user's folder, which also has the package's own skills.

    :raises SkillError: (methods that write) when the folder cannot be changed
    """

    def __init__(
        self,
        folder: Path,
        *,
        keeps_shipped: bool,
        shipped: Callable[[], Mapping[str, tuple[str, Skill]]] = shipped_skills,
        version: str = __version__,
    ) -> None:
        self.folder = folder
        self.keeps_shipped = keeps_shipped
        self._shipped = shipped
        self._version = version

    @classmethod
    def of_user(cls) -> SkillStore:
        """Return the store of this user. Reads and writes nothing yet."""
        return cls(default_folder(), keeps_shipped=True)

    def list(self) -> list[Installed]:
        """Return all skills, public ones first, sorted by name, including invalid ones."""
        record = self._read_record()
        found = []
        for folder in FOLDERS:
            with contextlib.suppress(OSError):
                for directory in sorted((self.folder / folder).iterdir()):
                    found.append(self._read(directory, record))
        return found

    def _read(self, directory: Path, record: _Record) -> Installed:
        name, folder = directory.name, directory.parent.name
        shipped = record.skills.get(name) is not None
        try:
            skill = read_folder(directory)
            if skill.name != name:
                raise SkillError(
                    f"The folder has the name {name}, but SKILL.md the name {skill.name}."
                )
        except SkillError as error:
            return Installed(name, folder, directory, shipped, problem=error.fact)
        return Installed(name, folder, directory, shipped, skill.description)

    def find(self, name: str) -> Path | None:
        """Return the folder of a skill, or None. Refuses names that could be paths."""
        if not NAME.fullmatch(name):
            return None
        paths = [self.folder / folder / name for folder in FOLDERS]
        return next((path for path in paths if path.is_dir() and not path.is_symlink()), None)

    def install(self, skill: Skill, folder: str = "public") -> bool:
        """Install ``skill``. Return whether it replaced one of the same name.

        :raises SkillError: when the other folder has a skill of that name
        """
        with self._locked():
            present = self.find(skill.name)
            if present is not None and present.parent.name != folder:
                raise SkillError(
                    f"The folder {present.parent.name} already has a skill {skill.name}.",
                    f"remove it first: gvisor-kernel skills remove {skill.name}",
                )
            self._write(skill, folder)
            if self.keeps_shipped and skill.name in self._shipped():
                self._record_digest(skill.name, None)
        return present is not None

    def restore(self, name: str) -> None:
        """Restore one of the package's own skills. It replaces the skill of the same name.

        :raises KeyError: when the package has no skill of this name
        """
        folder, skill = self._shipped()[name]
        with self._locked():
            present = self.find(name)
            if present is not None and present.parent.name != folder:
                self._move_away(present)
            self._write(skill, folder)
            self._record_digest(name, skill.digest)

    def remove(self, name: str) -> Path:
        """Remove a skill. Return the path of its folder. One of the package's own stays removed.

        :raises SkillError: when there is no such skill
        """
        with self._locked():
            present = self.find(name)
            if present is None:
                raise SkillError(
                    f"There is no skill {show(name)} in {self.folder}.",
                    "list the skills: gvisor-kernel skills list",
                )
            self._move_away(present)
            if self.keeps_shipped and name in self._shipped():
                self._record_digest(name, None)
        return present

    def refresh(self) -> None:
        """Update the package's own skills to this version. Those of a newer version stay."""
        try:
            self._check_folder()
        except OSError as error:
            raise SkillError(
                f"Could not use {self.folder}: {error.strerror}.",
                "check its owner and mode, or set XDG_DATA_HOME to another place.",
            ) from error
        if self._is_current(self._read_record()):
            return
        with self._locked():
            record = self._read_record()
            if self._is_current(record):
                return
            shipped = self._shipped()
            for name, (folder, skill) in shipped.items():
                if name not in record.skills and self.find(name) is not None:
                    record.skills[name] = None  # the user has one of that name already
                elif record.skills.get(name, "") not in (None, skill.digest):
                    self._write(skill, folder)
                    record.skills[name] = skill.digest
            for name in set(record.skills) - set(shipped):
                present = self.find(name)
                if record.skills.pop(name) is not None and present is not None:
                    self._move_away(present)
            self._write_record(_Record(self._version, record.skills))

    def _is_current(self, record: _Record) -> bool:
        if _version_key(record.version) > _version_key(self._version):
            return True
        shipped = self._shipped()
        return record.skills.keys() == shipped.keys() and all(
            record.skills[name] in (None, skill.digest) for name, (_, skill) in shipped.items()
        )

    def _check_folder(self) -> None:
        """Create the folder if it does not exist, and check that it is private."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = self.folder.stat()
        if self.keeps_shipped and status.st_uid != os.geteuid():
            raise SkillError(
                f"The folder {self.folder} belongs to uid {status.st_uid}.",
                "change its owner, or set XDG_DATA_HOME to another place.",
            )
        if self.keeps_shipped and status.st_mode & 0o077:
            self.folder.chmod(0o700)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Lock the folder, and remove what a killed process has left there."""
        try:
            self._check_folder()
            lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with locked_file(lock, fcntl.LOCK_EX):
                for left in self.folder.glob(f"{TEMPORARY}*"):
                    shutil.rmtree(left, ignore_errors=True)
                yield
        except OSError as error:
            raise SkillError(
                f"The folder {self.folder} cannot be changed: {error.strerror}.",
                "check its owner and mode, and whether the disk is full.",
            ) from error

    def _write(self, skill: Skill, folder: str) -> None:
        """Write ``skill`` to a temporary folder, then put it in its place in one step."""
        with self._temporary() as temporary:
            new = temporary / "new"
            new.mkdir()
            for name, file in skill.files.items():
                path = new / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(file.content)
                path.chmod(0o755 if file.executable else 0o644)
            for path in (new, *(path for path in new.rglob("*") if path.is_dir())):
                path.chmod(0o755)
            for name in FOLDERS:
                (self.folder / name).mkdir(mode=0o755, exist_ok=True)
            target = self.folder / folder / skill.name
            with contextlib.suppress(FileNotFoundError):
                target.rename(temporary / "old")
            new.rename(target)

    def _move_away(self, directory: Path) -> None:
        with self._temporary() as temporary:
            directory.rename(temporary / "old")

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[Path]:
        """Yield a temporary folder beside ``public`` and ``examples``. Kernels do not see it."""
        path = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=self.folder))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def _record_digest(self, name: str, digest: str | None) -> None:
        record = self._read_record()
        record.skills[name] = digest
        self._write_record(record)

    def _read_record(self) -> _Record:
        """Return the record; an empty one if it is missing or damaged."""
        try:
            record = msgspec.json.decode((self.folder / RECORD).read_bytes(), type=_Record)
        except (OSError, ValueError):
            return _Record()
        return _Record(
            record.version, {n: digest for n, digest in record.skills.items() if NAME.fullmatch(n)}
        )

    def _write_record(self, record: _Record) -> None:
        replace_file(self.folder / RECORD, msgspec.json.encode(record), 0o644)


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
