"""Outputs: what is listed and read while a kernel does what it likes with the folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gvisor_kernel.artifacts.item import Artifact
from gvisor_kernel.artifacts.outputs import (
    Bounds,
    Listing,
    check_path,
    find_type,
    list_outputs,
    open_output,
)
from gvisor_kernel.artifacts.page import Page, Tickets
from gvisor_kernel.errors import OutputsError
from gvisor_kernel.host.folders import Opened, open_real


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "outputs"
    folder.mkdir()
    return folder


@pytest.fixture
def root(folder: Path) -> Iterator[Opened]:
    with open_real(str(folder)) as opened:
        yield opened


def read(root: Opened, path: str) -> bytes:
    with open_output(root, path) as (file, status):
        content = file.read()
        assert len(content) == status.st_size
        return content


def test_newest_files_come_first(folder: Path, root: Opened) -> None:
    (folder / "sub").mkdir()
    for number, name in enumerate(("old.csv", "sub/new.html", "middle.png")):
        (folder / name).write_text(name)
        os.utime(folder / name, (0, (0, 20, 10)[number]))
    listing = list_outputs(root)
    assert [(file.path, file.size, file.modified, file.type) for file in listing.files] == [
        ("sub/new.html", 12, 20, "text/html"),
        ("middle.png", 10, 10, "image/png"),
        ("old.csv", 7, 0, "text/csv"),
    ]
    assert not listing.more
    assert read(root, "sub/new.html") == b"sub/new.html"
    assert read(root, "./sub/./new.html") == b"sub/new.html"


def test_odd_files_are_neither_listed_nor_read(folder: Path, root: Opened, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (folder / "link").symlink_to(secret)
    (folder / "out").symlink_to(tmp_path)
    os.mkfifo(folder / "fifo")
    (folder / ".hidden").write_text("x")
    (folder / "folder").mkdir()
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff")).write_text("x")
    (folder / "<b>\n&.html").write_text("x")
    listing = list_outputs(root)
    assert [file.path for file in listing.files] == ["<b>\n&.html"]
    kinds = [("fifo", "other"), ("link", "link"), ("out", "link")]
    assert sorted((file.path, file.kind) for file in listing.others) == kinds
    for path in ("link", "out/secret", "fifo", "folder", "missing", "../secret", "/etc/passwd"):
        with pytest.raises(OutputsError):
            read(root, path)
    assert read(root, "<b>\n&.html") == b"x"


@pytest.mark.parametrize(
    "path",
    ["", "/a", "a/", "a//b", "..", "a/../b", "a\0b", "\udcff", "x" * 1001, ".", ".a", "a/.b/c"],
)
def test_path_that_is_none_is_refused(path: str) -> None:
    with pytest.raises(OutputsError):
        check_path(path)


def test_a_look_is_bounded(folder: Path, root: Opened) -> None:
    for number in range(20):
        (folder / f"{number}.txt").touch()
    listing = list_outputs(root, bounds=Bounds(listed=15))
    assert (len(listing.files), listing.more) == (15, True)
    listing = list_outputs(root, bounds=Bounds(looked_at=10))
    assert (len(listing.files), listing.more) == (10, True)
    assert list_outputs(root, bounds=Bounds(seconds=-1.0)) == Listing((), more=True)
    deep = folder
    for _ in range(60):
        deep /= "d"
        deep.mkdir()
    (deep / "x").touch()
    listing = list_outputs(root)
    assert (len(listing.files), listing.more) == (20, True)


def test_a_ticket_names_what_was_opened(folder: Path, root: Opened, tmp_path: Path) -> None:
    tickets = Tickets()
    (folder / "sub").mkdir()
    page = Page.read_from(root, "sub/a.html")
    ticket = tickets.seal(page, "ann")
    assert tickets.read(ticket, "ann") == page
    assert page.artifact.path == f"{folder}/sub/a.html"
    with page.open_root() as opened:
        assert opened.identity == root.identity
    # A kernel, or another program, puts another folder in its place.
    folder.rename(tmp_path / "moved")
    folder.mkdir()
    with pytest.raises(OutputsError, match="not there any more"):
        page.open_root()
    folder.rmdir()
    folder.symlink_to(tmp_path / "moved")
    with pytest.raises(OutputsError, match="not there any more"):
        page.open_root()


def test_a_folder_that_is_swapped_does_not_make_a_page_another(
    folder: Path, root: Opened, tmp_path: Path
) -> None:
    private = tmp_path / "private"
    private.mkdir()
    (folder / "a.html").write_text("evil")
    assert read(root, "a.html") == b"evil"
    folder.rename(tmp_path / "moved")
    folder.symlink_to(private)
    page = Page.read_from(root, "a.html")
    assert page.artifact.path == f"{folder}/a.html"
    assert page.artifact.id != Artifact.of_page(private, "a.html").id


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.html", "text/html"),
        ("sub/A.HTML", "text/html"),
        ("data:text/html,x", "application/octet-stream"),
        ("data:x/\r\nX: y,z", "application/octet-stream"),
        ("http://x/y.png", "image/png"),
        ("none", "application/octet-stream"),
    ],
)
def test_a_type_is_that_of_the_ending(name: str, expected: str) -> None:
    assert find_type(name) == expected


def test_a_ticket_of_the_longest_path_is_read(root: Opened) -> None:
    tickets = Tickets()
    path = "/".join(["😀" * 63] * 15 + ["a.html"])
    page = Page.read_from(root, path, of_contents=True)
    assert tickets.read(tickets.seal(page, "ann"), "ann") == page


def test_a_ticket_is_one_persons(root: Opened) -> None:
    tickets = Tickets()
    ticket = tickets.seal(Page.read_from(root, "a.html"), "ann")
    for owner in ("bob", "", "ann ", "\ud800"):
        with pytest.raises(OutputsError):
            tickets.read(ticket, owner)


def test_a_forged_ticket_is_refused(root: Opened) -> None:
    tickets = Tickets()
    ticket = tickets.seal(Page.read_from(root, "a.html"), "ann")
    other = tickets.seal(Page.read_from(root, "b.html"), "ann")
    content, signature = ticket.split(".")
    forged = (
        *("", ".", "x", content, f"{content}.", f".{signature}", f"{content}.é", f"é.{signature}"),
        f"{other.split('.')[0]}.{signature}",
        Tickets().seal(Page.read_from(root, "a.html"), "ann"),
        None,
        "x" * 100_000,
    )
    for text in forged:
        with pytest.raises(OutputsError, match="open it again"):
            tickets.read(text, "ann")
