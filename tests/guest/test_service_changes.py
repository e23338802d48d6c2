"""PID 1 and the service process look through the upper layer of /workspace."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel.guest import cell_hooks, service_changes

Find = Callable[..., dict[str, Any]]


@pytest.fixture
def layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders in place of the layers; nothing is merged in ``merged``."""
    for name in ("upper", "lower", "merged"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(service_changes, "UPPER", str(tmp_path / "upper"))
    monkeypatch.setattr(service_changes, "UPLOADS", str(tmp_path / "lower"))
    monkeypatch.setattr(service_changes, "WORKSPACE", str(tmp_path / "merged"))
    monkeypatch.setattr(cell_hooks, "UPPER", str(tmp_path / "upper"))
    return tmp_path


def find(limit: int = 100, seconds: float = 5, digests: bool = True) -> dict[str, Any]:
    return service_changes.find_changes(limit, seconds, digests)


def paths(found: dict[str, Any]) -> set[tuple[str, str, str]]:
    return {(path, kind, what) for path, kind, what, *_ in found["entries"]}


def remove(layers: Path, name: str) -> None:
    os.mknod(layers / "upper" / name, stat.S_IFCHR, 0)


def test_files_folders_links_and_what_was_removed_are_found(layers: Path) -> None:
    (layers / "upper" / "new" / "deep").mkdir(parents=True)
    (layers / "upper" / "new" / "deep" / "file").write_text("abc")
    (layers / "upper" / "link").symlink_to("/etc/passwd")
    os.mkfifo(layers / "upper" / "fifo")
    (layers / "lower" / "gone").touch()
    remove(layers, "gone")
    remove(layers, "made-and-removed-here")
    found = find()
    assert paths(found) == {
        ("new", "written", "folder"),
        ("new/deep", "written", "folder"),
        ("new/deep/file", "written", "file"),
        ("link", "written", "other"),
        ("fifo", "written", "other"),
        ("gone", "removed", "other"),
    }
    digest = hashlib.sha256(b"abc").hexdigest()
    assert digest in {entry[5] for entry in found["entries"]}
    assert (found["total"], found["more"]) == (6, False)


def test_a_folder_that_was_made_anew_has_removed_what_the_uploads_have(layers: Path) -> None:
    for name in ("hidden", "merged"):
        (layers / "upper" / name).mkdir()
        (layers / "lower" / name).mkdir()
        (layers / "lower" / name / "old").touch()
    (layers / "merged" / "merged").mkdir()
    (layers / "merged" / "merged" / "old").touch()
    assert paths(find()) == {("hidden/old", "removed", "other")}


def test_a_look_has_bounds(layers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(50):
        (layers / "upper" / str(number)).write_text("x")
    found = find(limit=10)
    assert (len(found["entries"]), found["total"], found["more"]) == (10, 50, True)
    assert find(seconds=0)["more"]
    monkeypatch.setattr(service_changes, "MAX_VISITED", 20)
    assert find()["total"] == 20
    monkeypatch.setattr(service_changes, "MAX_TEXT", 5)
    assert len(find()["entries"]) < 5
    monkeypatch.setattr(service_changes, "MAX_DEPTH", 3)
    monkeypatch.setattr(service_changes, "MAX_TEXT", 1000)
    (layers / "upper" / "a" / "b" / "c" / "d" / "e" / "f").mkdir(parents=True)
    assert find()["more"]


def test_a_file_that_grows_while_it_is_read_has_no_digest(
    layers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = layers / "upper" / "file"
    file.write_text("x")
    parts: list[bytes] = []

    class Growing:
        """Grows by as much as is read."""

        def __enter__(self) -> Growing:
            return self

        def __exit__(self, *exc: object) -> None:
            pass

        def read(self, size: int) -> bytes:
            parts.append(bytes(size))
            assert len(parts) < 100
            return parts[-1]

    monkeypatch.setattr(service_changes, "open_regular", lambda path, flags: Growing())
    ((*_, digest),) = find()["entries"]
    assert digest == ""
    assert sum(map(len, parts)) <= service_changes.HASHED_FILE + service_changes.PART


def test_a_look_ends_at_its_time_in_a_large_folder_of_the_uploads(
    layers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (layers / "upper" / "folder").mkdir()
    (layers / "lower" / "folder").mkdir()
    for number in range(50):
        (layers / "lower" / "folder" / str(number)).touch()
    clock = iter(range(1000))
    monkeypatch.setattr(service_changes.time, "monotonic", lambda: next(clock))
    assert service_changes.find_changes(100, 5, True, under=["folder/x"])["more"]
    assert next(clock) < 20


def test_hostile_names_and_files_are_found_without_being_read(layers: Path) -> None:
    (layers / "upper" / ("n" * 255)).touch()
    with (layers / "upper" / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    os.mkfifo(layers / "upper" / "fifo")
    deep = layers / "upper"
    for _ in range(150):
        deep /= "d"
        deep.mkdir()
    found = find(limit=1000)
    assert found["more"]  # not all levels
    by_path = {entry[0]: entry for entry in found["entries"]}
    assert by_path["sparse"][5] == ""
    assert by_path["n" * 255][2] == "file"


def test_a_folder_that_is_renamed_during_the_look_may_have_had_others(
    layers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (layers / "upper" / "folder").mkdir()
    real = os.scandir

    def rename_first(path: str) -> Any:
        if path.endswith("/folder"):
            (layers / "upper" / "folder").rename(layers / "elsewhere")
        return real(path)

    monkeypatch.setattr(service_changes.os, "scandir", rename_first)
    assert find()["more"]


def test_names_that_are_no_text_are_not_sent(layers: Path) -> None:
    name = os.fsencode(layers / "upper") + b"/\xff"
    os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
    found = find()
    assert (found["entries"], found["more"]) == ([], True)


def test_only_files_count_at_the_end_of_a_run(layers: Path) -> None:
    (layers / "upper" / "folder").mkdir()
    (layers / "upper" / "folder" / "file").touch()
    (layers / "upper" / "link").symlink_to("file")
    for cache in ("folder/__pycache__", ".cache/pip", "tagged/deep"):
        (layers / "upper" / cache).mkdir(parents=True)
        (layers / "upper" / cache / "file").touch()
    (layers / "upper" / "tagged" / "CACHEDIR.TAG").touch()
    found = service_changes.find_changes(10, 1, digests=False, only_written=True)
    assert [entry[0] for entry in found["entries"]] == ["folder/file"]


class Result:
    error_in_exec: BaseException | None = None


def test_a_person_is_told_once_of_a_file_that_is_not_kept(
    layers: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(cell_hooks.VARIABLE, "outputs kept told")
    (layers / "upper" / "outputs").mkdir()
    told = cell_hooks.UnkeptFiles()
    told.after_cell(Result())
    (layers / "upper" / "__pycache__").mkdir()
    (layers / "upper" / "__pycache__" / "x.pyc").touch()
    (layers / "upper" / "deep").mkdir()
    told.after_cell(Result())
    assert capsys.readouterr().err == ""
    (layers / "upper" / "deep" / "a\x1b.txt").touch()  # the top folder does not change by this
    told.after_cell(Result())
    first = capsys.readouterr().err
    assert "deep/a?.txt is not in your folder" in first
    assert "outputs/" in first
    (layers / "upper" / "b.txt").touch()
    told.after_cell(Result())
    cell_hooks.UnkeptFiles().after_cell(Result())  # the next kernel of the same sandbox
    assert capsys.readouterr().err == ""


class Batch:
    """The part of ipykernel's kernel that says whether somebody can answer."""

    def get_parent(self, channel: str) -> dict[str, Any]:
        return {"content": {"allow_stdin": False}}


def test_in_a_batch_run_no_cell_tells_of_files(
    layers: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(cell_hooks.VARIABLE, "outputs kept told")
    (layers / "upper" / "a").touch()
    told = cell_hooks.UnkeptFiles(Batch())
    monkeypatch.setattr(told, "_is_told", False)
    told.after_cell(Result())
    assert capsys.readouterr().err == ""


def test_where_nothing_is_applied_no_notice_advises_it(
    layers: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, advised in (("kept told off", False), ("kept told", True)):
        monkeypatch.setenv(cell_hooks.VARIABLE, words)
        (layers / "upper" / "a").unlink(missing_ok=True)
        told = cell_hooks.UnkeptFiles()
        (layers / "upper" / "a").touch()
        told.after_cell(Result())
        assert ("choose Changes" in capsys.readouterr().err) is advised


def test_a_look_after_a_cell_is_bounded(layers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell_hooks, "MAX_VISITED", 20)
    for number in range(30):
        (layers / "upper" / f"folder{number}").mkdir()
    assert cell_hooks.find_written() == ""
    (layers / "upper" / "folder1" / "file").touch()
    monkeypatch.setattr(cell_hooks, "MAX_VISITED", 500)
    assert cell_hooks.find_written() == "folder1/file"


def test_a_program_is_not_told(
    layers: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(cell_hooks.VARIABLE, "outputs kept")
    (layers / "upper" / "b.txt").touch()
    told = cell_hooks.UnkeptFiles()
    told._is_told = False
    told.after_cell(Result())
    assert capsys.readouterr().err == ""


def test_a_look_at_some_paths_leaves_out_others(layers: Path) -> None:
    for name in ("a/b/c", "a/d", "e"):
        (layers / "upper" / name).parent.mkdir(parents=True, exist_ok=True)
        (layers / "upper" / name).touch()
    found = service_changes.find_changes(10, 5, True, under=["a/b"])
    assert {entry[0] for entry in found["entries"]} == {"a", "a/b", "a/b/c"}
    assert not found["more"]
