"""Validation of skills: SKILL.md, allowed files, reproducible packages, links in folders."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

import pytest

from gvisor_kernel.errors import SkillError
from gvisor_kernel.skills import pack_skill, read_folder, read_package
from gvisor_kernel.skills.package import read_front_matter

from ..world import PROJECT

SHIPPED = sorted(path for path in (PROJECT / "skills").glob("*/*") if path.is_dir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    (path / "scripts").mkdir(parents=True)
    (path / "SKILL.md").write_text("---\nname: a-skill\ndescription: For tests.\n---\n# A skill\n")
    (path / "scripts/run.py").write_text("print(1)\n")
    return path


@pytest.mark.parametrize(
    ("text", "description"),
    [
        ("description: Plain: with a colon # and more", "Plain: with a colon # and more"),
        ('description: "Quoted \\"twice\\""', 'Quoted "twice"'),
        ("description: 'It''s quoted'", "It's quoted"),
        ("description: >\n  Goes on\n  below.", "Goes on below."),
        ("description: Goes on\n  below.\n# a comment\n", "Goes on below."),
        ("license: MIT\nmetadata:\n  a: b\n  c: d\ndescription: After others.", "After others."),
    ],
)
def test_front_matter_is_parsed(text: str, description: str) -> None:
    assert read_front_matter(f"---\n{text}\n---\nbody")["description"] == description


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ("# No front matter", "does not begin with a line ---"),
        ("---\nname: a", "no second line ---"),
        ("---\nname: a\n---\n", "has no description"),
        ("---\ndescription: a\n---\n", "has no name"),
        ("---\nname: a\nname: b\ndescription: c\n---\n", "twice"),
        ("---\nname a\n---\n", "not 'key: text'"),
        ("---\nname: ../../etc\ndescription: c\n---\n", "the skill has the name"),
        ("---\nname: A Skill\ndescription: c\n---\n", "the skill has the name"),
        (f"---\nname: {'a' * 65}\ndescription: c\n---\n", "the skill has the name"),
        ("---\nname: a\ndescription: \x1b[2J\n---\n", "no control characters"),
        (f"---\nname: a\ndescription: {'c' * 1025}\n---\n", "1025 characters"),
        ("x" * 300_000, "more than 262144"),
    ],
)
def test_invalid_document_is_refused(folder: Path, document: str, reason: str) -> None:
    (folder / "SKILL.md").write_text(document)
    with pytest.raises(SkillError, match=reason):
        read_folder(folder)


def test_document_that_is_not_utf8_is_refused(folder: Path) -> None:
    (folder / "SKILL.md").write_bytes(b"\xff\xfe")
    with pytest.raises(SkillError, match="not UTF-8"):
        read_folder(folder)


def test_same_content_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    first = pack_skill(read_folder(folder))
    other = tmp_path / "copy"
    (other / "scripts").mkdir(parents=True)
    for name in ("scripts/run.py", "SKILL.md"):  # in another order, with other times and modes
        (other / name).write_bytes((folder / name).read_bytes())
        os.utime(other / name, (1, 1))
        (other / name).chmod(0o600)
    (other / "scripts/__pycache__").mkdir()
    (other / ".DS_Store").touch()
    skill = read_folder(other)
    assert pack_skill(skill) == first
    assert skill.left_out == (".DS_Store", "scripts/__pycache__")
    (other / "scripts/run.py").chmod(0o700)
    assert pack_skill(read_folder(other)) != first


def test_package_has_the_files_of_its_folder(folder: Path, tmp_path: Path) -> None:
    skill = read_folder(folder)
    package = tmp_path / "a.skill"
    package.write_bytes(pack_skill(skill))
    assert read_package(package).files == skill.files


@pytest.mark.parametrize("trap", ["link", "linked folder", "pipe", "the folder is a link"])
def test_folder_with_links_or_pipes_is_refused(folder: Path, tmp_path: Path, trap: str) -> None:
    """A kernel could write such a folder to outputs."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("secret")
    if trap == "link":
        (folder / "scripts/key").symlink_to(secret / "key")
    elif trap == "linked folder":
        (folder / "reference").symlink_to(secret)
    elif trap == "pipe":
        os.mkfifo(folder / "scripts/pipe")
    else:
        (tmp_path / "link").symlink_to(folder)
        folder = tmp_path / "link"
    with pytest.raises(SkillError, match=r"not a regular file|cannot be read: Not a directory"):
        read_folder(folder)


def test_package_must_be_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero"), tmp_path / "missing"):
        with pytest.raises(SkillError, match=r"not a regular file|cannot be read"):
            read_package(path)


def test_image_python_has_the_packages_of_the_shipped_skills() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    wanted = {line.partition(">=")[0] for line in project["optional-dependencies"]["skills"]}
    assert wanted <= set((PROJECT / "images/python/Dockerfile").read_text().split())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_skills_are_valid(path: Path) -> None:
    skill = read_folder(path)
    assert skill.name == path.name
    assert "Use " in skill.description, "a description says when to use it"
    assert "LICENSE.txt" in skill.files
    assert read_folder(path).digest == skill.digest


def test_the_documentation_names_each_shipped_skill() -> None:
    text = (PROJECT / "docs/skills.md").read_text()
    named = re.findall(r"^\| `((?:public|examples)/[a-z-]+)` \|", text, re.MULTILINE)
    assert sorted(named) == sorted(f"{path.parent.name}/{path.name}" for path in SHIPPED)
    assert len([name for name in named if name.startswith("examples/")]) == 9
