"""What a sandbox says of its changes is checked, and compared with the folder on disk."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel.changes import compare as module
from gvisor_kernel.changes.change import (
    MAX_CHANGES,
    Change,
    Changes,
    ChangesError,
    encode_changes,
    is_path,
    select,
)
from gvisor_kernel.changes.compare import read_claims

from .helpers import entry, find, open_root


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "..",
        "a/../b",
        "a//b",
        "./a",
        "a/.",
        "a\0b",
        "\ud800",
        "x" * 256,
        "a/" * 3000,
    ],
)
def test_a_path_that_leads_elsewhere_is_none(path: str) -> None:
    assert not is_path(path)
    with pytest.raises(ChangesError):
        read_claims({"entries": [entry(path)], "total": 1, "more": False})


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"entries": 3, "total": 1},
        {"entries": [], "total": -1},
        {"entries": [], "total": True},
        {"entries": [entry("a"), entry("a")], "total": 2},
        {"entries": [["a"]], "total": 1},
        {"entries": [entry("a", "link")], "total": 1},
        {"entries": [entry("a", what="device")], "total": 1},
        {"entries": [entry("a", size=-1)], "total": 1},
        {"entries": [entry("a", size=2**63)], "total": 1},
        {"entries": [entry("a", digest="0" * 63)], "total": 1},
        {"entries": [entry(str(n)) for n in range(MAX_CHANGES + 1)], "total": 1},
    ],
)
def test_an_answer_that_is_none_is_refused(answer: dict[str, Any]) -> None:
    with pytest.raises(ChangesError):
        read_claims(answer)


def test_names_with_markup_and_controls_are_names_like_others() -> None:
    name = "<img src=x onerror=alert(1)>\x1b[2J\u202e"
    claims, _, _ = read_claims({"entries": [entry(name)], "total": 1, "more": False})
    assert list(claims) == [name]


def test_added_changed_and_removed_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "same").write_text("abc")
    (tmp_path / "other").write_text("abc")
    (tmp_path / "gone").write_text("abc")
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "deep" / "file").write_text("abc")
    digest = hashlib.sha256(b"abc").hexdigest()
    with open_root(tmp_path) as root:
        found = find(
            root,
            entry("same", digest=digest),
            entry("other", digest="0" * 64),
            entry("new"),
            entry("gone", "removed"),
            entry("never", "removed"),
            entry("folder", "removed"),
            entry("made", what="folder"),
        )
    assert [(c.path, c.kind, c.type) for c in found.changes] == [
        ("folder", "removed", "folder"),
        ("folder/deep", "removed", "folder"),
        ("folder/deep/file", "removed", "file"),
        ("gone", "removed", "file"),
        ("made", "added", "folder"),
        ("new", "added", "file"),
        ("other", "changed", "file"),
    ]
    assert not any(change.conflict for change in found.changes)


def test_what_a_project_hides_is_neither_replaced_nor_removed(tmp_path: Path) -> None:
    """The kernel saw nothing of it: a line that it adds to .gitignore is all that its file has."""
    (tmp_path / "data/.dvc").mkdir(parents=True)
    for path in (".gitignore", "data/.dvc/x", "data/seen"):
        (tmp_path / path).write_text("abc")
    said = [entry(".gitignore"), entry("data", "removed"), entry(".new")]
    with open_root(tmp_path) as root:
        found = {change.path: change for change in find(root, *said, hides=True).changes}
        assert {path for path, change in found.items() if change.is_refused} == {
            *(".gitignore", "data/.dvc", "data/.dvc/x")
        }
        assert found[".gitignore"].conflict == module.HIDDEN
        assert not any(change.is_refused for change in find(root, *said).changes)


def test_a_file_that_was_changed_on_disk_since_the_start_is_a_conflict(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("abc")
    with open_root(tmp_path) as root:
        (change,) = find(root, entry("a"), started=1.0).changes
        assert change.conflict == module.LATER
        assert not change.is_refused
        (removed,) = find(root, entry("a", "removed"), started=1.0).changes
        assert removed.conflict == module.LATER
        ours = {change.state.split(" ")[0]: None}
        (known,) = find(root, entry("a"), started=1.0, ours=ours).changes
        assert known.conflict is None


def test_links_and_special_files_are_refused_on_both_sides(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file").write_text("abc")
    shown = tmp_path / "shown"
    shown.mkdir()
    (shown / "link").symlink_to(secret)
    os.mkfifo(shown / "fifo")
    (shown / "folder").mkdir()
    with open_root(shown) as root:
        found = find(
            root,
            entry("a", what="other"),
            entry("link/file"),
            entry("link"),
            entry("fifo"),
            entry("folder"),
        )
    assert {c.path for c in found.changes if c.is_refused} == {*("a", "link/file", "link", "fifo")}


def test_another_type_is_a_conflict_with_all_that_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    (tmp_path / "file").touch()
    with open_root(tmp_path) as root:
        found = find(root, entry("folder"), entry("file", what="folder"))
    assert [(c.path, c.kind, c.type, bool(c.conflict), c.is_refused) for c in found.changes] == [
        ("file", "changed", "folder", True, False),
        ("folder", "changed", "file", True, False),
        ("folder/file", "removed", "file", False, False),
    ]


def test_only_so_many_changes_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CHANGES", 5)
    (tmp_path / "folder").mkdir()
    for number in range(20):
        (tmp_path / "folder" / str(number)).touch()
    with open_root(tmp_path) as root:
        found = find(root, entry("folder", "removed"))
    assert len(found.changes) == 5
    assert found.more


def test_names_that_are_not_utf_8_are_not_listed_but_counted(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in (b"folder/known", b"folder/\xff"):
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))).touch()  # noqa: PTH118
    with open_root(tmp_path) as root:
        found = find(root, entry("folder", "removed"))
    assert [change.path for change in found.changes] == ["folder", "folder/known"]
    assert found.more
    assert encode_changes(found)


def test_a_path_selects_what_is_below_it_and_new_folders_above_it(tmp_path: Path) -> None:
    with open_root(tmp_path) as root:
        found = find(
            root, entry("a", what="folder"), entry("a/b", what="folder"), entry("a/b/c"), entry("d")
        )
    assert {c.path for c in select(found, ["/workspace/a/b"])} == {"a", "a/b", "a/b/c"}
    with pytest.raises(ChangesError, match="not changed"):
        select(found, ["nothing"])


def test_files_that_may_run_by_themselves_are_told_with_the_reason(tmp_path: Path) -> None:
    for name in ("tool.py", "plain.py", "conftest.py"):
        (tmp_path / name).write_text("old")
    (tmp_path / "tool.py").chmod(0o755)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "index").touch()
    entries = [entry(name) for name in ("tool.py", "plain.py", "data.csv", "sub/Makefile")]
    entries += [entry(".git", what="folder"), entry(".git/config"), entry("Makefile", what="other")]
    entries += [entry("conftest.py", "removed"), entry(".git/index", "removed")]
    with open_root(tmp_path) as root:
        found = {change.path: change for change in find(root, *entries).changes}
    assert {path for path, change in found.items() if change.runs is not None} == {
        "tool.py",
        "sub/Makefile",
        ".git/config",
        ".git/index",
    }
    assert found["tool.py"].runs == "it is executable on disk"
    forced = {path for path, change in found.items() if change.conflict and not change.is_refused}
    assert forced == {".git/config", ".git/index"}


def test_a_token_is_of_one_path_and_state(tmp_path: Path) -> None:
    with open_root(tmp_path) as root:
        first, second = find(root, entry("a", digest="0" * 64), entry("b", digest="0" * 64)).changes
        (other,) = find(root, entry("a", digest="1" * 64)).changes
        assert find(root, entry("a", digest="0" * 64)).changes == (first,)
    assert len({first.token, second.token, other.token}) == 3
    assert re.fullmatch(r"[a-z2-7]{32}", first.token)


def test_changes_are_encoded_with_further_members() -> None:
    changes = tuple(Change(f"p{n}", "added", "file", n, None, "s") for n in range(3))
    found = Changes(changes, True, 9)
    content = {**asdict(found), "changes": list(map(asdict, changes)), "diffs": {"p1": "+x"}}
    assert json.loads(encode_changes(found, diffs={"p1": "+x"})) == content
