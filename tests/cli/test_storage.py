"""``storage``: what pages keep, for people and for programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gvisor_kernel.artifacts.item import Artifact
from gvisor_kernel.artifacts.storage import Storage, open_personal, open_shared
from gvisor_kernel.cli.main import main
from gvisor_kernel.runtimes.mounts.covers import holds_keys, is_private

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Artifact, Artifact]:
    """Two pages that keep data: the first has some of a person's, and of all people."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    first, second = (Artifact.of_page(outputs, name) for name in ("a\x1b[31m.html", "b.html"))
    personal = open_personal()
    personal.set("me", first, "score", {"best": 3})
    personal.set("me", first, "text", "\x1b[31m" + "x" * 200)
    personal.set("me", second, "k", 1)
    open_shared(None).set(Storage.SHARED, first, "all", [1])
    return first, second


def test_nothing_is_said(capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert main(["storage", "list"]) == 0
    assert capsys.readouterr().out == "No page keeps anything.\n"
    assert main(["storage", "show", "x"]) == 1
    assert "There is no page 'x' that keeps anything." in capsys.readouterr().err


def test_pages_are_listed_and_shown(pages: tuple[Artifact, Artifact], capsys: Captured) -> None:
    first, second = pages
    assert main(["storage", "list"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert [line.split()[1] for line in out.splitlines()[1:]] == ["me", "me", "shared"]
    assert main(["storage", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {(one["id"], one["of"], one["keys"]) for one in listed} == {
        (first.id, "me", 2),
        (first.id, "shared", 1),
        (second.id, "me", 1),
    }
    assert main(["storage", "show", first.path]) == 0
    out = capsys.readouterr().out
    assert '  score  {"best": 3}\n' in out
    assert "  all  [1]\n" in out
    assert "\x1b" not in out
    assert "x" * 150 not in out


def test_a_page_is_exported_and_removed(
    pages: tuple[Artifact, Artifact], capsys: Captured, tmp_path: Path
) -> None:
    first, second = pages
    file = tmp_path / "export.json"
    assert main(["storage", "export", first.id[:8], "--file", str(file)]) == 0
    exported = json.loads(file.read_text())
    assert file.stat().st_mode & 0o777 == 0o600
    values = {key: item["value"] for one in exported for key, item in one["items"].items()}
    assert values["score"] == {"best": 3}
    assert values["all"] == [1]
    assert main(["storage", "export", first.id[:8], "--file", str(file)]) == 1
    assert "name a file that is not there" in capsys.readouterr().err
    assert main(["storage", "export", second.id]) == 0
    assert json.loads(capsys.readouterr().out)[0]["items"]["k"]["value"] == 1
    assert main(["storage", "remove", first.id]) == 0
    assert "Removed 2 keys" in capsys.readouterr().out
    assert main(["storage", "list", "--json"]) == 0
    assert [one["id"] for one in json.loads(capsys.readouterr().out)] == [second.id]
    assert main(["storage", "remove", ""]) == 0  # the only one


def test_a_value_that_cannot_be_exported_is_named_and_the_rest_is_exported(
    pages: tuple[Artifact, Artifact], capsys: Captured
) -> None:
    """A kernel's values are kept unparsed."""
    _, page = pages
    levels = ("deep", 900), ("deeper", 102)
    numbers = ("long", b"9" * 5000), ("large", b"[-1e999]")
    for key, value in (*((key, b"[" * n + b"]" * n) for key, n in levels), *numbers):
        open_personal().set_json("me", page, key, value)
    assert main(["storage", "export", page.id]) == 1
    out, err = capsys.readouterr()
    assert list(json.loads(out)[0]["items"]) == ["k"]
    assert all(f"The value of '{key}' is too deep, or" in err for key, _ in (*levels, *numbers))


def test_a_beginning_of_two_ids_is_refused(
    pages: tuple[Artifact, Artifact], capsys: Captured
) -> None:
    assert main(["storage", "remove", ""]) == 1
    assert "There is more than one page ''" in capsys.readouterr().err


def test_a_shared_folder_belongs_to_a_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    folder = tmp_path / "shared"
    assert main(["storage", "list", "--shared", str(folder)]) == 1
    assert "No such file" in capsys.readouterr().err
    folder.mkdir()
    folder.chmod(0o777)
    assert main(["storage", "list", "--shared", str(folder)]) == 1
    assert "everybody may write it" in capsys.readouterr().err
    folder.chmod(0o770)
    page = Artifact.of_page(tmp_path, "a.html")
    open_shared(folder).set(Storage.SHARED, page, "k", 1)
    assert all(path.stat().st_mode & 0o777 == 0o660 for path in folder.iterdir())
    assert main(["storage", "list", "--shared", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["of"] == "shared"


def test_no_kernel_is_shown_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    folder = open_personal().path.parent
    assert is_private(str(folder))
    assert is_private(str(folder.parent))
    assert holds_keys(str(folder))
