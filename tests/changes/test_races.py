"""Others change the folder, or apply and undo too, at the very moment of an apply."""

from __future__ import annotations

import io
import os
import random
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from gvisor_kernel.changes import backups, folder
from gvisor_kernel.changes.apply import Applying, undo, undo_apply
from gvisor_kernel.changes.backups import Backups
from gvisor_kernel.changes.change import ChangesError
from gvisor_kernel.changes.folder import look

from ..sweeps import ALL
from .helpers import begin, entry, find, open_root

ROUNDS = 200 if ALL else 3
MINE = "mine"
OTHER = 12345
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make these")


def swap(shown: Path, make: Callable[[Path], object]) -> None:
    """Put something in place of the file by one rename."""
    make(shown / "made")
    (shown / "made").rename(shown / "a" / "file")


def write_mine(path: Path) -> None:
    path.write_text(MINE)


def give_away(path: Path) -> None:
    write_mine(path)
    os.chown(path, OTHER, OTHER)


def swap_parent(shown: Path, outside: Path) -> None:
    (shown / "a").rename(shown / "moved")
    (shown / "a").symlink_to(outside)


def remove_and_write(shown: Path, outside: Path) -> None:
    with suppress(FileNotFoundError):
        (shown / "a" / "file").unlink()
    swap(shown, write_mine)


def replace_outputs(shown: Path, outside: Path) -> None:
    (shown / "outputs").rmdir()
    (shown / "outputs").symlink_to(outside)
    swap(shown, write_mine)


def save_twice(shown: Path, outside: Path) -> None:
    swap(shown, lambda path: path.write_text("first"))
    swap(shown, write_mine)


SWAPS: dict[str, Callable[[Path, Path], object]] = {
    "file": lambda shown, outside: swap(shown, write_mine),
    "twice": save_twice,
    "removed": remove_and_write,
    "link": lambda shown, outside: swap(shown, lambda path: path.symlink_to(outside / "file")),
    "fifo": lambda shown, outside: swap(shown, os.mkfifo),
    "device": lambda shown, outside: swap(
        shown, lambda path: os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    ),
    "another user's": lambda shown, outside: swap(shown, give_away),
    "parent": swap_parent,
    "outputs": replace_outputs,
}
BY_ROOT = ("device", "another user's")


@pytest.fixture(autouse=True)
def no_backups() -> Iterator[None]:
    yield
    for backup in list(Backups.open().newest_first()):
        backup.remove()


def make_places(tmp_path: Path) -> tuple[Path, Path]:
    shown, outside = tmp_path / "shown", tmp_path / "outside"
    for place in (shown, outside):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        (place / "file").write_text("secret")
    (shown / "a").mkdir()
    (shown / "outputs").mkdir()
    (shown / "a" / "file").write_text("before")
    return shown, outside


def run_together(*works: Callable[[], object]) -> None:
    """Run each in a thread, as nearly at once as that can be; raise what they raise."""
    start = threading.Barrier(len(works))
    errors: list[BaseException] = []

    def run(work: Callable[[], object]) -> None:
        start.wait(30)
        for _ in range(random.randrange(3000)):  # noqa: S311 - to meet at other places
            pass
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not errors, errors


def find_contents(shown: Path) -> list[str]:
    return [path.read_text() for path in shown.rglob("*") if path.is_file()]


@pytest.mark.parametrize("is_removed", [False, True], ids=["write", "remove"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[root_only] * (name in BY_ROOT)) for name in SWAPS]
)
def test_what_is_swapped_at_an_apply_is_kept_and_nothing_outside_is_written(
    name: str, is_removed: bool, tmp_path: Path
) -> None:
    for _ in range(ROUNDS):
        shown, outside = make_places(tmp_path)
        with open_root(shown) as root:
            (change,) = find(root, entry("a/file", "removed" if is_removed else "written")).changes
            disk = look(root, "a/file")
            backup = begin(root)
            work = Applying(root, backup)
            run_together(
                partial(work.apply, change, disk, io.BytesIO(b"new")),
                partial(SWAPS[name], shown, outside),
            )
            assert {path.name for path in outside.iterdir()} == {"file"}
            assert (outside / "file").read_text() == "secret"
            assert not [path for path in shown.rglob("*") if folder.is_aside(path.name)]
            assert (shown / "file").read_text() == "secret"
            here = shown / "moved" / "file" if name == "parent" else shown / "a" / "file"
            if name in ("file", "twice", "removed", "outputs", "another user's"):
                assert MINE in find_contents(shown)
            elif name == "parent":
                wanted = [] if is_removed else ["new"]
                found = [here.read_text()] if here.exists() else []
                assert found == (wanted if work.applied else ["before"])
            else:
                modes = [path.lstat().st_mode for path in here.parent.iterdir()]
                assert any(not stat.S_ISREG(mode) for mode in modes)
            undo(root, backup)
            assert (outside / "file").read_text() == "secret"
            if name in ("file", "twice", "removed", "outputs"):
                assert MINE in find_contents(shown)
            backup.remove()


def test_of_two_applies_at_once_one_is_refused(tmp_path: Path) -> None:
    for _ in range(ROUNDS):
        shown, _ = make_places(tmp_path)
        with open_root(shown) as root, open_root(shown) as other:
            works = [Applying(one, begin(one)) for one in (root, other)]
            (change,) = find(root, entry("a/file")).changes
            disk = look(root, "a/file")

            def do(number: int) -> None:
                content = io.BytesIO(b"%d" % number)
                works[number].apply(change, disk, content)  # noqa: B023 - ends in this round

            run_together(lambda: do(0), lambda: do(1))
            (winner,) = [number for number, work in enumerate(works) if work.applied]
            assert (shown / "a" / "file").read_text() == str(winner)
            assert undo_apply(works[winner].result.undo).undone == ("a/file",)
            assert find_contents(shown).count("before") == 1


def test_of_two_undos_at_once_nothing_is_lost(tmp_path: Path) -> None:
    for _ in range(ROUNDS):
        shown, _ = make_places(tmp_path)
        with open_root(shown) as root:
            work = Applying(root, begin(root))
            (change,) = find(root, entry("a/file")).changes
            work.apply(change, look(root, "a/file"), io.BytesIO(b"new"))
            name = work.result.undo

            def undo_it() -> None:
                with suppress(ChangesError):  # the other one was quicker
                    assert not undo_apply(name).refused  # noqa: B023 - ends in this round

            run_together(undo_it, undo_it)
        assert (shown / "a" / "file").read_text() == "before"


def test_an_undo_waits_for_its_apply_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, _ = make_places(tmp_path)
    with open_root(shown) as root:
        backup = begin(root)
        with backup.working():
            work = Applying(root, backup)
            (change,) = find(root, entry("a/file")).changes
            work.apply(change, look(root, "a/file"), io.BytesIO(b"new"))
            monkeypatch.setattr("gvisor_kernel.changes.backups.STEP_SECONDS", 0.01)
            with pytest.raises(ChangesError, match="cannot be undone now: another apply or undo"):
                undo_apply()
            with backup.step_lock():
                work.apply(change, look(root, "a/file"), io.BytesIO(b"new"))
            assert "another apply or undo is at work" in work.refused[-1].reason
            for _ in range(backups.MAX_KEPT + 2):
                begin(root)
            assert backup.directory.exists()  # an apply that is at work is kept
        assert undo_apply(backup.id).undone == ("a/file",)


def test_an_interrupted_apply_is_no_part_of_a_list(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / folder.new_name()).touch()
    with open_root(tmp_path) as root:
        found = find(root, entry("folder", "removed"))
    assert [change.path for change in found.changes] == ["folder"]
