"""The user's folder of skills: what comes with the package, what is installed, what is removed."""

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
    store,
)
from gvisor_kernel.skills.archive import File
from gvisor_kernel.skills.package import Skill, make_skill

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the skills of a user will be, who has none yet."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data/gvisor-kernel/skills"


def skill(name: str = "a-skill", body: str = "") -> Skill:
    document = f"---\nname: {name}\ndescription: For tests.\n---\n{body}"
    return make_skill(
        {"SKILL.md": File(document.encode()), "scripts/deep/run": File(b"#!/bin/sh\n", True)}
    )


def contents(folder: Path) -> set[str]:
    return {f"{path.parent.name}/{path.name}" for path in folder.glob("[pe]*/*")}


def test_a_starting_kernel_is_shown_our_own(folder: Path) -> None:
    assert prepare_skills() == folder
    ours = {f"{place}/{name}" for name, (place, _) in shipped_skills().items()}
    assert contents(folder) == ours
    assert {"public/xlsx", "public/pdf", "public/plotting", "examples/skill-creator"} < ours
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    inodes = {path: path.stat().st_ino for path in folder.rglob("*")}
    assert prepare_skills() == folder
    assert {path: path.stat().st_ino for path in folder.rglob("*")} == inodes


def test_installed_and_removed(folder: Path, tmp_path: Path, capsys: Captured) -> None:
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
def test_only_a_skill_is_removed(folder: Path, name: str) -> None:
    kept = folder.parent / "x"
    prepare_skills()
    kept.mkdir()
    with pytest.raises(SkillError, match="There is no skill"):
        SkillStore.of_user().remove(name)
    assert kept.is_dir()


def test_what_the_user_decided_about_ours_stands(folder: Path, capsys: Captured) -> None:
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


def test_one_that_was_there_before_ours_came_stays(folder: Path) -> None:
    place = folder / "public/xlsx"
    place.mkdir(parents=True)
    (place / "SKILL.md").write_text("mine")
    prepare_skills()
    assert (place / "SKILL.md").read_text() == "mine"
    assert "public/plotting" in contents(folder)


def test_a_new_version_replaces_its_own_and_an_old_one_does_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = {name: ("public", skill(name, "old")) for name in ("one", "two")}
    monkeypatch.setattr(store, "shipped_skills", lambda: shipped)
    prepare_skills()
    new = {name: ("public", skill(name, "new")) for name in ("two", "three")}
    monkeypatch.setattr(store, "shipped_skills", lambda: new)
    monkeypatch.setattr(store, "__version__", "99.0")
    prepare_skills()
    assert contents(folder) == {"public/two", "public/three"}
    monkeypatch.setattr(store, "shipped_skills", lambda: shipped)
    monkeypatch.setattr(store, "__version__", "98.10")
    prepare_skills()
    assert contents(folder) == {"public/two", "public/three"}
    assert (folder / "public/two/SKILL.md").read_text().endswith("new")


@pytest.mark.parametrize("obstacle", ["a file", "a link to nowhere", "another's"])
def test_without_a_usable_folder_our_own_are_shown(
    folder: Path, obstacle: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder.parent.mkdir(parents=True)
    if obstacle == "a file":
        folder.touch()
    elif obstacle == "a link to nowhere":
        folder.symlink_to("/nonexistent/place")
    else:
        folder.mkdir()
        monkeypatch.setattr(store.os, "geteuid", lambda: folder.stat().st_uid + 1)
    assert prepare_skills() == find_shipped()
    assert "Kernels see only the skills that come with gvisor-kernel" in caplog.text


def test_a_damaged_record_is_made_anew(folder: Path) -> None:
    prepare_skills()
    for text in ("", "[]", '{"version": 1, "skills": {"../x": 3}}', '{"skills": []}'):
        (folder / "shipped.json").write_text(text)
        prepare_skills()
        assert "public/xlsx" in contents(folder)


def test_many_at_once_install_and_start(folder: Path) -> None:
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


def test_what_is_none_is_listed_with_its_problem(folder: Path, capsys: Captured) -> None:
    prepare_skills()
    (folder / "public/broken\x1b[2J").mkdir()
    assert main(["skills", "list"]) == 0
    out = capsys.readouterr().out
    assert "has no SKILL.md" in out
    assert "\x1b" not in out


def test_a_folder_that_the_configuration_names(
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


def test_packing_by_the_command(tmp_path: Path, capsys: Captured) -> None:
    output = tmp_path / "out.skill"
    (tmp_path / "precious").write_text("kept")
    output.symlink_to(tmp_path / "precious")  # as a kernel could have left it
    source = find_shipped() / "public/xlsx"
    assert main(["skills", "pack", str(source), "-o", str(output)]) == 0
    assert (tmp_path / "precious").read_text() == "kept"
    assert main(["skills", "check", str(output)]) == 0
    assert "scripts/write_xlsx.py" in capsys.readouterr().out
    assert main(["skills", "pack", str(source), "-o", str(source / "x.skill")]) == 1
    assert main(["skills", "pack", str(source), "-o", "/nonexistent/x.skill"]) == 1
    assert main(["skills", "check", str(tmp_path / "precious")]) == 1
