"""Reads and packs a skill: SKILL.md with its front matter, and the other files that are allowed.

A skill is read as a whole, from a folder or from a package, before it is used. ``pack_skill`` makes
the same bytes from the same content on every machine: the files are sorted, have no dates, and are
not compressed, because compressors differ.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gvisor_kernel.errors import SkillError
from gvisor_kernel.host.descriptors import closing_fd
from gvisor_kernel.skills.archive import (
    MAX_ENTRIES,
    MAX_PACKED,
    File,
    check_names,
    read_archive,
    show,
)

# by path: a path that a person has given on the command line; no link below it is followed

SUFFIX = ".skill"
DOCUMENT = "SKILL.md"
ROOT_FILES = (DOCUMENT, "LICENSE.txt")
ROOT_FOLDERS = ("scripts", "reference")
MAX_DOCUMENT = 256 * 1024
"""Bytes of SKILL.md."""
MAX_DESCRIPTION = 1024
"""Characters of the description."""
NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
MAX_NAME = 64
LEFT_OUT = ("__pycache__",)
"""Left out of a package, like all names that begin with a dot: files that programs leave behind."""

HINT = "see docs/skills.md for what a skill may contain."
PACKAGE_HINT = (
    "give a package that you can read, such as NAME.skill; gvisor-kernel skills pack makes one."
)


@dataclass(frozen=True)
class Skill:
    """A valid skill. ``left_out`` are the names in its folder that are not part of it."""

    name: str
    description: str
    files: Mapping[str, File] = field(repr=False)
    left_out: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(len(file.content) for file in self.files.values())

    @property
    def digest(self) -> str:
        """SHA-256 of its package, in hexadecimal digits."""
        return hashlib.sha256(pack_skill(self)).hexdigest()


def read_package(path: Path) -> Skill:
    """Read the skill in a ``.skill`` file.

    :raises SkillError: when the file cannot be read or is not a valid skill, with the first reason
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise SkillError(f"{path} is not a regular file.", PACKAGE_HINT)
            data = file.read(MAX_PACKED + 1)
    except OSError as error:
        raise SkillError(f"{path} cannot be read: {error.strerror}.", PACKAGE_HINT) from error
    try:
        return make_skill(read_archive(data))
    except SkillError as error:
        raise SkillError(f"{path} is not a valid skill: {error.fact}.", HINT) from error


def read_folder(path: Path) -> Skill:
    """Read the skill in a folder. Follows no links, even if the folder changes meanwhile.

    :raises SkillError: when the folder cannot be read or is not a valid skill
    """
    files: dict[str, File] = {}
    left_out: list[str] = []
    try:
        for name, content in _walk(path, left_out):
            files[name] = content
            if len(files) > MAX_ENTRIES:
                raise SkillError(f"the folder has more than {MAX_ENTRIES} files")
            if sum(len(file.content) for file in files.values()) > MAX_PACKED:
                raise SkillError(f"the files have more than {MAX_PACKED} bytes together")
        check_names(sorted(files))
        return make_skill(files, tuple(sorted(left_out)))
    except OSError as error:
        raise SkillError(
            f"{path} cannot be read: {error.strerror}.",
            "give a folder that you can read, and that contains SKILL.md.",
        ) from error
    except SkillError as error:
        raise SkillError(f"{path} is not a valid skill: {error.fact}.", HINT) from error


def _walk(root: Path, left_out: list[str]) -> Iterator[tuple[str, File]]:
    # A kernel may be able to write the folder, so every file is opened by descriptor without links.
    top = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with closing_fd(top):
        for folder, folders, names, descriptor in os.fwalk(".", onerror=_raise, dir_fd=top):
            prefix = "" if folder == "." else folder.removeprefix("./") + "/"
            for found in (folders, names):
                left_out += [prefix + name for name in found if _is_left_out(name)]
                found[:] = [name for name in found if not _is_left_out(name)]
            for name in (*folders, *names):
                kind = stat.S_IFMT(os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode)
                if kind not in (stat.S_IFREG, stat.S_IFDIR):
                    raise SkillError(f"{show(prefix + name)} is a link or not a regular file")
            for name in names:
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                with open(os.open(name, flags, dir_fd=descriptor), "rb") as file:
                    mode = os.fstat(file.fileno()).st_mode
                    if not stat.S_ISREG(mode):
                        raise SkillError(f"{show(prefix + name)} is not a regular file")
                    yield prefix + name, File(file.read(MAX_PACKED + 1), bool(mode & 0o100))


def _is_left_out(name: str) -> bool:
    return name.startswith(".") or name in LEFT_OUT


def _raise(error: OSError) -> None:
    raise error


def make_skill(files: Mapping[str, File], left_out: tuple[str, ...] = ()) -> Skill:
    """Make a skill of these files.

    :raises SkillError: when they are not a valid skill; ``fact`` is a clause without a full stop
    """
    if DOCUMENT not in files:
        raise SkillError(f"the skill has no {DOCUMENT}")
    for name in files:
        folder, slash, _ = name.partition("/")
        if not (folder in ROOT_FOLDERS if slash else name in ROOT_FILES):
            raise SkillError(
                f"{show(name)} is not allowed in a skill; allowed are {', '.join(ROOT_FILES)},"
                f" {' and '.join(f'{folder}/' for folder in ROOT_FOLDERS)}"
            )
    document = files[DOCUMENT].content
    if len(document) > MAX_DOCUMENT:
        raise SkillError(f"{DOCUMENT} has {len(document)} bytes, more than {MAX_DOCUMENT}")
    try:
        text = document.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SkillError(f"{DOCUMENT} is not UTF-8") from None
    front = read_front_matter(text)
    for key in ("name", "description"):
        if not front.get(key):
            raise SkillError(f"the front matter of {DOCUMENT} has no {key}")
    name, description = front["name"], front["description"]
    if len(name) > MAX_NAME or not NAME.fullmatch(name):
        raise SkillError(
            f"the skill has the name {show(name)}; use at most {MAX_NAME} lower-case letters,"
            " digits and single hyphens between them"
        )
    if len(description) > MAX_DESCRIPTION or not description.isprintable():
        raise SkillError(
            f"the description has {len(description)} characters; use at most {MAX_DESCRIPTION},"
            " and no control characters"
        )
    return Skill(name, description, files, left_out)


def read_front_matter(text: str) -> dict[str, str]:
    """Parse the keys and texts between the two lines ``---`` at the top of SKILL.md.

    This is the subset of YAML that such files use: ``key: text``, quoted or not, and indented lines
    that continue a text. Nested values are read as text.

    :raises SkillError: when the front matter is missing or malformed
    """
    lines = text.splitlines()
    if not lines or lines[0].rstrip() != "---":
        raise SkillError(f"{DOCUMENT} does not begin with a line ---")
    try:
        end = next(i for i, line in enumerate(lines[1:], 1) if line.rstrip() == "---")
    except StopIteration:
        raise SkillError(f"the front matter of {DOCUMENT} has no second line ---") from None
    found: dict[str, list[str]] = {}
    key = ""
    for line in lines[1:end]:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if line[0] in " \t-" and key:
            found[key].append(line.strip())
            continue
        key, colon, value = line.partition(":")
        key = key.strip()
        if not colon or not key:
            raise SkillError(f"a line in the front matter of {DOCUMENT} is not 'key: text'")
        if key in found:
            raise SkillError(f"the front matter of {DOCUMENT} has {show(key)} twice")
        found[key] = [value.strip()]
    return {key: _unquote(parts) for key, parts in found.items()}


def _unquote(parts: list[str]) -> str:
    if parts[0] in (">", "|", ">-", "|-", ">+", "|+"):
        parts = parts[1:]
    text = " ".join(part for part in parts if part)
    if len(text) >= 2 and text[0] == text[-1] == '"':
        return re.sub(r'\\(["\\])', r"\1", text[1:-1])
    if len(text) >= 2 and text[0] == text[-1] == "'":
        return text[1:-1].replace("''", "'")
    return text


def pack_skill(skill: Skill) -> bytes:
    """Return the ``.skill`` file of a skill. The same content gives the same bytes everywhere."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(skill.files):
            file = skill.files[name]
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system = 3
            info.external_attr = (stat.S_IFREG | (0o755 if file.executable else 0o644)) << 16
            archive.writestr(info, file.content)
    return packed.getvalue()
