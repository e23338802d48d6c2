"""What was applied after a checkpoint, and is undone at a rewind if somebody says so."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gvisor_kernel import Sandbox
from gvisor_kernel.changes.apply import SINCE, find_applies
from gvisor_kernel.changes.backups import Backups
from gvisor_kernel.cli.main import main

from ..api.test_hibernation import find_listed
from ..terminal import terminal

READ = "[open(path).read() for path in ('early', 'late', 'edited')]"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A notebook's folder."""
    place = tmp_path / "notebooks"
    place.mkdir()
    for name in ("early", "late", "edited"):
        (place / name).write_text("old")
    return place


@pytest.fixture
def sandbox(folder: Path, tmp_path: Path) -> Iterator[Sandbox]:
    with Sandbox(uploads=folder, outputs=tmp_path / "outputs", memory="1G") as made:
        yield made
    for backup in list(Backups.open().newest_first()):
        backup.remove()


def write(sandbox: Sandbox, *names: str, text: str = "new") -> str:
    """Let the kernel write files, and apply them; return the id for undo."""
    sandbox.run(f"for name in {names}: open(name, 'w').write({text!r})")
    applied = sandbox.apply(sandbox.changes().changes)
    assert applied.applied == tuple(sorted(names))
    assert applied.undo is not None
    return applied.undo


def read(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_rewind_undoes_what_was_applied_since_and_says_what_stays(
    sandbox: Sandbox, folder: Path, tmp_path: Path
) -> None:
    write(sandbox, "early")
    sandbox.checkpoint("one")
    output = "/mnt/user-data/outputs/a"
    write(sandbox, "added", "edited", "late")
    last = write(sandbox, "late", text="newer")
    sandbox.run(f"open({output!r}, 'w').write('1')")
    (folder / "edited").write_text("by hand")
    before = read(folder)
    changes = sandbox.rewind("one", undo_applied=True)
    assert changes.added == ("a",)
    assert changes.undone == ("late", "added")
    assert [(it.path, it.reason) for it in changes.refused] == [("edited", SINCE)]
    assert read(folder) == {"early": "new", "late": "old", "edited": "by hand"}
    assert sandbox.run(READ).text == "['new', 'old', 'by hand']"
    assert (tmp_path / "outputs" / "a").read_text() == "1"  # of outputs nothing is kept
    directory = find_listed(sandbox).directory
    assert last not in {one.undo for one in find_applies(directory)}
    assert find_applies(directory.with_name("another")) == []
    # what was undone comes back as it came: from the kernel
    sandbox.rewind("before-rewind", undo_applied=True)
    sandbox.apply([one for one in sandbox.changes().changes if one.path != "edited"])
    assert read(folder) == before
    changes = sandbox.rewind("one")  # nobody says so
    assert (changes.added, changes.undone, changes.refused) == (("a",), (), ())
    assert read(folder) == before
    # the kernel had no copies of these then, and sees the folder
    assert sandbox.run(READ).text == "['new', 'newer', 'by hand']"


def test_what_was_shown_at_a_terminal_is_undone_and_nothing_else(
    sandbox: Sandbox, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sandbox.checkpoint("one")
    undo = write(sandbox, "early", "edited", "a\x1b[2J")
    name = find_listed(sandbox).id
    assert main(["rewind", name, "one", "--undo-applied"]) == 1
    assert "without a terminal nobody sees what would be undone.\nWhat to do: leave " in (
        said := capsys.readouterr().err
    )
    assert f"gvisor-kernel undo {undo}" in said
    command = [sys.executable, "-m", "gvisor_kernel", "rewind", name, "one", "--undo-applied"]
    for answer in ("n\n", "y\n"):
        with terminal(command, os.environ) as person:
            person.expect("[y/N] ")
            assert "Applied since then: a\\x1b[2J\nApplied since then: early\n" in person.text
            if answer == "y\n":
                (folder / "edited").write_text("by hand")  # and another apply comes meanwhile
                write(sandbox, "late", "early", text="newer")
            person.type(answer)
            assert person.wait() == 1
        if answer == "n\n":
            assert sandbox.run("open('early').read()").text == "'new'"
            assert len(list(folder.iterdir())) == 4
    assert "Undone a\\x1b[2J\n" in person.text
    for path in ("early", "edited"):
        assert f"Refused {path}: {SINCE}" in person.text
    assert read(folder) == {"early": "newer", "late": "newer", "edited": "by hand"}
    assert main(["rewind", name, "one"]) == 0
    assert f"What was applied since stays. To undo it: gvisor-kernel undo {undo}" in (
        capsys.readouterr().out
    )
