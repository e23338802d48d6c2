"""Which packages of an editable install are shown, for each way in which backends make one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gvisor_kernel.runtimes.mounts import editable_installs
from gvisor_kernel.runtimes.mounts.editable_installs import find_editables


def make(root: Path, *files: str) -> None:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The folder of installed packages (site-packages)."""
    path = tmp_path / "env" / "lib"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with secrets, and with outputs where a kernel has left a package."""
    path = tmp_path / "repository"
    make(path, ".git/config", ".env", "secrets.json", "outputs/__init__.py", "data/table.csv")
    make(path, "tests/__init__.py", "setup.py", "conftest.py", "notes.ipynb", "node_modules/x.js")
    return path


def install(site: Path, name: str, source: Path, top_level: str | None = None) -> None:
    """Install an editable package as a build backend does that has one folder of sources."""
    (site / f"_{name}.pth").write_text(f"{source}\n")
    info = site / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "RECORD").write_text(f"_{name}.pth,sha256=x,17\n{info.name}/RECORD,,\n")
    url = {"dir_info": {"editable": True}, "url": source.as_uri()}
    (info / "direct_url.json").write_text(json.dumps(url))
    if top_level is not None:
        (info / "top_level.txt").write_text(top_level)


def shown(site: Path, repository: Path) -> list[str]:
    """Return what is shown, by paths relative to the repository."""
    found = [path for entry in find_editables([str(site), "/no/such"]) for path in entry.shown]
    return sorted(os.path.relpath(path, repository) for path in found)


def test_source_folder_shows_its_packages_and_modules(site: Path, repository: Path) -> None:
    make(repository, "src/mine/__init__.py", "src/mine/deep/data.json", "src/more/__init__.so")
    make(repository, "src/single.py", "src/native.cpython-311-x86_64-linux-gnu.so", "src/note.txt")
    make(repository, "src/.env", "src/outputs/__init__.py", "src/data/table.csv")
    make(repository, "src/mine.egg-info/PKG-INFO")
    install(site, "mine", repository / "src")
    native = "src/native.cpython-311-x86_64-linux-gnu.so"
    expected = ["src/mine", "src/mine.egg-info", "src/more", native, "src/single.py"]
    assert shown(site, repository) == expected


def test_repository_on_the_import_path_shows_what_its_metadata_names(
    site: Path, repository: Path
) -> None:
    make(repository, "mine/__init__.py", "other/__init__.py", "one.py", "script.py", "ns/a/m.py")
    install(site, "mine_project", repository, "mine\none\nns\nabsent\n../..\n")
    assert shown(site, repository) == ["mine", "ns", "one.py"]


@pytest.mark.parametrize(
    "table",
    [
        '[tool.hatch.build.targets.wheel]\npackages = ["mine", "./other"]',
        '[tool.poetry]\npackages = [{include = "mine"}, {include = "other/**/*.py"}]',
        '[tool.pdm.build]\nincludes = ["mine", "other/"]',
        '[tool.uv.build-backend]\nmodule-name = ["mine", "other"]',
        '[tool.maturin]\nmodule-name = "mine._native"\n[tool.flit.module]\nname = "other"',
        '[tool.setuptools]\npackages = ["mine", "mine.deep"]\npy-modules = ["other"]',
    ],
)
def test_repository_shows_packages_named_in_pyproject(
    site: Path, repository: Path, table: str
) -> None:
    make(repository, "mine/__init__.py", "other/__init__.py", "third/__init__.py")
    (repository / "pyproject.toml").write_text(table)
    install(site, "unlike", repository)
    assert shown(site, repository) == ["mine", "other"]


@pytest.mark.parametrize("package", ["my_big_project", "my/big/project", "my/big_project"])
def test_repository_shows_package_guessed_from_distribution_name(
    site: Path, repository: Path, package: str
) -> None:
    make(repository, f"{package}/__init__.py", "other/__init__.py", "my/big/else/__init__.py")
    (repository / "pyproject.toml").write_text("tool = 3")
    install(site, "my_big.project", repository)
    assert shown(site, repository) == [package]


def test_repository_without_metadata_shows_what_can_be_imported(
    site: Path, repository: Path
) -> None:
    """Nothing else of the repository is shown."""
    make(repository, "mine/__init__.py", "one.py")
    (repository / "pyproject.toml").write_text("[broken")
    (site / "by-hand.pth").write_text(f"# mine\nimport os\n{repository}\n{repository}\n/no/such\n")
    assert shown(site, repository) == ["mine", "one.py", "tests"]


def test_setuptools_strict_mode_shows_links_and_targets(site: Path, repository: Path) -> None:
    """The mode makes a folder of symbolic links to the installed files."""
    make(repository, "src/mine/__init__.py", "src/mine/deep/m.py", "src/one.py")
    links = repository / "build" / "__editable__.mine-1-py3-none-any"
    for name in ("mine/__init__.py", "mine/deep/m.py", "one.py"):
        (links / name).parent.mkdir(parents=True, exist_ok=True)
        (links / name).symlink_to(repository / "src" / name)
    install(site, "mine", links, "mine\none\n")
    folder = f"build/{links.name}"
    expected = [f"{folder}/mine", f"{folder}/one.py", "src/mine", "src/one.py"]
    assert shown(site, repository) == expected


def test_setuptools_easy_install_shows_packages_and_metadata(site: Path, repository: Path) -> None:
    make(repository, "mine/__init__.py", "other/__init__.py", "mine_project.egg-info/PKG-INFO")
    (repository / "mine_project.egg-info" / "top_level.txt").write_text("mine\n")
    (site / "easy-install.pth").write_text(f"{repository}\n")
    assert shown(site, repository) == ["mine", "mine_project.egg-info"]


def test_setuptools_import_hook_is_read(site: Path, repository: Path) -> None:
    make(repository, "mine/__init__.py", "ns/sub/__init__.py", "ns/else.py", "plain/m.py", "one.py")
    make(repository, "native.abi3.so")
    names = ("mine", "ns/sub", "plain", "one", "native", "gone")
    mapping = {name.replace("/", "."): str(repository / name) for name in names}
    (site / "__editable___x_finder.py").write_text(
        f"MAPPING: dict[str, str] = {mapping!r}\nNAMESPACES = {{'ns': []}}\n"
        "raise SystemExit('this is read, not run')\n"
    )
    (site / "__editable___bad_finder.py").write_text("MAPPING = {")
    expected = ["mine", "native.abi3.so", "ns/sub", "one.py", "plain"]
    assert shown(site, repository) == expected


def test_hatchling_and_pdm_import_hook_is_read(site: Path, repository: Path) -> None:
    make(repository, "mine/__init__.py", "one.py")
    (site / "_editable_impl_mine.py").write_text(
        "from editables.redirector import RedirectingFinder as F\nF.install()\n"
        f"F.map_module('mine', {str(repository / 'mine' / '__init__.py')!r})\n"
        f"F.map_module('one', {str(repository / 'one.py')!r})\n"
    )
    assert shown(site, repository) == ["mine", "one.py"]


def test_scikit_build_core_import_hook_is_read(site: Path, repository: Path) -> None:
    make(repository, "src/mine/__init__.py", "src/mine/deep/__init__.py", "src/mine/deep/m.py")
    make(repository, "build/lib/mine/_core.so", "build/cache")
    modules = {
        "mine": str(repository / "src/mine/__init__.py"),
        "mine.deep.m": str(repository / "src/mine/deep/m.py"),
    }
    build = repository / "build"
    arguments = (
        f"{modules!r}, {{'mine._core': {str(build / 'lib/mine/_core.so')!r}}}, {str(build)!r}"
    )
    (site / "_mine_editable.py").write_text(f"install({arguments}, False)\n")
    assert shown(site, repository) == ["build/lib/mine/_core.so", "src/mine"]


def test_meson_python_import_hook_shows_nothing(site: Path, repository: Path) -> None:
    """That hook finds its files by a build."""
    build = str(repository / "build")
    (site / "_mine_editable_loader.py").write_text(f"install('mine', {{'mine'}}, {build!r}, [])\n")
    (found,) = find_editables([str(site)])
    assert found.shown == ()


def test_repository_that_is_a_package_shows_its_files(site: Path, repository: Path) -> None:
    """They are shown one by one."""
    make(repository, "__init__.py", "core.py", "deep/__init__.py")
    (site / "__editable___x_finder.py").write_text(f"MAPPING = {{'mine': {str(repository)!r}}}\n")
    assert shown(site, repository) == ["__init__.py", "core.py", "deep", "tests"]


def test_symbolic_link_in_site_packages_shows_its_target(site: Path, repository: Path) -> None:
    make(repository, "mine/__init__.py")
    (site / "mine").symlink_to(repository / "mine")
    assert shown(site, repository) == ["mine"]


def test_site_packages_of_another_environment_are_shown_whole(site: Path, tmp_path: Path) -> None:
    """Such a folder contains only packages, and libraries that no module is named after."""
    other = tmp_path / "other" / "site-packages"
    make(other, "numpy.libs/lib.so")
    (site / "these.pth").write_text(f"{other}\n")
    (found,) = find_editables([str(site)])
    assert found.shown == (str(other),)


def test_entries_over_the_limit_are_counted(
    site: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(editable_installs, "MAX_SHOWN", 5)
    make(repository, *(f"src/m{number}.py" for number in range(10)), "src/z/__init__.py")
    install(site, "mine", repository / "src")
    (found,) = find_editables([str(site)])
    assert len(found.shown) == 5
    assert found.shown[0].endswith("/z")
    assert found.left_out == 6


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["pyproject.toml", "kept.egg-info/top_level.txt"])
def test_pipe_in_the_repository_does_not_block(site: Path, repository: Path, name: str) -> None:
    """A kernel that may write there could block each later start."""
    install(site, "project", repository)
    path = repository / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    assert shown(site, repository)
    writer = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        assert shown(site, repository)  # a writer has it open, and writes nothing
    finally:
        os.close(writer)
