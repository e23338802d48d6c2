"""Packed images: what goes in comes out, whoever ends it at any step; and what they take."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gvisor_kernel.errors import SnapshotError
from gvisor_kernel.runtimes.state import pages
from gvisor_kernel.runtimes.state.saved import mend, write_saved

PAGE = pages.PAGE


def make_noise(seed: int, count: int) -> bytes:
    """Return pages that have nothing in common."""
    return random.Random(seed).randbytes(count * PAGE)  # noqa: S311 - no secret


def make(folder: Path, name: str, **files: bytes) -> Path:
    image = folder / name / "image"
    image.mkdir(parents=True)
    for file, data in files.items():
        (image / file).write_bytes(data)
    return folder / name


def read(place: Path) -> dict[str, bytes]:
    pages.unpack(place)
    return {path.name: path.read_bytes() for path in (place / "image").iterdir()}


def measure(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    kinds = draw(st.lists(st.integers(0, 5), max_size=30))
    end = draw(st.binary(max_size=20))
    return b"".join(bytes([kind]) * PAGE for kind in kinds) + end


@settings(deadline=None, max_examples=30)
@given(st.lists(st.dictionaries(st.sampled_from("abc"), contents()), max_size=5), st.data())
def test_what_goes_in_comes_out(images: list[dict[str, bytes]], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        left = {}
        for number, files in enumerate(images):
            left[make(folder, f"n{number}", **files)] = files
            pages.pack_all(folder)
            if data.draw(st.booleans()):
                gone = data.draw(st.sampled_from(sorted(left)))
                shutil.rmtree(gone)
                del left[gone]
            pages.reclaim(folder)
        for place, files in left.items():
            assert read(place) == files
            pages.pack(place)
            assert read(place) == files


def test_another_image_costs_what_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "MIN_DEAD", 10)
    data = bytearray(make_noise(1, 500) + bytes(1500 * PAGE))
    for number in range(15):
        make(tmp_path, f"n{number}", pages=bytes(data))
        for at in range(5):
            data[(number * 5 + at) * PAGE] ^= 1
    pages.pack_all(tmp_path)
    assert measure(tmp_path) < (500 + 15 * 5) * PAGE + 15 * (4 * 2000 + 3 * PAGE)
    kept = tmp_path / "n14"
    for number in range(14):
        shutil.rmtree(tmp_path / f"n{number}")
    made = make(tmp_path, "own", pages=make_noise(2, 1200))
    pages.pack(made)
    shutil.rmtree(made)
    pages.reclaim(tmp_path)  # more than half is dead
    assert measure(tmp_path) < (500 + 16) * PAGE
    assert len(read(kept)["pages"]) == 2000 * PAGE


class Killed(BaseException):
    """The process ends at a step."""


STEPS = ("write", "fsync", "ftruncate", "rename", "replace", "unlink", "rmdir", "mkdir", "open")


def run_until(monkeypatch: pytest.MonkeyPatch, step: int, folder: Path) -> bool:
    """Pack all of a folder, but end at a step, and with half of a write; return whether it did."""
    count = 0
    with monkeypatch.context() as patched:
        for name in STEPS:
            real = getattr(os, name)

            def work(
                *args: object, real: object = real, name: str = name, **more: object
            ) -> object:
                nonlocal count
                count += 1
                if count == step:
                    if name == "write":
                        real(args[0], memoryview(args[1])[: len(args[1]) // 2])
                    raise Killed
                return real(*args, **more)

            patched.setattr(os, name, work)
        try:
            pages.pack_all(folder)
        except Killed:
            return True
    return False


def test_whoever_ends_it_at_any_step_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, was_ended = 0, True
    first, other = make_noise(3, 60), make_noise(4, 20)
    monkeypatch.setattr(pages, "MIN_DEAD", 10)
    while was_ended:
        step += 1
        folder = tmp_path / str(step)
        gone = make(folder, "gone", pages=first)
        one = make(folder, "one", pages=other, state=b"x" * 5000)
        pages.pack_all(folder)
        shutil.rmtree(gone)  # so that pages are written anew, too
        two = make(folder, "two", pages=other[PAGE:] + b"end", state=b"y")
        was_ended = run_until(monkeypatch, step, folder)
        expected = {one: (other, b"x" * 5000), two: (other[PAGE:] + b"end", b"y")}
        for again in (False, True):
            for place, (data, state) in expected.items():
                assert read(place) == {"pages": data, "state": state}, (step, again)
            pages.pack_all(folder)
        assert not list(folder.glob("*/image*"))
        assert measure(folder) < 40 * PAGE
        shutil.rmtree(folder)
    assert step > 20


@pytest.mark.parametrize("damage", ["pages", "index", "missing"])
def test_a_damaged_image_is_refused(tmp_path: Path, damage: str) -> None:
    place = make(tmp_path, "one", pages=make_noise(4, 20))
    pages.pack(place)
    (stored,) = (tmp_path / ".pages").glob("*.pages")
    if damage == "pages":
        with stored.open("r+b") as file:
            file.seek(5 * PAGE)
            file.write(b"!")
    elif damage == "index":
        index = place / "packed"
        index.write_bytes(index.read_bytes()[:-4])
    else:
        os.truncate(stored, 3 * PAGE)
    with pytest.raises(SnapshotError, match=r"damaged|read|written"):
        pages.unpack(place)
    assert not (place / "image").exists()
    assert not (place / "image.new").exists()


def damage(folder: Path, page: int) -> None:
    with (folder / ".pages" / "1.pages").open("r+b") as file:
        file.seek(page * PAGE)
        file.write(b"other")


def test_damaged_pages_stay_damaged_when_they_are_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "MIN_DEAD", 10)
    place = make(tmp_path, "one", pages=make_noise(5, 10))
    gone = make(tmp_path, "gone", pages=make_noise(6, 40))
    pages.pack(place)
    pages.pack(gone)
    damage(tmp_path, 5)
    shutil.rmtree(gone)
    pages.reclaim(tmp_path)
    assert (tmp_path / ".pages" / "2.pages").exists()
    with pytest.raises(SnapshotError, match="damaged"):
        pages.unpack(place)


def test_an_image_stays_whole_where_it_would_share_a_damaged_page(tmp_path: Path) -> None:
    data = make_noise(1, 4)
    pages.pack(make(tmp_path, "a", pages=data))
    with (tmp_path / pages.STORE / "1.pages").open("r+b") as file:
        file.write(b"damage")
    other = make(tmp_path, "b", pages=data)
    pages.pack_all(tmp_path)
    assert read(other) == {"pages": data}
    with pytest.raises(SnapshotError, match="damaged"):
        pages.unpack(tmp_path / "a")


@pytest.mark.parametrize("kind", ["pages", "digests"])
def test_numbers_of_lost_pages_are_not_given_again(tmp_path: Path, kind: str) -> None:
    data, other = make_noise(7, 20), make_noise(8, 30)
    place = make(tmp_path, "one", pages=data)
    pages.pack(place)
    os.truncate(tmp_path / ".pages" / f"1.{kind}", 0)
    second = make(tmp_path, "two", pages=other)
    pages.pack_all(tmp_path)
    pages.pack_all(tmp_path)
    assert read(second) == {"pages": other}
    if kind == "digests":
        assert read(place) == {"pages": data}
    else:
        with pytest.raises(SnapshotError, match="no page 1"):
            pages.unpack(place)


def test_an_image_that_cannot_be_read_does_not_keep_the_pages_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pages, "MIN_DEAD", 10)
    whole = make(tmp_path, "whole", pages=make_noise(9, 10))
    pages.pack(whole)
    lost = make(tmp_path, "lost", pages=make_noise(10, 40))
    pages.pack(lost)
    os.truncate(tmp_path / ".pages" / "1.pages", 30 * PAGE)
    pages.reclaim(tmp_path)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "lost" in caplog.text
    assert read(whole) == {"pages": make_noise(9, 10)}
    assert (tmp_path / ".pages" / "1.pages").exists()
    shutil.rmtree(lost)
    pages.reclaim(tmp_path)
    assert {path.stem for path in (tmp_path / ".pages").iterdir()} == {"2"}


def test_an_image_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make(tmp_path, "one", pages=make_noise(11, 5), state=b"x")
    pages.pack(place)
    flushed: set[str] = set()
    fsync, rename = os.fsync, os.rename

    def note(fd: int) -> None:
        flushed.add(Path(f"/proc/self/fd/{fd}").readlink().name)
        fsync(fd)

    def check(source: Path, target: Path) -> None:
        assert flushed >= {"pages", "state", "image.new"}
        rename(source, target)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "rename", check)
    pages.unpack(place)
    assert (place / "image").is_dir()


def test_the_folder_of_a_name_is_there_until_another_one_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "saved"
    rename = os.rename

    def write(text: str) -> None:
        write_saved(place, lambda image: None, lambda _: {"note": text})

    def fail(source: Path, target: Path) -> None:
        if target == place and source.name == "saved.new":
            assert (tmp_path / "saved.old" / "note").read_text() == "first"
            raise OSError
        rename(source, target)

    write("first")
    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", fail)
        with pytest.raises(OSError):  # noqa: PT011 - any
            write("second")
    assert (place / "note").read_text() == "first"
    write("second")
    assert (place / "note").read_text() == "second"
    assert list(tmp_path.iterdir()) == [place]
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
        monkeypatch.setattr(os, "rename", lambda a, b: os._exit(7) if b == place else rename(a, b))
        write("third")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved.new", "saved.old"]
    for _ in range(2):
        mend(tmp_path)
        assert (place / "note").read_text() == "second"
        assert list(tmp_path.iterdir()) == [place]
        shutil.copytree(place, tmp_path / "saved.old")


def test_pages_of_nobody_are_not_needed(tmp_path: Path) -> None:
    one = make(tmp_path, "one", pages=make_noise(12, 100))
    two = make(tmp_path, "two", pages=make_noise(12, 100) + make_noise(13, 50))
    gone = make(tmp_path, "gone", pages=make_noise(14, 300))
    pages.pack_all(tmp_path)
    shutil.rmtree(gone)
    whole = make(tmp_path, "whole", pages=make_noise(15, 50))
    sizes = [size // PAGE for size in pages.measure_needed([one, two, whole])]
    for size, expected in zip(sizes, (100, 150, 200), strict=True):
        assert expected <= size < expected + 10


def test_modes_are_private(tmp_path: Path) -> None:
    place = make(tmp_path, "one", pages=b"secret" * 1000)
    pages.pack(place)
    pages.unpack(place)
    for path in (tmp_path / ".pages", *(tmp_path / ".pages").iterdir(), place / "packed"):
        assert not path.stat().st_mode & 0o077
    assert not (place / "image" / "pages").stat().st_mode & 0o077
