"""Copying what a kernel may have left in its outputs into the folder of the host."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gvisor_kernel.errors import ArchiveError
from gvisor_kernel.host.folders import Opened, open_path
from gvisor_kernel.runtimes.copies.contents import list_files
from gvisor_kernel.runtimes.copies.outputs import OutputsCopy

OLD = 1_600_000_000


def entry(
    name: str,
    content: bytes = b"",
    *,
    kind: bytes = tarfile.REGTYPE,
    target: str = "",
    mode: int = 0o644,
    mtime: int = OLD,
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.mtime = kind, target, mode, mtime
    info.size = len(content)
    return info, content


def pack(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def in_pieces(data: bytes, size: int = 700) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


_held: list[Opened] = []


def hold(folder: Path) -> Opened:
    """Open ``folder`` until the test ends."""
    _held.append(open_path(str(folder)))
    return _held[-1]


@pytest.fixture(autouse=True)
def close_held() -> Iterator[None]:
    yield
    while _held:
        _held.pop().close()


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    path = tmp_path / "outputs"
    path.mkdir()
    return path


def copy_out(
    outputs: Path, *entries: tuple[tarfile.TarInfo, bytes], **copied: tuple[int, int]
) -> OutputsCopy:
    copy = OutputsCopy(hold(outputs), copied)
    copy.take(in_pieces(pack(entry("./", kind=tarfile.DIRTYPE), *entries)))
    return copy


def tree(folder: Path) -> dict[str, str]:
    """Return what is in ``folder``, by name: a file's text, a link's target, "/" for a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        shown = path.readlink() if path.is_symlink() else "/" if path.is_dir() else path.read_text()
        found[str(path.relative_to(folder))] = str(shown)
    return found


def test_files_folders_and_links_are_copied(outputs: Path) -> None:
    copy = copy_out(
        outputs,
        entry("./a", b"one"),
        entry("./sub", kind=tarfile.DIRTYPE, mode=0o700),
        entry("./sub/b", b"two", mode=0o755),
        entry("./link", kind=tarfile.SYMTYPE, target="sub/b"),
        entry("./same", kind=tarfile.LNKTYPE, target="./a"),
    )
    assert tree(outputs) == {"a": "one", "sub": "/", "sub/b": "two", "link": "sub/b", "same": "one"}
    assert (outputs / "a").stat().st_mtime == OLD
    assert (outputs / "sub/b").stat().st_mode & 0o777 == 0o755
    assert copy.left_out == 0


def test_copies_belong_to_the_owner_of_the_folder(outputs: Path) -> None:
    if os.geteuid() == 0:
        os.chown(outputs, 4711, 4712)
    copy_out(outputs, entry("./sub", kind=tarfile.DIRTYPE), entry("./sub/a", b"x"))
    wanted = outputs.stat()
    for path in (outputs / "sub", outputs / "sub/a"):
        assert (path.stat().st_uid, path.stat().st_gid) == (wanted.st_uid, wanted.st_gid)


@pytest.mark.parametrize(
    "odd",
    [
        entry("/absolute", b"x"),
        entry("../above", b"x"),
        entry("./a/../../above", b"x"),
        entry("./line\nbreak", b"x"),
        entry("./bytes\udcff", b"x"),
        entry("./" + "deep/" * 120 + "x", b"x"),
        entry("./long" + "g" * 300, b"x"),
        entry("./device", kind=tarfile.CHRTYPE),
        entry("./pipe", kind=tarfile.FIFOTYPE),
        entry("./strange", kind=b"Z"),
        entry("./gone", kind=tarfile.LNKTYPE, target="./not there"),
        entry("./passwd", kind=tarfile.LNKTYPE, target="/etc/passwd"),
        entry("./nowhere", kind=tarfile.SYMTYPE, target=""),
    ],
    ids=lambda odd: ascii(odd[0].name)[:30],
)
def test_odd_entries_are_left_out_and_the_rest_is_copied(
    outputs: Path, odd: tuple[tarfile.TarInfo, bytes]
) -> None:
    with io.BytesIO() as packed:
        archive = tarfile.open(  # noqa: SIM115 - closed explicitly below
            fileobj=packed, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape"
        )
        for info, content in (entry("./before", b"1"), odd, entry("./zlast", b"2")):
            archive.addfile(info, io.BytesIO(content))
        archive.close()
        copy = OutputsCopy(hold(outputs), {})
        copy.take(in_pieces(packed.getvalue()))
    assert tree(outputs) == {"before": "1", "zlast": "2"}
    assert copy.left_out >= 1
    assert sorted(path.name for path in outputs.parent.iterdir()) == ["outputs"]


def test_no_file_is_written_through_a_link(outputs: Path, tmp_path: Path) -> None:
    """Neither a link of the archive, nor one that was there before."""
    (tmp_path / "host").mkdir()
    (outputs / "planted").symlink_to(tmp_path / "host")
    copy_out(
        outputs,
        entry("./way", kind=tarfile.SYMTYPE, target=str(tmp_path / "host")),
        entry("./way/file", b"x"),
        entry("./planted/file", b"x"),
        entry("./file", kind=tarfile.SYMTYPE, target=str(tmp_path / "host" / "new")),
        entry("./file", b"y"),
    )
    assert not list((tmp_path / "host").iterdir())
    assert (outputs / "file").read_text() == "y"
    assert not (outputs / "file").is_symlink()


def test_set_uid_bits_are_removed(outputs: Path) -> None:
    copy_out(
        outputs, entry("./a", b"x", mode=0o6777), entry("./d", kind=tarfile.DIRTYPE, mode=0o7777)
    )
    for name in ("a", "d"):
        assert not (outputs / name).stat().st_mode & (stat.S_ISUID | stat.S_ISGID)


def test_file_replaces_a_folder_and_folder_replaces_a_file(outputs: Path) -> None:
    (outputs / "was folder" / "full").mkdir(parents=True)
    (outputs / "was file").write_text("x")
    copy_out(
        outputs,
        entry("./was folder", b"file"),
        entry("./was file", kind=tarfile.DIRTYPE),
        entry("./was file/in it", b"x"),
    )
    assert tree(outputs) == {"was folder": "file", "was file": "/", "was file/in it": "x"}


def test_unchanged_files_are_not_written(outputs: Path) -> None:
    """A user may have changed them on the host meanwhile."""
    (outputs / "a").write_text("of the host")
    copy = copy_out(outputs, entry("./a", b"one"), entry("./b", b"two"), a=(3, OLD), b=(2, OLD))
    assert tree(outputs) == {"a": "of the host", "b": "two"}
    assert copy.written == 1
    assert copy.seen == {"a": (3, OLD), "b": (3, OLD)}


def test_recently_changed_files_are_not_listed(outputs: Path) -> None:
    """A change of the same size within the same second would be missed."""
    for name, at in (("old", OLD), ("new", time.time())):
        (outputs / name).write_text("x")
        os.utime(outputs / name, (at, at))
    assert list_files(hold(outputs)) == {"old": (1, OLD)}


def test_mode_of_the_outputs_folder_does_not_change(outputs: Path) -> None:
    outputs.chmod(0o750)
    copy = OutputsCopy(hold(outputs), {})
    copy.take(iter([pack(entry("./", kind=tarfile.DIRTYPE, mode=0o777))]))
    assert outputs.stat().st_mode & 0o777 == 0o750


def test_truncated_archive_keeps_only_whole_files(outputs: Path) -> None:
    """Not even a part of the last file is written."""
    archive = pack(entry("./a", b"one"), entry("./b", bytes(10_000)))
    (outputs / "b").write_text("old")
    with pytest.raises(ArchiveError, match="truncated"):
        OutputsCopy(hold(outputs), {}).take(in_pieces(archive[:5000]))
    assert tree(outputs) == {"a": "one", "b": "old"}


def test_file_larger_than_the_disk_is_an_error(outputs: Path) -> None:
    info = tarfile.TarInfo("./huge")
    info.size = 2**62
    with pytest.raises(OSError, match="room for"):
        OutputsCopy(hold(outputs), {}).take(iter([info.tobuf(tarfile.PAX_FORMAT), bytes(512)]))
    assert tree(outputs) == {}


def test_copy_stops_at_the_deadline(outputs: Path) -> None:
    with pytest.raises(TimeoutError):
        OutputsCopy(hold(outputs), {}, seconds=-1).take(iter([pack(entry("./a", b"x"))]))
    assert tree(outputs) == {}


def test_too_many_entries_are_refused(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gvisor_kernel.runtimes.copies.outputs.MAX_ENTRIES", 2)
    with pytest.raises(ArchiveError, match="more than 2"):
        copy_out(outputs, *(entry(f"./{n}", b"x") for n in range(4)))
