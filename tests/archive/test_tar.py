"""Tar archives: those of tarfile are read correctly, ambiguous and damaged ones are refused."""

from __future__ import annotations

import io
import tarfile

import pytest

from gvisor_kernel.archive.tar import BLOCK, MAX_HEADER, Entry, Kind, TarReader
from gvisor_kernel.errors import RootImageError

from ..images.helpers import MTIME, Item, folder, hard_link, link, make_tar


def read(data: bytes) -> list[tuple[Entry, bytes]]:
    reader = TarReader(io.BytesIO(data))
    return [(entry, b"".join(iter(lambda: reader.read(7), b""))) for entry in reader]


class OneByteReads(io.BytesIO):
    """Returns one byte at a time."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(1, size or 0))


def change(data: bytes, offset: int, content: bytes) -> bytes:
    """Replace bytes of the header at the start of ``data``, and correct its checksum."""
    header = bytearray(data[:BLOCK])
    header[offset : offset + len(content)] = content
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data[BLOCK:]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_archives_of_tarfile_are_read(form: int) -> None:
    long = "/".join(["a" * 40] * 5)
    items = [
        folder("./usr/", 0o1755),
        Item("usr/tool", b"x" * 1000, mode=0o4755),
        Item("empty"),
        link("bin", "/usr/bin"),
        hard_link("usr/other", "./usr/tool"),
        Item(long, b"long"),
        Item("café", b"name"),
    ]
    found = read(make_tar(items, form))
    assert [entry.name for entry, _ in found] == [
        *("usr", "usr/tool", "empty", "bin", "usr/other", long, "café"),
    ]
    assert [content for _, content in found] == [item.content for item in items]
    kinds = [Kind.DIRECTORY, Kind.FILE, Kind.FILE, Kind.SYMLINK, Kind.HARD_LINK]
    assert [entry.kind for entry, _ in found][:5] == kinds
    assert found[0][0].mode == 0o1755
    assert found[3][0].target == "/usr/bin"
    assert found[4][0].target_parts == ("usr", "tool")
    assert {entry.mtime for entry, _ in found} == {MTIME}


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_targets_are_read(form: int) -> None:
    name, target = "/".join(["n" * 100] * 20), "t" * 3000
    ((entry, _),) = read(make_tar([link(name, target)], form))
    assert (entry.name, entry.target) == (name, target)


def test_archive_is_read_byte_by_byte() -> None:
    data = make_tar([folder("usr"), Item("usr/x" * 30, b"content"), Item("y", b"z")])
    reader = TarReader(OneByteReads(data))
    found = [(e.name, b"".join(iter(lambda: reader.read(100), b""))) for e in reader]
    assert found == [(e.name, content) for e, content in read(data)]


def test_unread_content_is_skipped() -> None:
    data = make_tar([Item("a", b"x" * 1000), Item("b", b"y" * 512)])
    assert [entry.name for entry in TarReader(io.BytesIO(data))] == ["a", "b"]


ONE = make_tar([Item("name", b"content")], tarfile.USTAR_FORMAT)
PAX = make_tar([Item("name", b"content", pax={"comment": "x" * 20})])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "truncated"),
        (b"\x7fELF" + b"x" * 2000, "not a tar archive, or is damaged: a number"),
        (ONE[:600], "truncated"),
        (ONE[:1024], "truncated"),
        (ONE[:516], "truncated in the middle"),
        (ONE + ONE, "data after its end"),
        (change(ONE, 0, b"/name"), "is absolute"),
        (change(ONE, 0, b"../name"), "leads out"),
        (change(ONE, 0, b"a/../../name"), "leads out"),
        (change(ONE, 0, b"na\nme"), "control character"),
        (change(ONE, 0, b"na\x1bme"), "control character"),
        (change(ONE, 0, b"na\xff\xfeme"), "not UTF-8"),
        (change(ONE, 0, b"\0\0\0\0\0"), "without a name"),
        (change(ONE, 0, b"name/"), "a directory with content"),
        (change(ONE, 0, b"./\0\0\0"), "a directory with content"),
        (change(ONE, 156, b"S"), "unsupported entry type"),
        (change(ONE, 156, b"V"), "unsupported entry type"),
        (change(ONE, 156, b"M"), "unsupported entry type"),
        (change(ONE, 124, b"7777777777x"), "a number in a header is"),
        (change(ONE, 124, b"\xff" * 12), "negative size"),
        (change(ONE, 124, b"77777777777"), "truncated"),
        (change(ONE, 156, b"L"), "without the entry for it"),
        (change(change(ONE, 156, b"x"), 124, b"77777777777"), "an extended header has"),
        (change(change(ONE, 156, b"L"), 124, b"77777777777"), "an extended header has"),
        (change(change(ONE, 156, b"1"), 157, b"/etc/passwd"), "is absolute"),
        (change(change(ONE, 156, b"1"), 157, b"../passwd"), "leads out"),
        (change(ONE, 156, b"2"), "has no target"),
        (change(change(ONE, 156, b"2"), 157, b"a\nb"), "control character"),
        (make_tar([Item("a/" * 101 + "b")]), "too deep"),
        (make_tar([Item("a" * 256)]), "too long"),
        (make_tar([link("a", "b" * 4096)]), "too long"),
        (make_tar([Item("a", pax={"path": "/etc/passwd"})]), "is absolute"),
        (make_tar([Item("a", pax={"size": "-1"})]), "negative size"),
        (make_tar([Item("a", pax={"size": "many"})]), "should be a number"),
        (make_tar([Item("a", pax={"mtime": "soon"})]), "should be a number"),
        (make_tar([Item("a", pax={"GNU.sparse.major": "1"})]), "sparse file"),
        (PAX.replace(b"32 comment", b"31 comment"), "pax records of an entry are damaged"),
        (PAX.replace(b"32 comment", b"99 comment"), "pax records of an entry are damaged"),
    ],
)
def test_damaged_or_ambiguous_archives_are_refused(data: bytes, words: str) -> None:
    with pytest.raises(RootImageError, match=words):
        read(data)


def test_global_header_with_a_path_is_refused() -> None:
    packed = io.BytesIO()
    with tarfile.open(
        fileobj=packed, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"path": "x"}
    ) as archive:
        archive.addfile(tarfile.TarInfo("a"))
    with pytest.raises(RootImageError, match="for all entries"):
        read(packed.getvalue())


def test_global_header_with_a_comment_is_accepted() -> None:
    packed = io.BytesIO()
    with tarfile.open(
        fileobj=packed, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x"}
    ) as archive:
        archive.addfile(tarfile.TarInfo("a"))
    assert [entry.name for entry, _ in read(packed.getvalue())] == ["a"]


def test_large_extended_header_is_refused_unread() -> None:
    header = change(change(ONE, 156, b"x"), 124, b"%011o\0" % (MAX_HEADER + 1))

    class Endless(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            assert size is not None
            assert size <= MAX_HEADER, "the whole header was requested"
            return super().read(size) or b"\0" * size

    with pytest.raises(RootImageError, match="an extended header has"):
        list(TarReader(Endless(header[:BLOCK])))


def test_extended_attributes_and_owners_are_ignored() -> None:
    pax = {"SCHILY.xattr.security.capability": "x", "uid": "1", "LIBARCHIVE.creationtime": "1"}
    ((entry, content),) = read(make_tar([Item("a", b"c", pax=pax)]))
    assert (entry.name, content) == ("a", b"c")
