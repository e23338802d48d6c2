"""How covers are found, and where among the mounts they are put."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gvisor_kernel.runtimes.mounts import covers
from gvisor_kernel.runtimes.mounts import host_python as worlds
from gvisor_kernel.runtimes.mounts.covers import (
    Cover,
    add_covers,
    find_jupyter_covers,
    find_repositories,
    hides,
    make_mount_points,
)
from gvisor_kernel.runtimes.mounts.host_python import find_host_python
from gvisor_kernel.spec.layout import UPLOADS, Bind, Tmpfs


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository as in a container image: with its Python environment inside."""
    path = Path(os.path.realpath(tmp_path)) / "src" / "app"
    (path / "mine").mkdir(parents=True)
    (path / "mine" / "__init__.py").touch()
    (path / "pyproject.toml").touch()
    (path / "one.py").touch()
    return path


def test_environment_inside_a_repository_stays_visible(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where it is shown as part of ``/usr``, and not named itself."""
    environment = project / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "mine.pth").write_text(f"{project}\n")
    monkeypatch.setattr(worlds, "_show_prefix", lambda prefix: iter(()))
    (cover,) = find_host_python(str(environment / "bin" / "python")).covers
    assert cover.path == str(project)
    assert set(cover.kept) == {str(project / name) for name in (".venv", "mine", "one.py")}


def test_paths_inside_a_kept_path_are_not_listed_again(project: Path) -> None:
    shown = [project / name for name in ("mine", "mine/__init__.py", "mine-more", "")]
    (cover,) = find_repositories([str(project)], map(str, shown[:3]))
    assert cover.kept == (str(shown[0]), str(shown[2]))
    # Here the repository is a package itself.
    assert find_repositories([str(project)], map(str, shown)) == ()
    assert find_repositories([str(project)], ["/elsewhere"]) == ()


def test_covers_are_put_at_every_mount_that_shows_them(project: Path, tmp_path: Path) -> None:
    source, places = str(project.parent), tmp_path / "places"
    mounts = (
        Bind(source, "/mnt/data", read_only=False, foreign=True),
        Bind(source, UPLOADS),
        Bind(str(project), "/else"),
        Tmpfs("/mnt/tmp", 1),
    )
    kept = (f"{project}/mine", f"{project}/one.py", f"{project}/gone")
    made = list(add_covers(mounts, [Cover(str(project), kept)], "/empty", places))
    targets = [
        place + name for place in ("/mnt/data", UPLOADS) for name in ("", "/mine", "/one.py")
    ]
    assert [bind.target.replace("/app", "") for bind in made] == targets
    assert [bind.read_only for bind in made] == [True, False, False, True, True, True]
    make_mount_points([*mounts, *made], places)
    for cover in (made[0], made[3]):
        assert sorted(path.name for path in Path(cover.source).iterdir()) == ["mine", "one.py"]
        assert Path(cover.source, "mine").is_dir()
        assert Path(cover.source, "one.py").is_file()


def test_cover_without_kept_paths_is_the_empty_directory(project: Path, tmp_path: Path) -> None:
    """One that only packages have written to is not covered in uploads."""
    mounts = (Bind(str(project), "/mnt/data"), Bind(str(project), UPLOADS))
    covers = [Cover(f"{project}/mine", settled=True), Cover(f"{project}/gone")]
    made = list(add_covers(mounts, covers, "/empty", tmp_path / "places"))
    assert made == [Bind("/empty", "/mnt/data/mine", foreign=True)]
    make_mount_points([*mounts, *made], tmp_path / "places")
    assert not (tmp_path / "places").exists()


def test_cover_is_put_over_the_innermost_mount(project: Path, tmp_path: Path) -> None:
    """It is not put over an outer mount that shows the same directory."""
    mounts = (Bind(str(project.parent), "/usr"), Bind(str(project), "/usr/app"))
    made = list(add_covers(mounts, [Cover(f"{project}/mine")], "/empty", tmp_path))
    assert made == [Bind("/empty", "/usr/app/mine", foreign=True)]


def test_settings_of_an_environment_are_covered_and_nothing_that_it_needs(project: Path) -> None:
    """Not an environment in a hidden folder of another one. What only tools and packages have
    written is shown in uploads, and keeps no kernel from its snapshot."""
    outer, inner = project / "env", project / "env" / ".venvs" / "inner"
    usual = ("bin/python", ".gitignore", ".lock", ".tool", "share/jupyter/lab/themes/x")
    for name in usual:
        for prefix in (outer, inner):
            (prefix / name).parent.mkdir(parents=True, exist_ok=True)
            (prefix / name).touch()
    (outer / "share/jupyter/lab/settings").mkdir()
    (outer / ".python").symlink_to("bin/python")
    prefixes = list(map(str, (outer, inner)))

    def find() -> set[str]:
        covers = [c for c in find_jupyter_covers(prefixes) if Path(c.path).is_relative_to(project)]
        return {str(Path(c.path).relative_to(outer)) for c in covers if Path(c.path).exists()}

    expected = {".tool", ".venvs/inner/.tool", "share/jupyter/lab/settings"}
    assert find() == expected
    assert not hides(find_jupyter_covers(prefixes), str(project))
    for name in ("pip.conf", ".env", "conda-meta/state", "etc/conda/activate.d/x.sh"):
        for prefix in (inner, outer / "envs" / "other"):
            (prefix / name).parent.mkdir(parents=True, exist_ok=True)
            (prefix / name).touch()
            assert hides(find_jupyter_covers(prefixes), str(project))
    more = ("pip.conf", ".env", "conda-meta/state", "etc/conda")
    expected |= {f"{place}/{name}" for place in (".venvs/inner", "envs/other") for name in more}
    assert find() == expected


def test_settings_that_a_person_adds_are_covered_outside_the_distributions_prefix(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, own = project / "usr", project / "env"
    names = ("etc/pip.conf", "etc/aws/config", "lib/R/etc/Renviron.site", "bin/postactivate")
    kept = ("bin/activate", "etc/profile.d/conda.sh", "lib/R/etc/Renviron")
    for prefix in (system, own):
        for name in (*names, *kept):
            (prefix / name).parent.mkdir(parents=True, exist_ok=True)
            (prefix / name).touch()
    monkeypatch.setattr(covers, "SYSTEM_PREFIXES", (str(system),))
    found = (Path(cover.path) for cover in find_jupyter_covers([str(own)]))
    inside = {str(path.relative_to(project)) for path in found if path.is_relative_to(project)}
    assert inside == {f"env/{name}" for name in (names[0], "etc/aws", *names[2:])} | {
        f"{name}/etc/jupyter" for name in ("env", "usr")
    }
