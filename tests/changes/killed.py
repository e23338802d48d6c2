"""Applies and undoes changes in children that kill themselves before their N-th call that changes a
file, for each N, and checks what is on disk afterwards. Or that call fails, with an error of disks;
with ENOSPC all later ones that need room.

A program: it forks, and must have one thread. ``killed.py WHAT FAULT PLACE STEP``; FAULT is KILL or
the name of an error; only each STEP-th call is tried. The state directory is that of the
environment.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gvisor_kernel.changes import folder, kernel_changes
from gvisor_kernel.changes.apply import clear_all, undo_apply
from gvisor_kernel.changes.backups import Backups
from gvisor_kernel.changes.change import RefusedChange
from gvisor_kernel.errors import GvisorKernelError

from .helpers import apply, begin, entry, find, open_root

MAX_CALLS = 160
"""More than there are."""
WORDS = (
    *("disk", "quota", "only be read", "takes long", "not empty", "is not there", "cannot be kept"),
    *("has changed on disk", "cannot be used", "state directory", "cannot be read"),
    "nothing to undo",
)
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


def break_before(number: int, fault: str) -> None:
    """Let this process end by SIGKILL before a call that changes a file, or that call fail."""
    count = 0

    def wrap(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == number and fault == "KILL":
                os.kill(os.getpid(), signal.SIGKILL)
            needs_room = name in ("write", "mkdir", "fsync") or (
                name == "open" and is_writing(arguments)
            )
            is_last = count == number and fault != "ENOSPC"
            if is_last or (count >= number and fault == "ENOSPC" and needs_room):
                return fail(name, fault)
            return call(*arguments, **options)

        return counted

    for name in CALLS:
        setattr(os, name, wrap(name, getattr(os, name)))
    rename = wrap("renameat2", folder._libc.renameat2)
    folder._libc = type("Library", (), {"renameat2": staticmethod(rename)})  # type: ignore[assignment]


def is_writing(arguments: tuple[Any, ...]) -> bool:
    return bool(arguments[1] & os.O_CREAT)


def fail(name: str, fault: str) -> int:
    code = getattr(errno, fault)
    if name == "renameat2":
        ctypes.set_errno(code)
        return -1
    raise OSError(code, os.strerror(code))


def run(number: int, fault: str, work: Callable[[], object]) -> int:
    """Run ``work`` in a child; return its exit code: whether something was refused. -1: killed."""
    child = os.fork()
    if not child:
        try:
            break_before(number, fault)
            result = work()
        except GvisorKernelError as error:
            check_words(error.fact)
            os._exit(1)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(2)
        os._exit(bool(result))
    _, status = os.waitpid(child, 0)
    code = -1 if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)
    assert code < 2, f"call {number}"
    return code


def check_words(text: str) -> None:
    """A person can read why something was refused."""
    assert any(word in text for word in WORDS), text


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


def apply_all(place: Path) -> list[RefusedChange]:
    with open_root(place) as root:
        backup = begin(root)
        with ExitStack() as stack:
            kernel_changes._enter(stack, backup)
            result = apply(root, backup, find(root, *CLAIMS))
        for one in result.refused:
            check_words(one.reason)
        return list(result.refused)


def undo_again(name: str) -> list[RefusedChange]:
    result = undo_apply(name)
    for one in result.refused:
        check_words(one.reason)
    return list(result.refused)


def check_each(place: Path, number: int) -> None:
    """Each path is as before or as applied; nothing is half written."""
    for name, content in read(place).items():
        if not folder.is_aside(name.rpartition("/")[2]):
            known = [side[name] for side in (OLD, NEW) if name in side]
            assert content in known, (number, name, content)
    for name, content in OLD.items():  # what was not removed on purpose is there
        if NEW.get(name, b"") is not None and name in NEW:
            assert name in read(place), (number, name, content)


def undo_last(place: Path, number: int, fault: str) -> None:
    """Whatever was applied before the end is undone without a question left."""
    clear_all()
    left = [path for path in place.rglob("*") if folder.is_aside(path.name)]
    if fault == "EIO":  # its removal itself may have failed
        for path in left[:1]:
            path.rmdir() if path.is_dir() else path.unlink()
    else:
        assert not left, (number, left)
    check_each(place, number)
    backups = list(Backups.open().newest_first())
    if backups and backups[0].left():
        result = undo_apply(backups[0].id)
        assert not result.refused, (number, result.refused)
    assert read(place) == dict(sorted(OLD.items())), (number, read(place))


def forget() -> None:
    for backup in list(Backups.open().newest_first()):
        backup.remove()


def try_apply(place: Path, number: int, fault: str) -> int:
    fill(place)
    code = run(number, fault, lambda: apply_all(place))
    check_each(place, number)
    undo_last(place, number, fault)
    forget()
    return code


def try_undo(place: Path, number: int, fault: str) -> int:
    fill(place)
    assert not apply_all(place)
    assert read(place) == dict(sorted(NEW.items()))
    (backup,) = Backups.open().newest_first()
    code = run(number, fault, lambda: undo_again(backup.id))
    check_each(place, number)
    undo_last(place, number, fault)
    forget()
    return code


def main() -> None:
    what, fault, place, step = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
    attempt = {"apply": try_apply, "undo": try_undo}[what]
    number = 1
    while number < MAX_CALLS:
        code = attempt(place, number, fault)
        if fault == "KILL" and code == 0:
            break
        number += step
    print(number)


if __name__ == "__main__":
    main()
