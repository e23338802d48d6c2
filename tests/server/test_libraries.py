"""Libraries that outputs ask for: from the folders of packages, by names of a table alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gvisor_kernel.errors import OutputsError
from gvisor_kernel.server.library_handlers import LIBRARIES, find_folders, read_library

PLOTLY = "plotly/package_data/plotly.min.js"


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    folder = tmp_path / "site-packages"
    (folder / PLOTLY).parent.mkdir(parents=True)
    (folder / PLOTLY).write_bytes(b"window.Plotly = {}")
    return folder


def test_a_library_is_read_where_it_is_installed(packages: Path, tmp_path: Path) -> None:
    folders = [str(tmp_path / "none"), str(packages)]
    assert read_library("plotly", folders) == b"window.Plotly = {}"


def test_one_that_is_not_installed_is_named_with_its_package(packages: Path) -> None:
    with pytest.raises(OutputsError, match="pip install pyLDAvis"):
        read_library("d3-5", [str(packages)])


@pytest.mark.parametrize(
    "name", ["", "none", "plotly.min.js", "../plotly", PLOTLY, "nbextension-../k3d"]
)
def test_no_other_name_is_a_library(packages: Path, name: str) -> None:
    with pytest.raises(OutputsError, match="no library of this name"):
        read_library(name, [str(packages)])


@pytest.mark.parametrize("part", [PLOTLY, "plotly/package_data", "plotly"])
def test_no_link_is_followed(packages: Path, tmp_path: Path, part: str) -> None:
    moved = tmp_path / "moved"
    (packages / part).rename(moved)
    (packages / part).symlink_to(moved)
    with pytest.raises(OutputsError, match="link"):
        read_library("plotly", [str(packages)])


def test_a_library_is_bounded(packages: Path) -> None:
    with pytest.raises(OutputsError, match="too large"):
        read_library("plotly", [str(packages)], limit=5)


def test_no_folder_of_notebooks_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for nbextensions in (False, True):
        folders = find_folders(nbextensions=nbextensions)
        assert folders
        assert os.path.realpath(tmp_path) not in folders


def test_a_version_of_a_name_is_in_its_folder(packages: Path) -> None:
    for path in ("bokeh/server/static/js/bokeh-gl.min.js", "panel/dist/css/chat_feed.css"):
        (packages / path).parent.mkdir(parents=True)
        (packages / path).write_text(path)
    assert read_library("bokeh-gl", [str(packages)]) == b"bokeh/server/static/js/bokeh-gl.min.js"
    assert read_library("panel-chat_feed.css", [str(packages)]) == b"panel/dist/css/chat_feed.css"
    for name in ("panel-../../x.css", "panel-.css", "bokeh-a.b", "bokeh-/x", "panel-a.css\n"):
        with pytest.raises(OutputsError, match="no library of this name"):
            read_library(name, [str(packages)])


def test_paths_are_plain() -> None:
    for _, _, paths in LIBRARIES:
        for path in paths:
            assert not path.startswith("/")
            assert ".." not in path.split("/")
