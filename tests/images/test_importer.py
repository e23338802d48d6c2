"""Import of folders and archives: the resulting image, and what is refused."""

from __future__ import annotations

import bz2
import errno
import gzip
import json
import lzma
import os
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from gvisor_kernel.archive import layers as limits
from gvisor_kernel.errors import RootImageError
from gvisor_kernel.images.image import Store
from gvisor_kernel.images.importer import choose_name
from gvisor_kernel.store import measure_tree

from .conftest import ImportImage
from .helpers import (
    MTIME,
    ROOT,
    Archive,
    Item,
    folder,
    hard_link,
    link,
    make_config,
    make_docker,
    make_oci,
    make_tar,
    sha256,
)


def device(name: str) -> Item:
    return Item(name, kind=tarfile.CHRTYPE)


def names_in(tree: Path) -> set[str]:
    return {str(path.relative_to(tree)) for path in tree.rglob("*")} - {"usr", "usr/bin"}


BASE = make_tar(
    [
        *ROOT,
        folder("etc", 0o700),
        Item("etc/old", b"old"),
        folder("var"),
        folder("var/cache"),
        Item("var/cache/one", b"1"),
        Item("var/cache/two", b"2"),
        Item("setuid", b"s", mode=0o6755),
        link("absolute", "/etc/old"),
        link("above", "../../../../etc/passwd"),
        hard_link("same", "etc/old"),
        device("dev/null"),
    ]
)
SECOND = make_tar(
    [
        folder("etc"),
        Item("etc/.wh.old"),
        Item("etc/new", b"new"),
        folder("var"),
        folder("var/cache"),
        Item("var/cache/three", b"3"),
        Item("var/cache/.wh..wh..opq"),
        Item("usr/bin/tool", b"#!/bin/bash\n", mode=0o700),
    ]
)
MERGED = {
    *("usr/bin/tool", "etc", "etc/new", "var", "var/cache", "var/cache/three"),
    *("setuid", "absolute", "above", "same"),
}


def write_oci_folder(path: Path) -> Path:
    return make_oci([BASE, SECOND]).write_folder(path)


def write_oci_tar(path: Path) -> Path:
    return make_oci([BASE, SECOND], pack=gzip.compress).write_tar(path)


def write_docker(path: Path) -> Path:
    return make_docker([BASE, SECOND]).write_tar(path)


def write_docker_packed(path: Path) -> Path:
    write_docker(path)
    path.write_bytes(gzip.compress(path.read_bytes()))
    return path


@pytest.mark.parametrize(
    "write", [write_oci_folder, write_oci_tar, write_docker, write_docker_packed]
)
def test_layers_are_applied_in_order(
    import_image: ImportImage, tmp_path: Path, write: object
) -> None:
    image = import_image(write(tmp_path / "image"))  # type: ignore[operator]
    tree = image.tree
    assert names_in(tree) == MERGED
    assert (tree / "usr/bin/tool").read_bytes() == b"#!/bin/bash\n"
    assert (tree / "same").read_bytes() == b"old"
    assert (tree / "absolute").readlink() == Path("/etc/old")
    assert (tree / "above").readlink() == Path("../../../../etc/passwd")
    assert stat.S_IMODE((tree / "setuid").stat().st_mode) == 0o755
    assert stat.S_IMODE((tree / "usr/bin/tool").stat().st_mode) == 0o700
    assert stat.S_IMODE((tree / "etc").stat().st_mode) == 0o755
    assert (tree / "etc/new").stat().st_mtime == MTIME
    assert (tree / "etc").stat().st_mtime == MTIME
    assert image.environment == {"PATH": "/opt/bin:/usr/bin", "GREETING": "hello"}
    assert image.left_out == {"devices": 1}
    assert image.names == ("world",)
    assert measure_tree(tree, image.environment).digest == image.digest


def test_digest_does_not_depend_on_the_source(import_image: ImportImage, tmp_path: Path) -> None:
    first = import_image(write_oci_folder(tmp_path / "a"), "first")
    second = import_image(write_docker(tmp_path / "b"), "second")
    assert first.digest == second.digest
    assert second.directory.stat().st_ino == first.directory.stat().st_ino
    (tmp_path / "plain").mkdir()
    plain = make_tar([*ROOT])
    (tmp_path / "plain.tar").write_bytes(plain)
    with tarfile.open(tmp_path / "plain.tar") as archive:
        archive.extractall(tmp_path / "plain", filter="fully_trusted")  # noqa: S202 - our own
    assert import_image(tmp_path / "plain").digest == import_image(tmp_path / "plain.tar").digest


def zstd(content: bytes) -> bytes:
    return subprocess.run(["zstd", "-q"], input=content, capture_output=True, check=True).stdout


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress, zstd])
def test_all_compressions_are_read(import_image: ImportImage, tmp_path: Path, pack: object) -> None:
    if pack is zstd:
        pytest.importorskip("zstandard")
    packed = pack(BASE)  # type: ignore[operator]
    (tmp_path / "root.tar.x").write_bytes(packed)
    assert (import_image(tmp_path / "root.tar.x").tree / "etc/old").read_bytes() == b"old"
    for damaged in (packed[: len(packed) // 3], packed[:30] + b"xxxx" + packed[34:]):
        (tmp_path / "root.tar.x").write_bytes(damaged)
        with pytest.raises(RootImageError, match="Could not import"):
            import_image(tmp_path / "root.tar.x", "other")


def test_opaque_folder_hides_only_lower_layers(import_image: ImportImage, tmp_path: Path) -> None:
    below = make_tar(
        [*ROOT, folder("a"), folder("a/b"), Item("a/b/old", b""), Item("a/old", b""), folder("c")]
    )
    above = make_tar([folder("a/b"), Item("a/b/new", b""), Item("a/.wh..wh..opq"), Item("c/x")])
    tree = import_image(make_oci([below, above]).write_folder(tmp_path / "i")).tree
    assert names_in(tree) == {"usr/bin/tool", "a", "a/b", "a/b/new", "c", "c/x"}


def test_folders_files_and_links_replace_each_other(
    import_image: ImportImage, tmp_path: Path
) -> None:
    below = make_tar(
        [*ROOT, folder("d/e"), Item("d/e/f", b"f"), Item("file", b""), link("link", "usr")]
    )
    above = make_tar(
        [Item("d", b"now a file"), folder("file"), Item("file/in", b"x"), folder("link")]
    )
    tree = import_image(make_oci([below, above]).write_folder(tmp_path / "i")).tree
    assert (tree / "d").read_bytes() == b"now a file"
    assert (tree / "file/in").read_bytes() == b"x"
    assert (tree / "link").is_dir()
    assert not (tree / "link").is_symlink()
    assert (tree / "usr/bin/tool").exists()


def test_layer_writes_through_a_link_stay_inside(import_image: ImportImage, tmp_path: Path) -> None:
    """In today's distributions ``/lib`` is a link, and layers may have files below it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    below = make_tar(
        [
            *ROOT,
            folder("usr/lib"),
            link("lib", "/usr/lib"),
            link("out", str(outside)),
            link("up", "../../../../../../../.."),
        ]
    )
    above = make_tar([Item("lib/a", b"a"), Item("up/b", b"b")])
    tree = import_image(make_oci([below, above]).write_folder(tmp_path / "i")).tree
    assert (tree / "usr/lib/a").read_bytes() == b"a"
    assert (tree / "b").read_bytes() == b"b"
    above = make_tar([Item("out/a", b"a")])
    with pytest.raises(RootImageError, match="dangling symbolic link"):
        import_image(make_oci([below, above]).write_folder(tmp_path / "j"))
    assert list(outside.iterdir()) == []


OUTSIDE = "/" + "etc/hostname"


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([Item("/etc/passwd")], "is absolute"),
        ([Item("../x")], "leads out"),
        ([hard_link("a", OUTSIDE)], "is absolute"),
        ([hard_link("a", "../../etc/hostname")], "leads out"),
        ([link("l", "/etc"), hard_link("a", "l/hostname")], "missing target"),
        ([hard_link("a", "missing")], "missing target"),
        ([hard_link("a", "usr")], "target that is not a file"),
        ([Item("a"), hard_link("a", "a")], "two entries"),
        ([device("etc/null")], "device outside of /dev"),
        ([Item("a"), Item("a")], "two entries"),
        ([folder("a"), link("a", "b")], "two entries"),
        ([Item("a"), Item("a/b")], "has files below it"),
        ([link("a", "a"), Item("a/b")], "has files below it"),
        ([Item("a\nb")], "control character"),
        ([Item("a", kind=tarfile.GNUTYPE_SPARSE)], "unsupported entry type"),
    ],
)
@pytest.mark.parametrize("layered", [False, True])
def test_hostile_archives_leave_no_image(
    import_image: ImportImage,
    store: Store,
    tmp_path: Path,
    items: list[Item],
    words: str,
    layered: bool,
) -> None:
    data = make_tar([*ROOT, *items])
    path = tmp_path / "image.tar"
    if layered:
        make_oci([data]).write_tar(path)
    else:
        path.write_bytes(data)
    with pytest.raises(RootImageError, match=words) as caught:
        import_image(path)
    assert str(caught.value).startswith("Could not import image.tar: ")
    assert store.images() == []


def test_names_that_are_not_utf8_are_refused(import_image: ImportImage, tmp_path: Path) -> None:
    (tmp_path / "image.tar").write_bytes(make_tar([*ROOT, Item("caf\udce9")], tarfile.GNU_FORMAT))
    with pytest.raises(RootImageError, match="not UTF-8"):
        import_image(tmp_path / "image.tar")
    root = tmp_path / "root"
    (root / "usr").mkdir(parents=True)
    (root / "caf\udce9").touch()
    with pytest.raises(RootImageError, match="not UTF-8"):
        import_image(root)


@pytest.mark.parametrize(
    "items",
    [[Item(".wh.a"), Item("a")], [Item("a"), Item(".wh.a")], [Item(".wh.a"), Item(".wh.a")]],
)
def test_layer_that_contains_and_removes_a_name_is_refused(
    import_image: ImportImage, tmp_path: Path, items: list[Item]
) -> None:
    archive = make_oci([BASE, make_tar(items)])
    with pytest.raises(RootImageError, match="both contains and removes"):
        import_image(archive.write_folder(tmp_path / "i"))


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "a/.wh..."])
def test_whiteouts_of_invalid_names_are_refused(
    import_image: ImportImage, tmp_path: Path, name: str
) -> None:
    archive = make_oci([BASE, make_tar([Item(name)])])
    with pytest.raises(RootImageError, match="is not a valid file name"):
        import_image(archive.write_folder(tmp_path / "i"))


def test_whiteouts_of_missing_files_are_ignored(import_image: ImportImage, tmp_path: Path) -> None:
    layer = make_tar([Item(".wh.missing"), Item("no/.wh.missing"), Item(".wh..wh.plnk")])
    tree = import_image(make_oci([make_tar(ROOT), layer]).write_folder(tmp_path / "i")).tree
    assert names_in(tree) == {"usr/bin/tool"}


def test_whiteouts_in_a_root_file_system_are_plain_names(
    import_image: ImportImage, tmp_path: Path
) -> None:
    (tmp_path / "root.tar").write_bytes(make_tar([*ROOT, Item(".wh.usr", b"")]))
    assert names_in(import_image(tmp_path / "root.tar").tree) == {"usr/bin/tool", ".wh.usr"}


def test_tree_deepened_by_links_is_refused(import_image: ImportImage, tmp_path: Path) -> None:
    deep = "/".join(["d"] * 90)
    items = [folder(deep), link("l", deep), folder("l/" + deep)]
    (tmp_path / "root.tar").write_bytes(make_tar([*ROOT, *items]))
    with pytest.raises(RootImageError, match="too deep"):
        import_image(tmp_path / "root.tar")


# Bombs.


def test_number_of_entries_is_bounded(import_image: ImportImage, tmp_path: Path) -> None:
    (tmp_path / "root.tar").write_bytes(make_tar([*ROOT, *(Item(f"f{n}") for n in range(200))]))
    with pytest.raises(RootImageError, match="files, directories and links"):
        import_image(tmp_path / "root.tar", budget=limits.Budget(entries=100))


def test_archive_larger_than_the_disk_is_refused(import_image: ImportImage, tmp_path: Path) -> None:
    bomb = gzip.compress(make_tar([*ROOT, Item("zeros", bytes(100 * 1024 * 1024))]), 1)
    assert len(bomb) < 1024 * 1024
    (tmp_path / "root.tar.gz").write_bytes(bomb)
    with pytest.raises(RootImageError, match="more disk space than is available"):
        import_image(tmp_path / "root.tar.gz", budget=limits.Budget(bytes=50 * 1024 * 1024))


def test_image_archive_that_decompresses_beyond_the_disk_is_refused(
    import_image: ImportImage, tmp_path: Path
) -> None:
    archive = make_oci([make_tar(ROOT)])
    archive.files["blobs/sha256/zeros"] = bytes(30 * 1024 * 1024)
    path = archive.write_tar(tmp_path / "i.tar")
    path.write_bytes(gzip.compress(path.read_bytes(), 1))
    with pytest.raises(RootImageError, match="more disk space than is available"):
        import_image(path, budget=limits.Budget(bytes=10 * 1024 * 1024))


def test_full_disk_is_reported(
    import_image: ImportImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "root.tar").write_bytes(BASE)
    write = os.write
    written = 0

    def fail_when_full(fd: int, data: bytes) -> int:
        nonlocal written
        written += len(data)
        if written > 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data)

    monkeypatch.setattr("gvisor_kernel.archive.tree.os.write", fail_when_full)
    with pytest.raises(RootImageError) as caught:
        import_image(tmp_path / "root.tar")
    assert caught.value.fact == "Could not import root.tar: the disk is full."
    assert "free some space" in caught.value.hint


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_full_tmpfs_is_reported(
    import_image: ImportImage, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DISK_SPARE", -(1 << 40))
    (tmp_path / "root.tar").write_bytes(make_tar([*ROOT, Item("big", bytes(8 << 20))]))
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=0700", "tmpfs", str(store.root)]
    subprocess.run(mount, check=True)
    try:
        (store.root / "names").mkdir(mode=0o700)
        with pytest.raises(RootImageError, match="the disk is full"):
            import_image(tmp_path / "root.tar")
        assert {path.name for path in store.root.iterdir()} == {"lock", "names"}
    finally:
        subprocess.run(["umount", str(store.root)], check=True)


# Archives with wrong digests or malformed documents.


def damage_layer(archive: Archive) -> None:
    name = max(archive.files, key=lambda n: len(archive.files[n]))
    archive.files[name] = archive.files[name].replace(b"#!/bin/sh", b"#!/bin/rm")


def damage_config(archive: Archive) -> None:
    name = next(n for n, content in archive.files.items() if b"diff_ids" in content)
    archive.files[name] = archive.files[name].replace(b"GREETING=hello", b"GREETING=other")


def damage_manifest(archive: Archive) -> None:
    name = next(n for n, content in archive.files.items() if b'"layers"' in content[:600])
    archive.files[name] += b" "


def remove_layer(archive: Archive) -> None:
    del archive.files[max(archive.files, key=lambda n: len(archive.files[n]))]


def point_outside(archive: Archive) -> None:
    archive.files["index.json"] = archive.files["index.json"].replace(b"sha256:", b"sha256:../")


def damage_index(archive: Archive) -> None:
    archive.files["index.json"] = b"[" * 100_000


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_layer, "the layer .* does not match its digest"),
        (damage_config, "the blob .* does not match its digest"),
        (damage_manifest, "the blob .* does not match its digest"),
        (remove_layer, "the archive has no file"),
        (point_outside, "is not a valid digest"),
        (damage_index, "index.json is damaged"),
    ],
)
def test_oci_archives_with_wrong_digests_are_refused(
    import_image: ImportImage, tmp_path: Path, damage: object, words: str
) -> None:
    archive = make_oci([make_tar(ROOT)])
    damage(archive)  # type: ignore[operator]
    with pytest.raises(RootImageError, match=words):
        import_image(archive.write_tar(tmp_path / "i.tar"))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_layer, "the layer .* does not match its digest"),
        (damage_config, "the configuration does not match its digest"),
    ],
)
def test_docker_archives_with_wrong_digests_are_refused(
    import_image: ImportImage, tmp_path: Path, damage: object, words: str
) -> None:
    archive = make_docker([make_tar(ROOT)])
    damage(archive)  # type: ignore[operator]
    with pytest.raises(RootImageError, match=words):
        import_image(archive.write_tar(tmp_path / "i.tar"))


def test_layer_link_of_an_older_docker_archive_is_followed(
    import_image: ImportImage, tmp_path: Path
) -> None:
    archive = make_docker([make_tar(ROOT), make_tar([Item("more", b"m")])])
    _, second = (name for name in archive.files if name.endswith("layer.tar"))
    shared = f"{'0' * 64}/layer.tar"
    manifest = archive.files["manifest.json"].replace(second.encode(), shared.encode())
    archive.files["manifest.json"] = manifest
    items = [Item(name, content) for name, content in archive.files.items()]
    items.append(link(shared, f"../{second}"))
    (tmp_path / "i.tar").write_bytes(make_tar(items))
    assert names_in(import_image(tmp_path / "i.tar").tree) == {"usr/bin/tool", "more"}
    items[-1] = link(shared, "/etc/hostname")
    (tmp_path / "i.tar").write_bytes(make_tar(items))
    with pytest.raises(RootImageError, match="the archive has no file"):
        import_image(tmp_path / "i.tar")


@pytest.mark.parametrize("name", ["../0.tar", "/etc/hostname", "out/hostname", "out"])
def test_manifest_cannot_name_files_outside_its_folder(
    import_image: ImportImage, tmp_path: Path, name: str
) -> None:
    layer = make_tar(ROOT)
    (tmp_path / "0.tar").write_bytes(layer)
    archive = make_docker([layer])
    (old,) = (n for n in archive.files if n.endswith("layer.tar"))
    archive.files["manifest.json"] = archive.files["manifest.json"].replace(
        old.encode(), name.encode()
    )
    path = archive.write_folder(tmp_path / "i")
    (path / "out").symlink_to("/etc")
    with pytest.raises(
        RootImageError, match=r"leads out|is absolute|cannot be read|is not a regular file"
    ):
        import_image(path)


def test_image_for_another_machine_is_refused(import_image: ImportImage, tmp_path: Path) -> None:
    archive = make_oci([make_tar(ROOT)], architecture="sparc")
    with pytest.raises(RootImageError, match="'linux' on 'sparc'"):
        import_image(archive.write_folder(tmp_path / "i"))


def test_reference_chooses_one_of_several_images(import_image: ImportImage, tmp_path: Path) -> None:
    one = make_oci([make_tar([*ROOT, Item("one")])], reference="one")
    two = make_oci([make_tar([*ROOT, Item("two")])], reference="two")
    entries = [json.loads(a.files["index.json"])["manifests"][0] for a in (one, two)]
    other = {**entries[0], "platform": {"os": "linux", "architecture": "sparc"}}
    index = json.dumps({"manifests": [*entries, other]}).encode()
    path = Archive({**one.files, **two.files, "index.json": index}).write_folder(tmp_path / "i")
    with pytest.raises(RootImageError, match="several images: 'one', 'two'"):
        import_image(path)
    assert names_in(import_image(path, reference="two").tree) == {"usr/bin/tool", "two"}
    with pytest.raises(RootImageError, match="no image three"):
        import_image(path, reference="three")


def test_nested_index_is_followed(import_image: ImportImage, tmp_path: Path) -> None:
    archive = make_oci([make_tar(ROOT)])
    inner = archive.files["index.json"]
    kind = "application/vnd.oci.image.index.v1+json"
    entry = {"mediaType": kind, "digest": sha256(inner), "size": len(inner)}
    archive.files[f"blobs/sha256/{sha256(inner)[7:]}"] = inner
    archive.files["index.json"] = json.dumps({"manifests": [entry]}).encode()
    assert import_image(archive.write_folder(tmp_path / "i")).names == ("world",)


@pytest.mark.parametrize("variable", ["=x", "no equals", "A\0=b", "A=b\0c", "A=\ud800", "A-B=c"])
def test_invalid_environment_variables_are_refused(
    import_image: ImportImage, tmp_path: Path, variable: str
) -> None:
    archive = make_oci([make_tar(ROOT)], config={"Env": [variable]})
    with pytest.raises(RootImageError, match=r"the environment variable .* is not valid"):
        import_image(archive.write_folder(tmp_path / "i"))


@pytest.mark.parametrize(
    "changes",
    [
        {"rootfs": None},
        {"rootfs": {"diff_ids": "x"}},
        {"rootfs": {"diff_ids": [1]}},
        {"rootfs": {"diff_ids": []}},
        {"config": {"Env": "PATH=/bin"}},
        {"config": {"Env": [None]}},
    ],
)
def test_malformed_configurations_are_refused(
    import_image: ImportImage, tmp_path: Path, changes: dict[str, object]
) -> None:
    archive = make_oci([make_tar(ROOT)], **changes)
    with pytest.raises(RootImageError, match="Could not import"):
        import_image(archive.write_folder(tmp_path / "i"))


def test_other_files_are_refused(import_image: ImportImage, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").mkdir()
    (tmp_path / "tar").write_bytes(make_tar([Item("README")]))
    (tmp_path / "half").write_bytes(make_tar([Item("manifest.json", make_config([]))]))
    os.mkfifo(tmp_path / "pipe")
    for name in ("text", "empty", "tar", "half", "missing"):
        with pytest.raises(RootImageError, match="Could not import"):
            import_image(tmp_path / name)


# Folders.


def test_folder_is_copied_without_following_links(
    import_image: ImportImage, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/tool").write_bytes(b"x")
    (root / "usr/bin/tool").chmod(0o4755)
    (root / "usr/bin/same").hardlink_to(root / "usr/bin/tool")
    (root / "etc").symlink_to("/etc")
    os.mkfifo(root / "pipe")
    image = import_image(root)
    assert names_in(image.tree) == {"usr/bin/tool", "usr/bin/same", "etc"}
    assert (image.tree / "etc").readlink() == Path("/etc")
    assert stat.S_IMODE((image.tree / "usr/bin/tool").stat().st_mode) == 0o755
    assert (image.tree / "usr/bin/tool").stat().st_nlink == 2
    assert image.left_out == {"pipes": 1}


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/srv/Base Image.tar.gz", "base-image"),
        ("docker.io/library/python:3.12-slim", "python-3.12-slim"),
        ("world@sha256:abc", "world"),
        ("layout/", "layout"),
    ],
)
def test_name_is_derived_from_the_source(source: str, name: str) -> None:
    assert choose_name(source, None) == name


@pytest.mark.parametrize("name", ["", "host", "A", "a/b", "..", "a" * 65, "a\n", "-a", "a."])
def test_invalid_names_are_refused(name: str) -> None:
    with pytest.raises(RootImageError, match="cannot have the name"):
        choose_name("x.tar", name)
