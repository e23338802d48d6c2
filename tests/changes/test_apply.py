"""Changes are applied to a folder that others may change meanwhile, and undone."""

from __future__ import annotations

import errno
import io
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gvisor_kernel.changes import folder
from gvisor_kernel.changes.apply import undo, undo_apply
from gvisor_kernel.changes.backups import JOURNAL, MAX_JOURNAL, MAX_KEPT, Backup, Backups, Head
from gvisor_kernel.changes.change import ChangesError, OnDisk
from gvisor_kernel.changes.compare import LATER
from gvisor_kernel.cli.main import main
from gvisor_kernel.host.folders import Opened
from gvisor_kernel.host.private_directories import state_root

from .helpers import apply, begin, entry, find, open_root


@pytest.fixture
def shown(tmp_path: Path) -> Path:
    place = tmp_path / "shown"
    place.mkdir()
    return place


@pytest.fixture
def root(shown: Path) -> Iterator[Opened]:
    with open_root(shown) as opened:
        yield opened


@pytest.fixture
def backup(root: Opened) -> Iterator[Backup]:
    made = begin(root)
    yield made
    made.remove()


def names(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*"))


def test_changes_are_written_and_undone(shown: Path, root: Opened, backup: Backup) -> None:
    (shown / "old").write_text("before")
    (shown / "old").chmod(0o640)
    (shown / "gone" / "deep").mkdir(parents=True)
    (shown / "gone" / "deep" / "file").write_text("kept")
    before = names(shown)
    found = find(
        root,
        entry("old"),
        entry("gone", "removed"),
        entry("new", what="folder"),
        entry("new/file"),
    )
    result = apply(root, backup, found)
    assert result.refused == ()
    assert names(shown) == ["new", "new/file", "old"]
    assert (shown / "old").read_text() == (shown / "new" / "file").read_text() == "new"
    assert stat.S_IMODE((shown / "old").stat().st_mode) == 0o640
    undone, refused = undo(root, backup)
    assert len(undone) == 6
    assert not refused
    assert names(shown) == before
    assert (shown / "old").read_text() == "before"
    assert (shown / "gone" / "deep" / "file").read_text() == "kept"


def test_an_apply_to_a_folder_whose_name_is_not_utf_8_is_undone(tmp_path: Path) -> None:
    place = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    place.mkdir()
    with open_root(place) as root:
        backup = begin(root)
        apply(root, backup, find(root, entry("new")))
    assert undo_apply(backup.id).undone == ("new",)
    backup.remove()


def test_no_bit_that_gives_rights_is_written(shown: Path, root: Opened, backup: Backup) -> None:
    (shown / "old").write_text("before")
    (shown / "old").chmod(0o6755)
    apply(root, backup, find(root, entry("old"), entry("new")))
    assert stat.S_IMODE((shown / "old").stat().st_mode) == 0o755
    assert stat.S_IMODE((shown / "new").stat().st_mode) & 0o7111 == 0


def test_what_has_changed_since_an_apply_is_not_undone(
    shown: Path, root: Opened, backup: Backup
) -> None:
    (shown / "old").write_text("before")
    apply(root, backup, find(root, entry("old"), entry("new")))
    (shown / "old").write_text("mine")
    undone, refused = undo(root, backup)
    assert undone == ["new"]
    assert [one.path for one in refused] == ["old"]
    assert (shown / "old").read_text() == "mine"


def change(
    kind: str, root: Opened, path: str, disk: OnDisk, note: folder.Note = folder.tell_nobody
) -> None:
    if kind == "written":
        folder.put(root, path, io.BytesIO(b"new"), expected=disk, note=note)
    else:
        folder.remove(root, path, disk, note)


def save(shown: Path, content: str) -> None:
    """Save the file as another program does."""
    (shown / "other").write_text(content)
    (shown / "other").rename(shown / "file")


def swap_for_link(shown: Path, outside: Path) -> None:
    (shown / "a" / "file").unlink()
    (shown / "a").rmdir()
    (shown / "a").symlink_to(outside)


def swap_file_for_link(shown: Path, outside: Path) -> None:
    (shown / "a" / "file").unlink()
    (shown / "a" / "file").symlink_to(outside / "file")


def swap_for_fifo(shown: Path, outside: Path) -> None:
    (shown / "a" / "file").unlink()
    os.mkfifo(shown / "a" / "file")


def swap_for_folder(shown: Path, outside: Path) -> None:
    (shown / "a" / "file").unlink()
    (shown / "a" / "file").mkdir()


def swap_for_other_file(shown: Path, outside: Path) -> None:
    (shown / "a" / "other").write_text("mine")
    (shown / "a" / "other").rename(shown / "a" / "file")


def write_into(shown: Path, outside: Path) -> None:
    with (shown / "a" / "file").open("a") as file:
        file.write("mine")


SWAPS = [
    *(swap_for_link, swap_file_for_link, swap_for_fifo, swap_for_folder),
    *(swap_for_other_file, write_into),
]


@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize("kind", ["written", "removed"])
def test_what_was_swapped_after_the_look_is_left_alone(
    swap: Callable[[Path, Path], None], kind: str, shown: Path, tmp_path: Path, root: Opened
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("secret")
    (shown / "a").mkdir()
    (shown / "a" / "file").write_text("before")
    disk = folder.look(root, "a/file")
    assert disk is not None
    swap(shown, outside)
    with pytest.raises(OSError):  # noqa: PT011 - each has an error of its own
        change(kind, root, "a/file", disk)
    assert (outside / "file").read_text() == "secret"
    assert not [name for name in names(shown) if folder.PREFIX in name]
    if swap in (swap_for_other_file, write_into):
        assert (shown / "a" / "file").read_text().endswith("mine")


@pytest.mark.parametrize("kind", ["written", "removed"])
def test_a_file_that_is_swapped_in_the_last_moment_comes_back(
    kind: str, shown: Path, root: Opened
) -> None:
    (shown / "file").write_text("before")
    disk = folder.look(root, "file")
    assert disk is not None

    def swap(phase: str, aside: str | None, after: OnDisk | None) -> None:
        if phase == "planned":  # after the last comparison, and before the step
            save(shown, "mine")

    with pytest.raises(folder.Changed):
        change(kind, root, "file", disk, swap)
    assert names(shown) == ["file"]
    assert (shown / "file").read_text() == "mine"


@pytest.mark.parametrize("kind", ["written", "removed"])
def test_what_is_saved_while_a_file_comes_back_is_kept_beside_it(
    kind: str, shown: Path, root: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shown / "file").write_text("before")
    disk = folder.look(root, "file")
    assert disk is not None
    renames, real_rename = iter(range(100)), folder._rename

    def rename_and_save(parent: Opened, name: str, target: str, flags: int) -> None:
        if next(renames) == (1 if kind == "written" else 0):  # the one that gives it back
            save(shown, "second")
        real_rename(parent, name, target, flags)

    def swap(phase: str, aside: str | None, after: OnDisk | None) -> None:
        if phase == "planned":
            save(shown, "first")

    monkeypatch.setattr(folder, "_rename", rename_and_save)
    with pytest.raises(folder.Kept, match="another program has saved it"):
        change(kind, root, "file", disk, swap)
    file, saved = names(shown)
    assert (file, saved[:11]) == ("file", "file.saved-")
    assert {(shown / name).read_text() for name in (file, saved)} == {"first", "second"}


def test_a_file_that_appears_is_not_replaced(shown: Path, root: Opened, backup: Backup) -> None:
    found = find(root, entry("new"))
    (shown / "new").write_text("mine")
    (added,) = found.changes
    with pytest.raises(FileExistsError):
        folder.put(root, added.path, io.BytesIO(b"new"))
    assert (shown / "new").read_text() == "mine"
    assert names(shown) == ["new"]


def test_another_name_of_a_replaced_file_keeps_its_content(
    shown: Path, tmp_path: Path, root: Opened, backup: Backup
) -> None:
    (shown / "file").write_text("before")
    (tmp_path / "elsewhere").hardlink_to(shown / "file")
    apply(root, backup, find(root, entry("file")))
    assert (tmp_path / "elsewhere").read_text() == "before"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_root_leaves_files_to_their_owners(shown: Path, root: Opened, backup: Backup) -> None:
    (shown / "file").write_text("before")
    os.chown(shown / "file", 12345, 12346)
    os.chown(shown, 12345, 12345)
    apply(root, backup, find(root, entry("file"), entry("new")))
    assert ((shown / "file").stat().st_uid, (shown / "file").stat().st_gid) == (12345, 12346)
    assert (shown / "new").stat().st_uid == 12345


def test_a_folder_that_is_not_empty_is_not_removed(
    shown: Path, root: Opened, backup: Backup
) -> None:
    (shown / "folder").mkdir()
    found = find(root, entry("folder", "removed"))
    (shown / "folder" / "mine").touch()
    result = apply(root, backup, found)
    assert [one.reason for one in result.refused] == ["the folder is not empty on disk"]
    assert result.undo is None
    assert names(shown) == ["folder", "folder/mine"]


def test_only_so_many_backups_are_kept(shown: Path, root: Opened) -> None:
    made = [begin(root) for _ in range(MAX_KEPT + 2)]
    kept = list(Backups.open().newest_first())
    assert len(kept) == MAX_KEPT
    assert kept[0].id in {one.id for one in made}
    place = state_root() / "undo"
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    for one in kept:
        one.remove()


def test_applies_that_nobody_asked_for_do_not_end_the_undo_of_others(root: Opened) -> None:
    mine = begin(root)
    head = Head("sandbox", root.path, root.identity, is_automatic=True)
    automatic = [Backups.open().begin(head) for _ in range(MAX_KEPT + 2)]
    kept = list(Backups.open().newest_first())
    assert mine.id in {one.id for one in kept}
    assert len(kept) == MAX_KEPT + 1
    others = [begin(root) for _ in range(MAX_KEPT)]
    kept = list(Backups.open().newest_first())
    assert len([one for one in kept if one.head.is_automatic]) == MAX_KEPT
    assert mine.id not in {one.id for one in kept}
    for one in (mine, *automatic, *others):
        one.remove()


def test_a_journal_that_somebody_has_spoiled_undoes_nothing_elsewhere(
    shown: Path, tmp_path: Path, root: Opened, backup: Backup
) -> None:
    (tmp_path / "file").write_text("secret")
    facts = ["file", 1, 2, 3, 4, 5, 0]
    lines = [
        [1, False, "../file", None, "done", facts],
        [2, False, "/etc/x", None, "done", facts],
        [3, False, "y", None, "planned", facts, "../file"],
        [4, False, "y", None, "new", facts],
        *([5, False, "y", None, "done", odd] for odd in ([1, 2], [*facts, None], "file", [])),
    ]
    text = "\n".join(("[", *map(json.dumps, lines)))
    (backup.directory / JOURNAL).write_text(text)
    assert list(backup.moves()) == []
    with pytest.raises(ChangesError):
        Backups.open().find("../sandboxes")
    assert undo(root, backup) == ([], [])


def test_facts_of_what_was_applied_are_known_later(
    shown: Path, root: Opened, backup: Backup
) -> None:
    apply(root, backup, find(root, entry("new")))
    ours = Backups.open().find_ours("sandbox")
    (again,) = find(root, entry("new", size=9), started=time.time() - 1000, ours=ours).changes
    assert again.conflict is None


def test_applies_are_undone_one_after_the_other_and_applied_again(
    shown: Path, root: Opened
) -> None:
    (shown / "file").write_text("before")
    before = time.time() + 0.01
    made = [begin(root) for _ in range(2)]
    for number, one in enumerate(made):
        apply(root, one, find(root, entry("file")), b"new %d" % number)
    store = Backups.open()
    for content, one in (("new 0", made[1]), ("before", made[0])):
        assert undo(root, one) == (["file"], [])
        assert (shown / "file").read_text() == content
        assert one.left() == []
    # It is what it was before the first apply: a conflict, if it was one then.
    ours = store.find_ours("sandbox")
    for started, conflict in ((before, None), (1.0, LATER)):
        (again,) = find(root, entry("file"), started=started, ours=ours).changes
        assert again.conflict == conflict
    for one in made:
        with pytest.raises(ChangesError):
            store.find(one.id)
        one.remove()


def test_an_undo_that_was_refused_in_part_can_be_tried_again(
    shown: Path, root: Opened, backup: Backup
) -> None:
    (shown / "file").write_text("before")
    apply(root, backup, find(root, entry("file"), entry("new")))
    (shown / "new").rename(shown / "kept")
    assert [one.path for one in undo(root, backup)[1]] == ["new"]
    (shown / "kept").rename(shown / "new")
    assert undo(root, backup) == (["new"], [])  # it has the content that was applied
    assert names(shown) == ["file"]


def test_an_undo_that_is_stopped_goes_on_later(shown: Path, root: Opened, backup: Backup) -> None:
    for name in ("a", "b", "c"):
        (shown / name).write_text("before")
        apply(root, backup, find(root, entry(name)), b"new")
    asked = iter((False, True, True))
    undone, refused = undo(root, backup, lambda: next(asked))
    assert undone == ["c"]
    assert [one.path for one in refused] == ["b", "a"]
    assert undo(root, backup) == (["b", "a"], [])
    assert {path.read_text() for path in shown.iterdir()} == {"before"}


@pytest.mark.parametrize("length", [8, 120])
def test_a_step_is_not_begun_if_undo_could_not_read_its_record(
    length: int, shown: Path, root: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was done before it can be undone, also after that has failed again and again."""
    backup = begin(root, room=200_000)
    paths = [f"{number:0{length}}" for number in range(200)]
    for path in paths[:150]:
        (shown / path).write_text("before")
    claims = [entry(path, "removed") for path in paths[:50]], map(entry, paths[50:])
    result = apply(root, backup, find(root, *claims[0], *claims[1]))
    assert 50 < len(result.applied) < 150
    assert {"the record of this apply is full" in one.reason for one in result.refused} == {True}
    assert (shown / paths[149]).read_text() == "before"
    assert not (shown / paths[199]).exists()

    def fail(*_: object) -> int:
        raise PermissionError(errno.EACCES, "no", "")

    with monkeypatch.context() as patch:
        patch.setattr(folder, "_make_file", fail)
        for _ in range(5):
            assert len(undo(root, backup)[1]) == len(backup.left()) > 50
    assert undo(root, backup)[1] == []
    assert {path.name: path.read_text() for path in shown.iterdir()} == dict.fromkeys(
        paths[:150], "before"
    )
    backup.remove()


def test_undo_without_an_id_is_for_the_folder_where_it_is_said(
    shown: Path, root: Opened, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (shown / "below").mkdir()
    elsewhere = shown.parent / f"{shown.name}-elsewhere"
    elsewhere.mkdir()
    for here, is_undone in (
        (elsewhere, False),
        (shown, True),
        (shown / "below", True),
        (shown.parent, True),
    ):
        backup = begin(root)
        apply(root, backup, find(root, entry("file")))
        monkeypatch.chdir(here)
        assert main(["undo"]) == (not is_undone)
        told = capsys.readouterr()
        assert (shown / "file").exists() != is_undone
        if not is_undone:
            assert str(shown) in told.err
            assert f"gvisor-kernel undo {backup.id}" in told.err
            assert main(["undo", backup.id]) == 0
        assert main(["undo", ""]) == 1
        capsys.readouterr()
        backup.remove()


def test_an_apply_whose_record_cannot_be_read_does_not_hide_others(
    shown: Path, root: Opened
) -> None:
    earlier, later = begin(root), begin(root)
    earlier, later = sorted((earlier, later), key=lambda one: one.id)
    (shown / "file").write_text("before")
    for made, path in ((earlier, "file"), (later, "other")):
        apply(root, made, find(root, entry(path)))
    os.truncate(later.directory / JOURNAL, MAX_JOURNAL + 1)
    with pytest.raises(ChangesError, match=f"(?s){later.id} cannot be read.*{earlier.id}"):
        undo_apply()
    assert undo_apply(earlier.id).undone == ("file",)
    assert (shown / "file").read_text() == "before"
    with pytest.raises(ChangesError, match=f"{later.id} cannot be read"):
        undo_apply()
    for one in (earlier, later):
        one.remove()
