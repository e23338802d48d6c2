"""The folder of a user's skills, which every kernel sees read-only at /mnt/skills.

``public`` and ``examples`` in it hold a folder for each skill: those that come with this package,
copied there when a kernel starts, and those that were installed. A name stands for one skill.
``shipped.json`` beside them says which are the package's own, so that a newer version replaces
them, and which of its own the user has replaced or removed, so that it does not.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from platformdirs import user_data_path

from gvisor_kernel import __version__
from gvisor_kernel.errors import SkillError
from gvisor_kernel.host.locks import locked_file
from gvisor_kernel.skills.archive import show
from gvisor_kernel.skills.package import NAME, Skill, read_folder

log = logging.getLogger(__name__)

FOLDERS = ("public", "examples")
RECORD = "shipped.json"
TEMPORARY = ".new-"


@dataclass(frozen=True)
class Installed:
    """A skill in a folder of skills; ``problem`` says why it is none, and is else empty."""

    name: str
    folder: str
    directory: Path
    shipped: bool
    description: str = ""
    problem: str = ""


@dataclass
class _Record:
    """Digests of the package's skills as they were copied; None: the user decided otherwise."""

    version: str = ""
    skills: dict[str, str | None] = field(default_factory=dict)


def default_folder() -> Path:
    """Where this user's skills are, unless the setting ``skills`` names another folder."""
    return user_data_path("gvisor-kernel") / "skills"


def find_shipped() -> Path:
    """The folder of the skills that come with the package. Raises SkillError."""
    package = Path(__file__).parent.parent
    for folder in (package / "skills_data", package.parent / "skills"):
        if all((folder / name).is_dir() for name in FOLDERS):
            return folder
    raise SkillError(
        "This installation of gvisor-kernel has no skills.", "install gvisor-kernel again."
    )


@cache
def shipped_skills() -> dict[str, tuple[str, Skill]]:
    """The package's own skills: the folder and the content of each. Raises SkillError."""
    shipped = find_shipped()
    return {
        directory.name: (name, read_folder(directory))
        for name in FOLDERS
        for directory in sorted((shipped / name).iterdir())
        if directory.is_dir() and NAME.fullmatch(directory.name)
    }


def prepare_skills() -> Path | None:
    """The folder that a starting kernel is shown, with the package's own skills in it.

    Where this user's folder cannot be used, only the package's own are shown, and the log says so.
    Never raises.
    """
    try:
        store = SkillStore.of_user()
        store.refresh()
        return store.folder
    except (SkillError, OSError) as error:
        log.warning("Only the skills of gvisor-kernel itself are shown. %s", error)
    try:
        return find_shipped()
    except SkillError:
        return None


class SkillStore:
    """A folder of skills. ``keeps_shipped``: it is the user's, which has the package's own too.

    Several processes may use one at the same time. All methods raise SkillError.
    """

    def __init__(self, folder: Path, *, keeps_shipped: bool) -> None:
        self.folder = folder
        self.keeps_shipped = keeps_shipped

    @classmethod
    def of_user(cls) -> SkillStore:
        return cls(default_folder(), keeps_shipped=True)

    def list(self) -> list[Installed]:
        """All skills, public ones first, by name; also what lies there and is none."""
        record = self._read_record()
        found = []
        for folder in FOLDERS:
            with contextlib.suppress(OSError):
                for directory in sorted((self.folder / folder).iterdir()):
                    found.append(self._look(directory, record))
        return found

    def _look(self, directory: Path, record: _Record) -> Installed:
        name, folder = directory.name, directory.parent.name
        shipped = record.skills.get(name) is not None
        try:
            skill = read_folder(directory)
            if skill.name != name:
                raise SkillError(f"It says that its name is {skill.name}.")
        except SkillError as error:
            return Installed(name, folder, directory, shipped, problem=error.fact)
        return Installed(name, folder, directory, shipped, skill.description)

    def find(self, name: str) -> Path | None:
        """The folder of a skill, or None. A name that could be a path is none."""
        if not NAME.fullmatch(name):
            return None
        paths = [self.folder / folder / name for folder in FOLDERS]
        return next((path for path in paths if path.is_dir() and not path.is_symlink()), None)

    def install(self, skill: Skill, folder: str = "public") -> bool:
        """Unpack ``skill``; whether one of its name was replaced."""
        with self._changing():
            present = self.find(skill.name)
            if present is not None and present.parent.name != folder:
                raise SkillError(
                    f"There is a skill {skill.name} in {present.parent.name} already.",
                    f"remove it first: gvisor-kernel skills remove {skill.name}",
                )
            self._write(skill, folder)
            if self.keeps_shipped and skill.name in shipped_skills():
                self._note(skill.name, None)
        return present is not None

    def restore(self, name: str) -> None:
        """Put a skill that comes with the package back, in place of what has its name."""
        folder, skill = shipped_skills()[name]
        with self._changing():
            present = self.find(name)
            if present is not None and present.parent.name != folder:
                self._take_away(present)
            self._write(skill, folder)
            self._note(name, skill.digest)

    def remove(self, name: str) -> Path:
        """Take a skill away; one of the package's own stays away. Its folder, which is gone."""
        with self._changing():
            present = self.find(name)
            if present is None:
                raise SkillError(
                    f"There is no skill {show(name)} in {self.folder}.",
                    "see which there are: gvisor-kernel skills list",
                )
            self._take_away(present)
            if self.keeps_shipped and name in shipped_skills():
                self._note(name, None)
        return present

    def refresh(self) -> None:
        """Bring the package's own skills up to this version. A newer version's are left alone."""
        self._check()
        if self._is_fresh(self._read_record()):
            return
        with self._changing():
            record = self._read_record()
            if self._is_fresh(record):
                return
            shipped = shipped_skills()
            for name, (folder, skill) in shipped.items():
                if name not in record.skills and self.find(name) is not None:
                    record.skills[name] = None  # of that name, the user has one already
                elif record.skills.get(name, "") not in (None, skill.digest):
                    self._write(skill, folder)
                    record.skills[name] = skill.digest
            for name in set(record.skills) - set(shipped):
                present = self.find(name)
                if record.skills.pop(name) is not None and present is not None:
                    self._take_away(present)
            self._write_record(_Record(__version__, record.skills))

    @staticmethod
    def _is_fresh(record: _Record) -> bool:
        if _version_key(record.version) > _version_key(__version__):
            return True
        shipped = shipped_skills()
        return record.skills.keys() == shipped.keys() and all(
            record.skills[name] in (None, skill.digest) for name, (_, skill) in shipped.items()
        )

    def _check(self) -> None:
        """Make the folder if need be, and see that it is the user's own."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = self.folder.stat()
        if self.keeps_shipped and status.st_uid != os.geteuid():
            raise SkillError(
                f"The folder {self.folder} belongs to uid {status.st_uid}.",
                "let it be yours, or set XDG_DATA_HOME to another place.",
            )
        if self.keeps_shipped and status.st_mode & 0o077:
            self.folder.chmod(0o700)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Keeps others out meanwhile, and clears away what one that was killed left."""
        try:
            self._check()
            lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with locked_file(lock, fcntl.LOCK_EX):
                for left in self.folder.glob(f"{TEMPORARY}*"):
                    shutil.rmtree(left, ignore_errors=True)
                yield
        except OSError as error:
            raise SkillError(
                f"The folder {self.folder} cannot be changed: {error.strerror}.",
                "see whose it is, and whether the disk is full.",
            ) from error

    def _write(self, skill: Skill, folder: str) -> None:
        """Put ``skill`` in its place in one step, whole or not at all."""
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

    def _take_away(self, directory: Path) -> None:
        with self._temporary() as temporary:
            directory.rename(temporary / "old")

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[Path]:
        """A folder beside the skills, where no kernel sees it."""
        path = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=self.folder))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def _note(self, name: str, digest: str | None) -> None:
        record = self._read_record()
        record.skills[name] = digest
        self._write_record(record)

    def _read_record(self) -> _Record:
        """What was noted; nothing where there is no note that can be read."""
        try:
            content = json.loads((self.folder / RECORD).read_text())
            skills = {
                name: digest
                for name, digest in content["skills"].items()
                if NAME.fullmatch(name) and (digest is None or isinstance(digest, str))
            }
            return _Record(str(content["version"]), skills)
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return _Record()

    def _write_record(self, record: _Record) -> None:
        with self._temporary() as temporary:
            path = temporary / RECORD
            path.write_text(json.dumps({"version": record.version, "skills": record.skills}))
            path.replace(self.folder / RECORD)


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
