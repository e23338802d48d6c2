"""Bounds of an import: hostile archives cannot make it read, walk or write without limit."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from gvisor_kernel.archive import tar
from gvisor_kernel.archive.layers import Budget, apply_archive
from gvisor_kernel.archive.tar import BLOCK, MAX_EXTRAS, MAX_PADDING, MAX_RECORDS, TarReader
from gvisor_kernel.archive.tree import Parts, Tree
from gvisor_kernel.errors import ArchiveError, RootImageError
from gvisor_kernel.images.blobs import MAX_DOCUMENTS, MAX_IDLE, MAX_REST, Documents, decompressed

from .conftest import ImportImage
from .helpers import ROOT, Item, folder, link, make_oci, make_tar, sha256
from .test_importer import names_in

ARCHIVE = make_tar(ROOT)


class FakeTree:
    """Accepts every call, and records which folders were cleared."""

    def __init__(self) -> None:
        self.cleared: list[Parts] = []

    def remove_children(self, parts: Parts, keep: Callable[[str], bool]) -> None:
        self.cleared.append(parts)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def apply(items: list[Item], budget: Budget | None = None) -> FakeTree:
    tree = FakeTree()
    stream = io.BytesIO(make_tar(items, tarfile.GNU_FORMAT))
    apply_archive(stream, cast(Tree, tree), budget or Budget(), is_layer=True)
    return tree


# -- opaque folders --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(60)  # minutes if each of them walked all names
def test_each_of_many_opaque_folders_is_walked_once() -> None:
    count = 15_000
    items = [item for n in range(count) for item in (folder(f"{n}"), Item(f"{n}/.wh..wh..opq"))]
    cleared = apply(items).cleared
    assert sorted(cleared) == sorted((f"{n}",) for n in range(count))


def test_nested_opaque_folders_are_walked_once() -> None:
    paths = ["/".join("a" * depth) for depth in range(1, 60)]
    items = [item for path in paths for item in (folder(path), Item(f"{path}/.wh..wh..opq"))]
    assert [len(parts) for parts in apply(items).cleared] == list(range(1, 60))


def test_opaque_folder_hides_files_in_its_subfolders(
    import_image: ImportImage, tmp_path: Path
) -> None:
    below = make_tar([*ROOT, folder("a/b"), Item("a/b/old", b"")])
    above = make_tar([folder("a"), folder("a/b"), Item("a/.wh..wh..opq")])
    tree = import_image(make_oci([below, above]).write_folder(tmp_path / "i")).tree
    assert names_in(tree) == {"usr/bin/tool", "a", "a/b"}


def test_opaque_link_does_not_clear_its_target(import_image: ImportImage, tmp_path: Path) -> None:
    below = make_tar([*ROOT, folder("a"), Item("a/old", b""), folder("b")])
    above = make_tar([link("b", "a"), Item("b/.wh..wh..opq")])
    tree = import_image(make_oci([below, above]).write_folder(tmp_path / "i")).tree
    assert names_in(tree) == {"usr/bin/tool", "a", "a/old", "b"}


def test_implied_parent_folders_count_as_entries() -> None:
    """An entry with a hundred parts creates a hundred folders."""
    items = [Item(f"{n}/" + "a/" * 90 + "f") for n in range(20)]
    apply(items, Budget(entries=20 * 93))
    with pytest.raises(ArchiveError, match="files, directories and links"):
        apply(items, Budget(entries=20 * 91))


# -- headers ---------------------------------------------------------------------------------------


def header(kind: bytes, content: bytes) -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % BLOCK)


def record(text: str) -> bytes:
    size = len(text) + 2
    while len(f"{size} {text}\n") != size:
        size += 1
    return f"{size} {text}\n".encode()


COMMENT = record("comment=c")
END = bytes(2 * BLOCK)
ONE = make_tar([Item("name", b"content")], tarfile.USTAR_FORMAT)


def read(data: bytes) -> list[str]:
    return [entry.name for entry in TarReader(io.BytesIO(data))]


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_extended_headers_of_an_entry_are_bounded(kind: bytes) -> None:
    content = COMMENT if kind in b"xg" else b"longer\0"
    assert len(read(header(kind, content) * MAX_EXTRAS + ONE)) == 1
    with pytest.raises(ArchiveError, match="more than 8 extended headers"):
        read(header(kind, content) * (MAX_EXTRAS + 1) + ONE)


def test_pax_records_of_an_entry_are_bounded() -> None:
    assert read(header(b"x", COMMENT * MAX_RECORDS) + ONE) == ["name"]
    with pytest.raises(ArchiveError, match="more than 1000 pax records"):
        read(header(b"x", COMMENT * (MAX_RECORDS + 1)) + ONE)


def test_extended_headers_of_an_archive_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "MAX_EXTRA_BYTES", 10 * len(COMMENT))
    entry = header(b"x", COMMENT) + header(b"0", b"")
    assert len(read(entry * 10 + END)) == 10
    with pytest.raises(ArchiveError, match="the extended headers have"):
        read(entry * 11 + END)


# -- data after -----------------------------------------------------------------------------------


def test_padding_after_an_archive_is_bounded(import_image: ImportImage, tmp_path: Path) -> None:
    packed = tmp_path / "root.tar.gz"
    packed.write_bytes(gzip.compress(ARCHIVE + bytes(1024 * 1024), 1))
    import_image(packed, "padded")
    packed.write_bytes(gzip.compress(ARCHIVE + bytes(MAX_PADDING + 1024 * 1024), 1))
    with pytest.raises(RootImageError, match="bytes after its end"):
        import_image(packed)


@pytest.mark.parametrize(
    "nothing",
    [
        bytes(MAX_IDLE + 1024 * 1024),
        gzip.compress(b"") * ((MAX_IDLE + 1024 * 1024) // len(gzip.compress(b""))),
    ],
    ids=["zeros", "empty members"],
)
def test_compressed_data_without_output_is_bounded(
    import_image: ImportImage, tmp_path: Path, nothing: bytes
) -> None:
    packed = tmp_path / "root.tar.gz"
    packed.write_bytes(gzip.compress(ARCHIVE) + nothing)
    with pytest.raises(RootImageError, match="decompress to nothing"):
        import_image(packed)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_concatenated_compressed_members_are_read(compress: Callable[[bytes], bytes]) -> None:
    packed = b"".join(compress(b"%d," % n) for n in range(1000)) + bytes(4096)
    whole = b""
    with decompressed(io.BytesIO(packed)) as stream:
        while data := stream.read(1000):
            whole += data
    assert whole == b"".join(b"%d," % n for n in range(1000))


def test_data_after_a_layer_is_bounded(import_image: ImportImage, tmp_path: Path) -> None:
    layer = make_tar(ROOT)
    archive = make_oci([layer], pack=lambda data: lzma.compress(data) + bytes(MAX_REST + 2**20))
    with pytest.raises(RootImageError, match=r"a layer has more than .* after its end"):
        import_image(archive.write_folder(tmp_path / "i"))


# -- documents -------------------------------------------------------------------------------------


def nest(archive: Any, depth: int, width: int) -> None:
    """Make ``index.json`` refer to an index ``width`` times, which refers to the next one ``width``
    times, and so on. None of them has an image for this machine."""
    kind = "application/vnd.oci.image.index.v1+json"
    other = {"architecture": "other", "os": "linux"}
    entry = {"digest": "sha256:" + 64 * "0", "mediaType": "x", "platform": other}
    for _ in range(depth):
        index = json.dumps({"manifests": [entry] * width}).encode()
        archive.files[f"blobs/sha256/{sha256(index)[7:]}"] = index
        entry = {"mediaType": kind, "digest": sha256(index), "size": len(index)}
    archive.files["index.json"] = json.dumps({"manifests": [entry] * width}).encode()


def test_number_of_index_documents_is_bounded(
    import_image: ImportImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    read_one = Documents.read

    def count(self: Documents, name: str) -> bytes:
        reads.append(name)
        return read_one(self, name)

    monkeypatch.setattr(Documents, "read", count)
    archive = make_oci([make_tar(ROOT)])
    nest(archive, 3, 8)
    with pytest.raises(RootImageError, match="more than 300 documents"):
        import_image(archive.write_folder(tmp_path / "i"))
    assert len(reads) == MAX_DOCUMENTS + 1


def test_size_of_all_documents_is_bounded(
    import_image: ImportImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gvisor_kernel.images.blobs.MAX_DOCUMENT_BYTES", 100)
    with pytest.raises(RootImageError, match="more than 100 bytes"):
        import_image(make_oci([make_tar(ROOT)]).write_folder(tmp_path / "i"))


@pytest.mark.parametrize("depth", [101, 2_000, 1_000_000])
def test_deeply_nested_document_is_refused(
    import_image: ImportImage, tmp_path: Path, depth: int
) -> None:
    archive = make_oci([make_tar(ROOT)])
    archive.files["index.json"] = b'{"manifests": ' + b"[" * depth + b"]" * depth + b"}"
    with pytest.raises(RootImageError, match="nested deeper"):
        import_image(archive.write_folder(tmp_path / "i"))
