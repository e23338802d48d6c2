"""A saved kernel goes on with the packages that it had, whatever is installed meanwhile."""

from __future__ import annotations

import ast
import json
import os
import shutil
import sysconfig
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import markupsafe
import pytest

from gvisor_kernel import Sandbox
from gvisor_kernel.errors import SnapshotError
from gvisor_kernel.host.folders import open_real
from gvisor_kernel.runtimes.mounts.written_folders import note_written
from gvisor_kernel.runtimes.state import kept_copies, kept_packages, lifeline
from gvisor_kernel.runtimes.state.kept_packages import (
    KEPT,
    Packages,
    Substitutes,
    find_packages,
    find_substitutes,
    list_installed,
    sweep_kept,
    wait_until_kept,
)
from gvisor_kernel.runtimes.state.sealed import read_note
from gvisor_kernel.runtimes.state.shown_files import Stamps
from gvisor_kernel.typed_json import write_json

from .test_hibernation import find_saved

SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
IMPORT = "import sys; sys.path.insert(0, '/opt/env/lib/python3.11/site-packages'); import own"
SEEN = "(own.VERSION, own.escape('<'), __import__('own.later').later.VERSION)"


def install(packages: Path, version: str) -> None:
    """Install a package with an extension as pip does: with new files, in place of the old ones."""
    shutil.rmtree(packages / "own", ignore_errors=True)
    for old in packages.glob("own-*"):
        shutil.rmtree(old)
    library = next(Path(markupsafe.__file__).parent.glob(f"*{SUFFIX}"))
    (packages / "own").mkdir(parents=True)
    (packages / f"own-{version}.dist-info").mkdir()
    content = library.read_bytes() + version.encode()
    (packages / "own" / library.name).write_bytes(content)
    text = f"from own._speedups import _escape_inner as escape\nVERSION = {version!r}\n"
    (packages / "own" / "__init__.py").write_text(text)
    (packages / "own" / "later.py").write_text(f"VERSION = {version!r}\n")
    (packages / "own" / "loop").symlink_to("loop")


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    found = tmp_path / "env" / "lib" / "python3.11" / "site-packages"
    install(found, "1.0")
    return found


@pytest.fixture
def sandbox(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    monkeypatch.setattr(os, "setpriority", lambda *_: None)  # these tests wait for it
    with start(tmp_path) as sandbox:
        sandbox.run(IMPORT)
        yield sandbox


def keep(
    place: Path,
    files: Stamps,
    packages: Packages,
    sources: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Keep what a kernel needs that is saved as ``place`` now."""
    place.mkdir(exist_ok=True)
    folder = os.open(place, os.O_RDONLY)
    try:
        kept_packages.keep(folder, files, packages, sources, time.monotonic())
    finally:
        os.close(folder)


def start(tmp_path: Path) -> Sandbox:
    mounts = [{"source": str(tmp_path / "env"), "target": "/opt/env"}]
    return Sandbox(memory="1G", mounts=mounts)


def hibernate(sandbox: Sandbox) -> dict[str, str]:
    """Let it hibernate; return what is kept for it, by the paths of the host."""
    sandbox.hibernate()
    file = find_saved(sandbox) / KEPT
    wait_until_kept()
    kept: dict[str, str] = json.loads(file.read_bytes())
    return kept


def test_a_kernel_goes_on_with_packages_that_were_upgraded_and_removed(
    sandbox: Sandbox, packages: Path, tmp_path: Path
) -> None:
    kept = hibernate(sandbox)
    tree = kept[str(packages.parent)]
    install(packages, "2.0")
    execution = sandbox.run(SEEN)
    assert execution.error is None
    assert ast.literal_eval(execution.text or "") == ("1.0", "&lt;", "1.0")
    assert "own 1.0 (now 2.0). Restart it" in execution.stderr
    with start(tmp_path) as other:
        other.run(IMPORT)
        assert ast.literal_eval(other.run(SEEN).text or "") == ("2.0", "&lt;", "2.0")
    # It keeps them over the next sleep, and says that once.
    assert hibernate(sandbox)[str(packages.parent)] == tree
    shutil.rmtree(packages)
    execution = sandbox.run("import importlib; importlib.reload(own); " + SEEN)
    assert ast.literal_eval(execution.text or "") == ("1.0", "&lt;", "1.0")
    assert execution.stderr == ""
    # What no kernel needs any more is removed.
    os.utime(Path(tree).parent, (0, 0))
    sweep_kept()
    assert Path(tree).is_dir()
    sandbox.close()
    sweep_kept()
    assert not Path(tree).exists()


def test_a_library_that_was_changed_in_place_is_named(sandbox: Sandbox, packages: Path) -> None:
    tree = hibernate(sandbox)[str(packages.parent)]
    library = next((packages / "own").glob(f"*{SUFFIX}"))
    before = library.stat()
    with library.open("ab") as file:
        file.write(b"more")
    error = sandbox.run("own").error
    assert error is not None
    assert f"{library} was changed" in error.value
    # Neither is a copy shown of which another file was written into.
    os.truncate(library, before.st_size)
    os.utime(library, ns=(before.st_atime_ns, before.st_mtime_ns))
    with (packages / "own" / "later.py").open("a") as file:
        file.write("# more")
    install(packages, "2.0")
    error = sandbox.run("own").error
    assert error is not None
    assert f"a file in {packages.parent} was changed in place" in error.value
    (Path(tree) / "site-packages" / "own" / "later.py").write_text("VERSION = '1.0'\n")


def test_a_folder_that_is_gone_is_named_and_the_kernel_waits_for_it(
    sandbox: Sandbox, packages: Path
) -> None:
    hibernate(sandbox)
    packages.parent.rename(packages.parent.with_name("aside"))
    error = sandbox.run("own").error
    assert error is not None
    assert f"{packages.parent} is gone" in error.value
    packages.parent.with_name("aside").rename(packages.parent)
    assert sandbox.run("own.VERSION").text == "'1.0'"


def test_without_hard_links_it_is_copied_within_a_budget(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for packages of another user, or on another file system."""

    def refuse(*args: object, **more: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(kept_copies, "own_state", lambda: tmp_path)
    monkeypatch.setattr(kept_packages, "kept_root", kept_copies.kept_root)
    library = next((packages / "own").glob(f"*{SUFFIX}"))
    status, folder = library.stat(), str(packages.parent)
    files = {str(library): (status.st_size, status.st_mtime_ns, status.st_ino)}
    sources = {"/opt/env": str(tmp_path / "env")}
    found = find_packages(files, sources)
    assert set(found) == {folder}
    with monkeypatch.context() as patch:
        patch.setattr(kept_copies, "MAX_COPIED", 1000)
        keep(tmp_path / "saved", files, found, sources)
    assert json.loads((tmp_path / "saved" / KEPT).read_bytes()) == {}
    keep(tmp_path / "saved", files, found, sources)
    tree = Path(json.loads((tmp_path / "saved" / KEPT).read_bytes())[folder])
    copy = kept_copies.read_copy(str(tree))
    assert copy is not None
    assert copy.copied > status.st_size
    shown = find_substitutes(tmp_path / "saved", 0.0, files, found, sources)
    assert shown == Substitutes({})
    install(packages, "2.0")
    shown = find_substitutes(tmp_path / "saved", 0.0, files, found, sources)
    assert shown.paths == {folder: str(tree)}
    assert "own 1.0 (now 2.0)" in shown.words
    # One that is not kept is refused by name.
    with pytest.raises(SnapshotError, match=r"changed before .*: own 1\.0 \(now 2\.0\)\."):
        find_substitutes(tmp_path, 0.0, files, found, sources)
    # So is a package without libraries, until its version is installed again.
    with pytest.raises(SnapshotError, match=r"own 1\.0 \(now 2\.0\)"):
        find_substitutes(tmp_path, 0.0, {}, found, sources)
    install(packages, "1.0")
    assert find_substitutes(tmp_path, 0.0, {}, found, sources) == Substitutes({})
    install(packages, "2.0")
    # So is it if nobody can read what is kept; and nothing of that is removed.
    monkeypatch.setattr(kept_packages, "own_state", lambda: tmp_path)
    other = tmp_path / "sandboxes" / "other"
    other.mkdir(parents=True)
    os.utime(tree.parent, (0, 0))
    for content in ("[]", "7", '["a"]', '{"a": 1}', "{"):
        (tmp_path / "saved" / KEPT).write_text(content)
        with pytest.raises(SnapshotError, match=r"changed before .*: own 1\.0 \(now 2\.0\)\."):
            find_substitutes(tmp_path / "saved", 0.0, files, found, sources)
        (other / KEPT).write_text(content)
        sweep_kept()
        assert tree.is_dir()


@pytest.mark.parametrize("how", ["replaced", "written"])
def test_each_kernel_has_a_copy_of_what_it_saw(
    how: str, packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a file deep in a package that was changed between two saves."""
    monkeypatch.setattr(kept_copies, "own_state", lambda: tmp_path)
    monkeypatch.setattr(kept_packages, "kept_root", kept_copies.kept_root)
    folder, module = str(packages), packages / "own" / "later.py"
    trees = []
    for number in range(3):
        if number == 2:  # nothing but what Python makes anew
            (packages / "own" / "__pycache__").mkdir()
            (packages / "own" / "__pycache__" / "later.pyc").touch()
        elif number:
            path = module.with_name("new") if how == "replaced" else module
            path.write_text("VERSION = 'edited'\n")
            path.replace(module)
        place = tmp_path / str(number)
        found = find_packages([f"{packages}/own/x.so"], {"/opt": folder})
        keep(place, {}, found)
        trees.append(json.loads((place / KEPT).read_bytes())[folder])
    assert trees[0] != trees[1] == trees[2]
    assert Path(trees[1], "own/later.py").read_text() == "VERSION = 'edited'\n"


def test_nothing_is_kept_of_a_folder_that_a_kernel_may_write(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_copies, "own_state", lambda: tmp_path)
    with open_real(str(packages)) as opened:
        note_written([opened])
    folder = str(packages)
    keep(tmp_path / "saved", {}, {folder: {}})
    assert json.loads((tmp_path / "saved" / KEPT).read_bytes()) == {}


def test_nothing_is_copied_for_a_kernel_that_has_gone_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that hibernates and wakes in turn would have the server copy all the time; and its next
    save has the same name."""
    monkeypatch.setattr(kept_packages, "make_copy", lambda *_: pytest.fail("something was copied"))
    monkeypatch.setattr(kept_copies, "own_state", lambda: tmp_path)
    monkeypatch.setattr(kept_packages, "own_state", lambda: tmp_path)
    found = {sysconfig.get_path("purelib"): dict[str, tuple[int, int]]()}
    place = write_note(tmp_path, "one/saved", found)
    looked = list[str]()

    def go_on(path: Path, kernel: str) -> tuple[bytes, str]:
        assert lifeline._process is not None  # if this process is killed, that one goes on
        read = read_note(path, kernel)
        place.rename(tmp_path / "old")
        shutil.rmtree(tmp_path / "old")
        place.mkdir()
        looked.append(kernel)
        return read

    monkeypatch.setattr(kept_packages, "read_note", go_on)
    kept_packages.begin_to_keep()
    wait_until_kept()
    assert not list(place.iterdir())
    assert looked == [place.parent.name]


def write_note(state: Path, name: str, packages: Packages) -> Path:
    """Write what is noted of a kernel that is saved under this name."""
    place = state / "sandboxes" / name
    place.mkdir(0o700, parents=True)
    (place / "kernel.json").write_text(
        write_json({"files": {}, "packages": packages, "sources": {}})
    )
    return place


def test_what_a_killed_process_has_not_kept_is_kept_later(
    packages: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By one look for all kernels, in one thread; but nothing that was changed meanwhile."""
    monkeypatch.setattr(kept_copies, "own_state", lambda: tmp_path)
    monkeypatch.setattr(kept_packages, "own_state", lambda: tmp_path)
    looked, digest = list[str](), kept_copies.digest_tree
    monkeypatch.setattr(kept_copies, "digest_tree", lambda it: looked.append(it) or digest(it))
    caplog.set_level("INFO", kept_packages.__name__)
    folder = str(packages)
    changed = write_note(tmp_path, "changed/saved", {folder: list_installed(folder)})
    install(packages, "2.0")
    names = ("a/saved", "b/saved", "a/checkpoints/one")
    found = {folder: list_installed(folder)}
    same = [write_note(tmp_path, name, found) for name in names]
    unread = write_note(tmp_path, "unread/saved", found)
    (unread / "kernel.json").write_text("{")
    for _ in range(2):
        kept_packages.begin_to_keep()
        wait_until_kept()
    kept = [json.loads((place / KEPT).read_bytes()) for place in same]
    assert kept[0].keys() == {folder}
    assert kept == [kept[0]] * 3
    assert json.loads((changed / KEPT).read_bytes()) == {}
    assert "packages were installed meanwhile" in caplog.text
    assert not (unread / KEPT).exists()
    assert caplog.text.count("nothing is kept") == 1  # it is not read again and again
    assert looked.count(folder) == 1


def test_one_look_serves_all_kernels_that_were_saved_before_it(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that stops saves all of its kernels, and has a minute and a half for that."""
    monkeypatch.setattr(kept_copies, "own_state", lambda: tmp_path)
    kept_copies.kept_root().mkdir()
    looked = list[str]()
    digest = kept_copies.digest_tree
    monkeypatch.setattr(kept_copies, "digest_tree", lambda it: looked.append(it) or digest(it))

    def make_copy(since: float) -> str:
        return kept_copies.make_copy(str(packages), since, lambda: True)

    since = time.monotonic()
    tree = make_copy(since)
    assert make_copy(since) == tree
    assert looked.count(str(packages)) == 1
    assert make_copy(time.monotonic()) == tree
    assert looked.count(str(packages)) == 2
    shutil.rmtree(Path(tree).parent)
    assert make_copy(since) == tree
    assert Path(tree).is_dir()
