"""Which changes of a snapshot's files are detected, and which paths a sandbox may name."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from gvisor_kernel.errors import SnapshotError
from gvisor_kernel.runtimes.base import MountView
from gvisor_kernel.snapshots import manifest as module
from gvisor_kernel.snapshots.manifest import MAX_DIRECTORIES, MAX_FILES, Manifest, make_manifest


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A directory of packages that a sandbox sees at /site."""
    site = tmp_path / "site"
    (site / "package").mkdir(parents=True)
    for name in ("package/__init__.py", "package/fast.so", "module.py"):
        (site / name).write_text("x")
        os.utime(site / name, (1000, 1000))
    (site / "libm.so").symlink_to("package/fast.so")
    os.utime(site, (1000, 1000))
    return site


@pytest.fixture
def views(site: Path) -> list[MountView]:
    return [MountView(str(site), "/site", True)]


FILES = ("/site/package/__init__.py", "/site/module.py", "/site/libm.so")


@pytest.fixture
def manifest(views: list[MountView]) -> Manifest:
    made = make_manifest(FILES, ["/site", "/site/none"], views)
    assert made.find_change() is None
    return Manifest.from_json(json.loads(json.dumps(made.to_json())))


def test_manifest_survives_json(manifest: Manifest, site: Path, views: list[MountView]) -> None:
    assert manifest == make_manifest(FILES, ["/site", "/site/none"], views)
    assert str(site / "package/fast.so") in manifest.files, "the target of a link counts as well"
    assert manifest.find_change() is None


def test_edited_module_is_detected(manifest: Manifest, site: Path) -> None:
    (site / "module.py").write_text("y")
    assert manifest.find_change() == f"{site}/module.py has changed"


def test_outputs_folder_is_ignored(manifest: Manifest, site: Path) -> None:
    """Kernels create it beside notebooks, in a folder that may be on the import path."""
    (site / "outputs").mkdir()
    assert manifest.find_change() is None
    (site / "output").mkdir()
    assert manifest.find_change() == f"the modules in {site} have changed"


def test_replaced_library_of_same_size_and_time_is_detected(manifest: Manifest, site: Path) -> None:
    new = site / "package" / "new.so"
    new.write_text("x")
    os.utime(new, (1000, 1000))
    new.replace(site / "package" / "fast.so")
    assert manifest.find_change() == f"{site}/package/fast.so has changed"


def test_removed_module_is_detected(manifest: Manifest, site: Path) -> None:
    (site / "module.py").unlink()
    assert manifest.find_change() == f"{site}/module.py is gone"


@pytest.mark.parametrize("name", ["new.py", "new-1.0.dist-info", "new.pth", "new"])
def test_installed_package_is_detected(name: str, manifest: Manifest, site: Path) -> None:
    (site / name).mkdir()
    assert manifest.find_change() == f"the modules in {site} have changed"


def test_saved_notebook_is_ignored(manifest: Manifest, site: Path) -> None:
    for name in ("Untitled.ipynb", ".ipynb_checkpoints", "__pycache__", "a b.csv"):
        (site / name).touch()
    assert manifest.find_change() is None


def test_new_directory_is_detected(manifest: Manifest, site: Path) -> None:
    before = site.stat()
    (site / "none").mkdir()
    os.utime(site, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert manifest.find_change() == f"{site}/none is new"


def test_removed_directory_is_detected(tmp_path: Path) -> None:
    (tmp_path / "path").mkdir()
    made = make_manifest([], ["/p/path"], [MountView(str(tmp_path), "/p", True)])
    (tmp_path / "path").rmdir()
    assert made.find_change() == f"the modules in {tmp_path}/path have changed"


def test_file_changed_since_start_is_refused(site: Path, views: list[MountView]) -> None:
    (site / "module.py").touch()
    with pytest.raises(SnapshotError, match=r"module\.py changed"):
        make_manifest(FILES, [], views, since=2000)
    assert make_manifest(["/site/libm.so"], [], views, since=2e12).files


def test_file_with_a_time_to_come_was_not_changed_since_start(
    site: Path, views: list[MountView]
) -> None:
    """It was written while the clock was wrong: no snapshot could be made until then."""
    later = time.time() + 86400
    os.utime(site / "module.py", (later, later))
    made = make_manifest(["/site/module.py"], [], views, since=2000)
    assert made.find_change() is None
    (site / "module.py").touch()
    assert made.find_change() == f"{site / 'module.py'} has changed"


def test_folder_that_has_too_many_names_by_now_has_changed(
    manifest: Manifest, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start must go on without the snapshot."""
    (site / "other").touch()
    monkeypatch.setattr(module, "MAX_NAMES", 3)
    assert manifest.find_change() == f"{site} has more than 3 entries."


def test_names_from_sandbox_are_confined_to_mounts(
    site: Path, views: list[MountView], tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("x")
    (site / "out").symlink_to(tmp_path / "secret")
    os.mkfifo(site / "pipe")
    names = [
        *("/etc/shadow", "relative", "", "/site/../secret", "/sitex", "/site\0", "/" * 5000),
        *(None, 5, ["x"], str(tmp_path / "secret"), "/site/pipe", "/site/nothing", "/site/package"),
    ]
    made = make_manifest([*names, "/site/out"], names, views)  # type: ignore[arg-type]
    assert list(made.files) == [str(site / "out")]
    assert set(made.directories) == {str(site / n) for n in ("pipe", "nothing", "package")}


def test_deeper_mount_wins(site: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.py").touch()
    views = [MountView(str(site), "/site", True), MountView(str(other), "/site/package", True)]
    made = make_manifest(["/site/package/a.py", "/site/module.py"], [], views)
    assert list(made.files) == [str(other / "a.py"), str(site / "module.py")]


def test_endless_list_is_refused() -> None:
    endless = (f"/x/{i}" for i in range(10**9))
    with pytest.raises(SnapshotError, match=f"{MAX_FILES} files"):
        make_manifest(endless, [], [])
    with pytest.raises(SnapshotError, match=f"{MAX_DIRECTORIES} directories"):
        make_manifest([], endless, [])
