"""Hostile packages: each is refused as a whole with a reason, and nothing is written."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gvisor_kernel.cli.main import main
from gvisor_kernel.errors import SkillError
from gvisor_kernel.skills import archive
from gvisor_kernel.skills.archive import read_archive

DOCUMENT = b"---\nname: a-skill\ndescription: For tests.\n---\n"
Edit = Callable[[bytearray], None]


def info(name: str, mode: int = 0, **fields: object) -> zipfile.ZipInfo:
    """Make an entry whose name is written unchanged."""
    made = zipfile.ZipInfo("x", (2026, 1, 1, 0, 0, 0))
    made.filename = name
    made.create_system = 3
    made.external_attr = mode << 16
    for key, value in fields.items():
        setattr(made, key, value)
    return made


def make_archive(
    *entries: tuple[str | zipfile.ZipInfo, bytes], compression: int = zipfile.ZIP_STORED
) -> bytearray:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", compression) as out:
        out.writestr("SKILL.md", DOCUMENT)
        for name, content in entries:
            out.writestr(name, content)
    return bytearray(packed.getvalue())


def edited(data: bytearray, edit: Edit) -> bytearray:
    edit(data)
    return data


def directory_at(data: bytearray, number: int = 0) -> int:
    """Return the position of an entry of the central directory."""
    position = -1
    for _ in range(number + 1):
        position = data.index(b"PK\1\2", position + 1)
    return position


def set_both(data: bytearray, offset: int, form: str, value: int) -> None:
    """Change a field of the last entry, in the central directory and in its local header."""
    last = data.rindex(b"PK\1\2")
    struct.pack_into(form, data, last + offset, value)
    (local,) = struct.unpack_from("<I", data, last + 42)
    struct.pack_into(form, data, local + offset - 2, value)


def replaced(data: bytearray, old: bytes, new: bytes) -> bytearray:
    assert data.count(old) >= 1
    return bytearray(bytes(data).replace(old, new))


def same_content() -> bytearray:
    """Two entries with the same content: small archives can become huge with it."""
    data = make_archive(("scripts/a", b"x" * 99), ("scripts/b", b"x" * 99))
    first, second = directory_at(data, 1), directory_at(data, 2)
    data[second + 42 : second + 46] = data[first + 42 : first + 46]
    return replaced(data, b"scripts/b", b"scripts/a")


def overlapping_in_part() -> bytearray:
    """The content of the first entry overlaps with the second one."""
    data = make_archive(("scripts/a", b"x" * 99), ("scripts/b", b"x" * 99))
    first = directory_at(data, 1)
    (local,) = struct.unpack_from("<I", data, first + 42)
    for at in (first + 20, first + 24, local + 18, local + 22):
        struct.pack_into("<I", data, at, 150)
    return data


def many_entries(count: int = 100_000) -> bytearray:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", strict_timestamps=False) as out:
        for number in range(1000):
            out.writestr(f"scripts/{number}", b"")
    data = bytearray(packed.getvalue())
    begin = directory_at(data)
    directory = data[begin:-22] * (count // 1000)
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 0, 0, len(directory), begin, 0)
    return data[:begin] + directory + end


def with_count(data: bytearray, count: int) -> bytearray:
    struct.pack_into("<HH", data, len(data) - 14, count, count)
    return data


def bomb(size: int) -> bytearray:
    return make_archive(("scripts/zeros", bytes(size)), compression=zipfile.ZIP_DEFLATED)


def many_bombs() -> bytearray:
    """No entry exceeds its ratio, but all together exceed the size."""
    content = bytes(archive.RATIO_FROM)
    entries = [(f"scripts/{number}", content) for number in range(70)]
    return make_archive(*entries, compression=zipfile.ZIP_DEFLATED)


def longer_than_stated() -> bytearray:
    """The content is longer than its stated size."""
    data = make_archive(("scripts/a", b"x" * 5000), compression=zipfile.ZIP_DEFLATED)
    return edited(data, lambda d: set_both(d, 24, "<I", 10))


def with_comment() -> bytearray:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as out:
        out.writestr("SKILL.md", DOCUMENT)
        out.comment = b"PK\5\6" + bytes(18)
    return bytearray(packed.getvalue())


def duplicate() -> bytearray:
    with pytest.warns(UserWarning, match="Duplicate name"):
        return make_archive(("scripts/a", b"1"), ("scripts/a", b"2"))


def named(name: str) -> Callable[[], bytearray]:
    return lambda: make_archive((info(name), b"x"))


def raw_name(raw: bytes, flags: int = 0) -> Callable[[], bytearray]:
    def make() -> bytearray:
        data = make_archive((info("scripts/" + "n" * len(raw)), b"x"))
        data = replaced(data, b"scripts/" + b"n" * len(raw), b"scripts/" + raw)
        return edited(data, lambda d: set_both(d, 8, "<H", flags))

    return make


def two_names(first: str, second: str) -> Callable[[], bytearray]:
    return lambda: make_archive((info(first), b"x"), (info(second), b"x"))


def with_mode(mode: int, name: str = "scripts/a") -> Callable[[], bytearray]:
    return lambda: make_archive((info(name, mode), b"/etc/passwd"))


ATTACKS: dict[str, tuple[Callable[[], bytes | bytearray], str]] = {
    "traversal": (named("../evil"), "leads out"),
    "traversal below": (named("scripts/../../evil"), "leads out"),
    "absolute": (named("/etc/cron.d/evil"), "absolute"),
    "backslash": (named("scripts\\..\\evil"), "backslash"),
    "drive letter": (named("C:/evil"), "colon"),
    "NTFS stream": (named("SKILL.md:hidden"), "colon"),
    "part is a dot": (named("scripts/./a"), "empty part"),
    "empty part of a name": (named("scripts//a"), "empty part"),
    "no name": (named(""), "without a name"),
    "trailing dot": (named("scripts/a."), "dots at an end"),
    "newline": (named("scripts/a\nb"), "control"),
    "NUL": (raw_name(b"a\0b"), "control"),
    "escape": (named("scripts/\x1b[2J"), "control"),
    "bidirectional": (named("scripts/\u202egpj.exe"), "control"),
    "invalid UTF-8": (raw_name(b"\xff\xfe", 0x800), "marked as UTF-8, but is not"),
    "not ASCII, without the UTF-8 flag": (raw_name(b"\xe9"), "not marked as UTF-8, but is not"),
    "long name": (named("scripts/" + "a" * 300), "200 bytes"),
    "long path": (named("scripts/" + "a/" * 250 + "b"), "too long or too deep"),
    "deep": (named("scripts" + "/a" * 11), "too deep"),
    "duplicate": (duplicate, "two entries named"),
    "duplicate by case": (two_names("scripts/A", "scripts/a"), "same on some file systems"),
    "folders by case": (two_names("Scripts/a", "scripts/b"), "same on some file systems"),
    "duplicate by case folding": (
        two_names("scripts/stra\xdfe", "scripts/STRASSE"),
        "same on some file systems",
    ),
    "duplicate by accent": (
        two_names("scripts/\xe9", "scripts/e\u0301"),
        "same on some file systems",
    ),
    "file and folder": (two_names("scripts/a", "scripts/a/b"), "both a file and a folder"),
    "symbolic link": (with_mode(stat.S_IFLNK | 0o777), "symbolic link"),
    "pipe": (with_mode(stat.S_IFIFO), "device, a pipe"),
    "device": (with_mode(stat.S_IFCHR), "device, a pipe"),
    "socket": (with_mode(stat.S_IFSOCK), "device, a pipe"),
    "folder with content": (with_mode(stat.S_IFDIR, "scripts/a/"), "both a file and a folder"),
    "folder as a file": (with_mode(stat.S_IFDIR), "both a file and a folder"),
    "bomb by ratio": (lambda: bomb(50 * 2**20), "more than 100 times"),
    "bomb by size": (many_bombs, "together, more than"),
    "bomb by overlap": (same_content, "two entries named"),
    "bomb by overlap in part": (overlapping_in_part, "overlaps with the next entry"),
    "10^5 entries": (lambda: with_count(many_entries(), 65534), "entries, more than"),
    "10^5 entries, uncounted": (
        lambda: with_count(many_entries(), 1),
        "more entries than it states",
    ),
    "wrong size": (longer_than_stated, "does not have its stated size"),
    "wrong size, stored": (
        lambda: edited(make_archive(("scripts/a", b"x" * 9)), lambda d: set_both(d, 24, "<I", 5)),
        "does not have its stated size",
    ),
    "wrong checksum": (
        lambda: edited(make_archive(("scripts/a", b"x")), lambda d: set_both(d, 16, "<I", 1)),
        "does not have its stated checksum",
    ),
    "two sizes": (
        lambda: edited(
            make_archive(("scripts/a", b"x")),
            lambda d: struct.pack_into("<I", d, d.rindex(b"PK\1\2") + 24, 2),
        ),
        "local header that contradicts",
    ),
    "two names": (
        lambda: edited(
            make_archive(("scripts/a", b"x")),
            lambda d: d.__setitem__(
                slice(d.index(b"scripts/a"), d.index(b"scripts/a") + 9), b"../evil/a"
            ),
        ),
        "local header that contradicts",
    ),
    "encrypted": (
        lambda: edited(make_archive(("scripts/a", b"x")), lambda d: set_both(d, 8, "<H", 1)),
        "encrypted",
    ),
    "unknown method": (
        lambda: edited(make_archive(("scripts/a", b"x")), lambda d: set_both(d, 10, "<H", 99)),
        "unsupported flags or compression",
    ),
    "ZIP64": (
        lambda: edited(
            make_archive(("scripts/a", b"x")), lambda d: set_both(d, 24, "<I", 2**32 - 1)
        ),
        "ZIP64",
    ),
    "several disks": (
        lambda: edited(make_archive(), lambda d: struct.pack_into("<H", d, len(d) - 18, 1)),
        "several files",
    ),
    "comment": (with_comment, "the central directory is not at its stated position"),
    "data before the archive": (lambda: b"#!/bin/sh\n" + make_archive(), "not a ZIP archive"),
    "data after the archive": (lambda: make_archive() + b"x", "after its end"),
    "truncated": (lambda: make_archive(("scripts/a", b"x" * 999))[:-30], "truncated"),
    "damaged": (
        lambda: edited(
            make_archive(("scripts/a", b"abc" * 99), compression=zipfile.ZIP_DEFLATED),
            lambda d: d.__setitem__(
                slice(d.index(b"scripts/a") + 9, d.index(b"scripts/a") + 13), b"\xff" * 4
            ),
        ),
        "damaged",
    ),
    "empty file": (lambda: b"", "not a ZIP archive"),
    "not a ZIP": (lambda: b"PK" + bytes(99), "not a ZIP archive"),
    "no entries": (lambda: b"PK\5\6" + bytes(18), "no SKILL.md"),
    "file in another folder": (named("bin/a"), "is not allowed in a skill"),
    "hidden file": (named(".bashrc"), "is not allowed in a skill"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_packages_are_refused(
    attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    make, reason = ATTACKS[attack]
    package = tmp_path / "hostile.skill"
    package.write_bytes(make())
    assert main(["skills", "list"]) == 0
    before = sorted(tmp_path.rglob("*"))
    for command in ("check", "install"):
        capsys.readouterr()
        assert main(["skills", command, str(package)]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert "is not a valid skill" in err
        assert reason in err
        assert all(char.isprintable() or char == "\n" for char in err)
    assert sorted(tmp_path.rglob("*")) == before


def test_packages_of_ordinary_programs_are_read() -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as out:
        out.mkdir("scripts")
        out.writestr("SKILL.md", DOCUMENT)
        out.writestr(info("scripts/run", stat.S_IFREG | 0o755), b"x" * 5000)
        out.writestr("reference/\xfcber.md", "\xfc".encode())
    files = read_archive(packed.getvalue())
    assert list(files) == ["SKILL.md", "scripts/run", "reference/\xfcber.md"]
    assert files["scripts/run"].content == b"x" * 5000
    assert [name for name, file in files.items() if file.executable] == ["scripts/run"]


def test_data_descriptors_are_read() -> None:
    """Programs that write to a pipe put the sizes behind the content."""

    class Stream(io.RawIOBase):
        def __init__(self) -> None:
            self.data = b""

        def writable(self) -> bool:
            return True

        def write(self, data: object) -> int:
            self.data += bytes(data)  # type: ignore[call-overload]
            return len(bytes(data))  # type: ignore[call-overload]

    stream = Stream()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as out:  # type: ignore[arg-type]
        out.writestr("SKILL.md", DOCUMENT)
    assert read_archive(stream.data)["SKILL.md"].content == DOCUMENT


def test_a_second_name_in_an_extra_field_is_not_used() -> None:
    """Info-ZIP's Unicode Path, by which newer releases of zipfile replace the name."""
    other = b"../../evil"
    path = struct.pack("<BI", 1, zlib.crc32(b"a.md")) + other
    extra = struct.pack("<HH", 0x7075, len(path)) + path
    packed = bytes(make_archive((info("a.md", extra=extra), b"content")))
    assert sorted(read_archive(packed)) == ["SKILL.md", "a.md"]


VALID = bytes(make_archive(("scripts/a", b"abc" * 50), compression=zipfile.ZIP_DEFLATED))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_changed_byte_is_refused_or_harmless(data: st.DataObject) -> None:
    changed = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(changed) - 1))
        changed[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(changed)] * 9 + [len(changed) // 2]))
    try:
        files = read_archive(bytes(changed[:cut]))
    except SkillError:
        return
    for name, file in files.items():
        assert ".." not in name.split("/")
        assert not name.startswith("/")
        assert zlib.crc32(file.content) in {zlib.crc32(DOCUMENT), zlib.crc32(b"abc" * 50)}


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(SkillError):
        read_archive(b"PK" + data)
