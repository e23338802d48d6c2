"""Applies and undoes changes in children that kill themselves before their N-th call that changes a
file, for each N, and checks what is on disk afterwards. A program: it forks, and must have one
thread. ``killed.py WHAT PLACE STEP``; only each STEP-th call is
tried. The state directory is that of the environment.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gvisor_kernel.changes import folder
from gvisor_kernel.changes.backups import Backups
from gvisor_kernel.changes.kernel_changes import clear_all, undo_apply

from .helpers import apply, begin, entry, find, open_root

CALLS = ("open", "write", "rename", "unlink", "mkdir", "rmdir", "fsync", "fchmod", "ftruncate")
OLD: dict[str, bytes | None] = {
    **dict.fromkeys(("changed", "gone", "type", "was/file"), b"old"),
    **dict.fromkeys(("was", "empty", "kind")),
}
"""What is on disk at first; None is a folder."""
NEW: dict[str, bytes | None] = {
    **dict.fromkeys(("changed", "added", "folder/file", "kind"), b"new"),
    **dict.fromkeys(("folder", "type")),
}
CLAIMS = [
    *(entry("changed"), entry("added"), entry("gone", "removed"), entry("was", "removed")),
    *(entry("empty", "removed"), entry("folder", what="folder"), entry("folder/file")),
    *(entry("type", what="folder"), entry("kind")),
]


def kill_before(number: int) -> None:
    """Let this process end by SIGKILL before a call that changes a file."""
    count = 0

    def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return counted

    for name in CALLS:
        setattr(os, name, wrap(getattr(os, name)))
    rename = wrap(folder._libc.renameat2)
    folder._libc = type("Library", (), {"renameat2": staticmethod(rename)})  # type: ignore[assignment]


def run(number: int, work: Callable[[], object]) -> bool:
    """Run ``work`` in a child; return whether it was killed."""
    child = os.fork()
    if not child:
        kill_before(number)
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.waitstatus_to_exitcode(status) == 0, f"call {number}"
    return False


def read(place: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(place)): None if path.is_dir() else path.read_bytes()
        for path in sorted(place.rglob("*"))
    }


def fill(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for name, content in sorted(OLD.items()):
        if content is None:
            (place / name).mkdir()
        else:
            (place / name).write_bytes(content)


def apply_all(place: Path) -> None:
    with open_root(place) as root:
        backup = begin(root)
        with backup.working():
            result = apply(root, backup, find(root, *CLAIMS))
        assert not result.refused, result.refused


def check_each(place: Path, number: int) -> None:
    """Each path is as before or as applied; nothing is half written."""
    for name, content in read(place).items():
        if not folder.is_aside(name.rpartition("/")[2]):
            known = [side[name] for side in (OLD, NEW) if name in side]
            assert content in known, (number, name, content)
    for name, content in OLD.items():  # what was not removed on purpose is there
        if NEW.get(name, b"") is not None and name in NEW:
            assert name in read(place), (number, name, content)


def undo_last(place: Path, number: int) -> None:
    """Whatever was applied before the end is undone without a question left."""
    clear_all()
    assert not [name for name in read(place) if folder.PREFIX in name], number
    check_each(place, number)
    backups = list(Backups.open().newest_first())
    if backups and backups[0].left():
        result = undo_apply(backups[0].id)
        assert not result.refused, (number, result.refused)
    assert read(place) == dict(sorted(OLD.items())), (number, read(place))


def forget() -> None:
    for backup in list(Backups.open().newest_first()):
        backup.remove()


def try_apply(place: Path, number: int) -> bool:
    fill(place)
    was_killed = run(number, lambda: apply_all(place))
    check_each(place, number)
    undo_last(place, number)
    forget()
    return was_killed


def try_undo(place: Path, number: int) -> bool:
    fill(place)
    apply_all(place)
    assert read(place) == dict(sorted(NEW.items()))
    (backup,) = Backups.open().newest_first()
    was_killed = run(number, lambda: undo_apply(backup.id))
    check_each(place, number)
    undo_last(place, number)
    forget()
    return was_killed


def main() -> None:
    what, place = sys.argv[1], Path(sys.argv[2])
    attempt = {"apply": try_apply, "undo": try_undo}[what]
    number, step = 1, int(sys.argv[3])
    while attempt(place, number):
        number += step
    print(number)


if __name__ == "__main__":
    main()
