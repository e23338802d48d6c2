"""The user's folder of skills: shipped, installed and removed skills."""

from __future__ import annotations

import json
import stat
import threading
from pathlib import Path

import pytest

from gvisor_kernel.cli.main import main
from gvisor_kernel.errors import SkillError
from gvisor_kernel.skills import (
    SkillStore,
    find_shipped,
    pack_skill,
    prepare_skills,
    shipped_skills,
    skill_store,
)
from gvisor_kernel.skills.archive import File
from gvisor_kernel.skills.package import Skill, make_skill

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the skills of a user who has none yet. It does not exist."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data/gvisor-kernel/skills"


def skill(name: str = "a-skill", body: str = "") -> Skill:
    document = f"---\nname: {name}\ndescription: For tests.\n---\n{body}"
    return make_skill(
        {"SKILL.md": File(document.encode()), "scripts/deep/run": File(b"#!/bin/sh\n", True)}
    )


def contents(folder: Path) -> set[str]:
    return {f"{path.parent.name}/{path.name}" for path in folder.glob("[pe]*/*")}


def test_starting_kernel_gets_the_shipped_skills(folder: Path) -> None:
    assert prepare_skills() == folder
    ours = {f"{place}/{name}" for name, (place, _) in shipped_skills().items()}
    assert contents(folder) == ours
    assert {"public/xlsx", "public/pdf", "public/plotting", "examples/skill-creator"} < ours
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    inodes = {path: path.stat().st_ino for path in folder.rglob("*")}
    assert prepare_skills() == folder
    assert {path: path.stat().st_ino for path in folder.rglob("*")} == inodes


def test_skill_is_installed_listed_and_removed(
    folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    package = tmp_path / "a.skill"
    package.write_bytes(pack_skill(skill()))
    assert main(["skills", "install", str(package)]) == 0
    assert "/mnt/skills/public/a-skill" in capsys.readouterr().out
    installed = folder / "public/a-skill"
    assert stat.S_IMODE((installed / "scripts/deep/run").stat().st_mode) == 0o755
    assert stat.S_IMODE((installed / "SKILL.md").stat().st_mode) == 0o644
    assert main(["skills", "list", "--json"]) == 0
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert listed["a-skill"]["shipped"] is False
    assert listed["xlsx"]["shipped"] is True
    assert listed["skill-creator"]["seen_at"] == "/mnt/skills/examples/skill-creator"
    assert main(["skills", "list"]) == 0
    assert "For tests." in capsys.readouterr().out
    package.write_bytes(pack_skill(skill(body="new")))
    assert main(["skills", "install", str(package)]) == 0
    assert capsys.readouterr().out.startswith("Replaced")
    assert (installed / "SKILL.md").read_text().endswith("new")
    assert main(["skills", "install", "--examples", str(package)]) == 1
    assert "remove it first" in capsys.readouterr().err
    assert main(["skills", "remove", "a-skill"]) == 0
    assert not installed.exists()
    assert main(["skills", "remove", "a-skill"]) == 1
    assert main(["skills", "install", "--examples", str(package)]) == 0
    assert (folder / "examples/a-skill/SKILL.md").exists()
    assert [path for path in folder.iterdir() if path.name.startswith(".new")] == []


@pytest.mark.parametrize("name", ["../../x", "/etc", "", ".", "public", "a/b", "x\0"])
def test_remove_refuses_names_of_other_paths(folder: Path, name: str) -> None:
    kept = folder.parent / "x"
    prepare_skills()
    kept.mkdir()
    with pytest.raises(SkillError, match="There is no skill"):
        SkillStore.of_user().remove(name)
    assert kept.is_dir()


def test_removed_or_replaced_shipped_skills_stay_so(folder: Path, capsys: Captured) -> None:
    user = SkillStore.of_user()
    user.refresh()
    user.remove("xlsx")
    user.install(skill("plotting", "mine"))
    prepare_skills()
    assert "public/xlsx" not in contents(folder)
    assert (folder / "public/plotting/SKILL.md").read_text().endswith("mine")
    for name in ("xlsx", "plotting"):
        assert main(["skills", "install", name]) == 0
    prepare_skills()
    assert "public/xlsx" in contents(folder)
    assert not (folder / "public/plotting/SKILL.md").read_text().endswith("mine")


def test_existing_skill_with_a_shipped_name_stays(folder: Path) -> None:
    place = folder / "public/xlsx"
    place.mkdir(parents=True)
    (place / "SKILL.md").write_text("mine")
    prepare_skills()
    assert (place / "SKILL.md").read_text() == "mine"
    assert "public/plotting" in contents(folder)


def test_newer_version_replaces_shipped_skills_older_does_not(folder: Path) -> None:
    old = {name: ("public", skill(name, "old")) for name in ("one", "two")}
    new = {name: ("public", skill(name, "new")) for name in ("two", "three")}

    def refresh(shipped: dict[str, tuple[str, Skill]], version: str) -> None:
        SkillStore(folder, keeps_shipped=True, shipped=lambda: shipped, version=version).refresh()

    refresh(old, "0.1")
    refresh(new, "99.0")
    assert contents(folder) == {"public/two", "public/three"}
    refresh(old, "98.10")
    assert contents(folder) == {"public/two", "public/three"}
    assert (folder / "public/two/SKILL.md").read_text().endswith("new")


@pytest.mark.parametrize("obstacle", ["a file", "a dangling link", "owned by another user"])
def test_unusable_folder_falls_back_to_the_shipped_skills(
    folder: Path, obstacle: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder.parent.mkdir(parents=True)
    if obstacle == "a file":
        folder.touch()
    elif obstacle == "a dangling link":
        folder.symlink_to("/nonexistent/place")
    else:
        folder.mkdir()
        monkeypatch.setattr(skill_store.os, "geteuid", lambda: folder.stat().st_uid + 1)
    assert prepare_skills() == find_shipped()
    assert "Kernels see only the skills that come with gvisor-kernel" in caplog.text


def test_damaged_record_is_rewritten(folder: Path) -> None:
    prepare_skills()
    for text in ("", "[]", '{"version": 1, "skills": {"../x": 3}}', '{"skills": []}'):
        (folder / "shipped.json").write_text(text)
        prepare_skills()
        assert "public/xlsx" in contents(folder)


def test_concurrent_installs_and_starts_succeed(folder: Path) -> None:
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            prepare_skills()
            SkillStore.of_user().install(skill(f"skill-{number % 3}"))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    listed = SkillStore.of_user().list()
    assert [entry.name for entry in listed if entry.problem] == []
    assert {"skill-0", "skill-1", "skill-2", "xlsx"} <= {entry.name for entry in listed}


def test_invalid_skill_is_listed_with_its_problem(folder: Path, capsys: Captured) -> None:
    prepare_skills()
    (folder / "public/broken\x1b[2J").mkdir()
    assert main(["skills", "list"]) == 0
    out = capsys.readouterr().out
    assert "has no SKILL.md" in out
    assert "\x1b" not in out


def test_commands_use_the_folder_of_the_configuration(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    shared = tmp_path / "shared"
    (shared / "public").mkdir(parents=True)
    config = tmp_path / "config"
    config.mkdir()
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(config))
    file = config / "jupyter_server_config.json"
    file.write_text(json.dumps({"GVisorProvisioner": {"skills": str(shared)}}))
    package = tmp_path / "a.skill"
    package.write_bytes(pack_skill(skill()))
    assert main(["skills", "install", str(package)]) == 0
    assert contents(shared) == {"public/a-skill"}
    assert not folder.exists()
    file.write_text(json.dumps({"GVisorProvisioner": {"skills": None}}))
    assert main(["skills", "list"]) == 1
    assert "kernels see none" in capsys.readouterr().err


def test_pack_command_writes_a_valid_package(tmp_path: Path, capsys: Captured) -> None:
    output = tmp_path / "out.skill"
    (tmp_path / "precious").write_text("kept")
    output.symlink_to(tmp_path / "precious")  # a kernel could have created this link
    source = find_shipped() / "public/xlsx"
    assert main(["skills", "pack", str(source), "-o", str(output)]) == 0
    assert (tmp_path / "precious").read_text() == "kept"
    assert main(["skills", "check", str(output)]) == 0
    assert "scripts/write_xlsx.py" in capsys.readouterr().out
    assert main(["skills", "pack", str(source), "-o", str(source / "x.skill")]) == 1
    assert main(["skills", "pack", str(source), "-o", "/nonexistent/x.skill"]) == 1
    assert main(["skills", "check", str(tmp_path / "precious")]) == 1


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            "/nonexistent",
            "/nonexistent cannot be read: No such file or directory.\nWhat to do: give",
        ),
        ("nonexistent", "nonexistent is neither a file nor a skill that comes with gvisor-kernel."),
        ("a" * 300, "is neither a file nor a skill that comes with gvisor-kernel."),
    ],
)
def test_missing_package_is_reported(
    source: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["skills", "install", source]) == 1
    assert words in capsys.readouterr().err
