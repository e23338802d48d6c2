"""The store of images: names, permissions, killed imports, and the command line."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gvisor_kernel.cli.main import main
from gvisor_kernel.errors import RootImageError
from gvisor_kernel.images.image import Store

from ..world import PROJECT
from .conftest import ImportImage
from .helpers import ROOT, Item, make_docker, make_oci, make_tar


def write_root(path: Path, *items: Item) -> Path:
    path.write_bytes(make_tar([*ROOT, *items]))
    return path


def test_image_is_found_by_name_and_by_digest(
    import_image: ImportImage, store: Store, tmp_path: Path
) -> None:
    image = import_image(write_root(tmp_path / "a.tar"), "one")
    assert import_image(write_root(tmp_path / "b.tar"), "two").digest == image.digest
    for text in ("one", "two", image.digest, image.digest[:6], f"sha256:{image.digest}"):
        assert store.find(text).digest == image.digest
    (found,) = store.images()
    assert found.names == ("one", "two")
    for text in ("three", image.digest[:5], "", "../one", image.digest[:6] + "x"):
        with pytest.raises(RootImageError, match="There is no image"):
            store.find(text)


def test_removing_one_of_two_names_keeps_the_image(
    import_image: ImportImage, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import_image(write_root(tmp_path / "a.tar"), "one")
    import_image(write_root(tmp_path / "b.tar"), "two")
    assert (
        run(capsys, "remove", "one")[1]
        == "Removed the name one; the image stays, because it has other names\n"
    )
    assert store.find("two").names == ("two",)
    assert run(capsys, "remove", "two")[0] == 0
    assert store.images() == []


def test_name_moves_to_the_image_imported_last(
    import_image: ImportImage, store: Store, tmp_path: Path
) -> None:
    old = import_image(write_root(tmp_path / "a.tar"))
    new = import_image(write_root(tmp_path / "a.tar", Item("more")))
    assert store.find("world").digest == new.digest
    assert store.find(old.digest).names == ()
    store.remove(store.find(old.digest), ())
    store.sweep()
    assert [image.digest for image in store.images()] == [new.digest]


def test_image_in_use_is_not_removed(
    import_image: ImportImage, store: Store, tmp_path: Path
) -> None:
    image = import_image(write_root(tmp_path / "a.tar"))
    with pytest.raises(RootImageError, match="in use by running kernels"):
        store.remove(image, {image.digest})
    assert store.find("world").tree.is_dir()


def test_store_is_private(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (store.root.parent, store.root, store.root / "names"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        path.chmod(0o777)
    Store.open()
    assert stat.S_IMODE(store.root.stat().st_mode) == 0o700
    (store.root / "names").rmdir()
    (store.root / "names").symlink_to("/tmp")
    with pytest.raises(RootImageError, match="is a symbolic link"):
        Store.open()
    (store.root / "names").unlink()


IMPORT_AND_WAIT = """
import sys, time
from gvisor_kernel.images import importer, image
def wait(*arguments):
    print("written", flush=True)
    time.sleep(600)
importer.measure_tree = wait
importer.Import(image.Store.open(), "world").unpack(importer.Path(sys.argv[1]), "x")
"""


def test_killed_import_leaves_no_image(
    store: Store, import_image: ImportImage, tmp_path: Path
) -> None:
    path = write_root(tmp_path / "a.tar")
    with subprocess.Popen(
        [sys.executable, "-c", IMPORT_AND_WAIT, str(path)], stdout=subprocess.PIPE, cwd=PROJECT
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        unfinished = [p for p in store.root.iterdir() if p.name.startswith("new-")]
        assert len(unfinished) == 1
        assert store.images() == []
        store.sweep()
        assert unfinished[0].exists(), "sweep removed an image that is being written"
        process.send_signal(signal.SIGKILL)
    assert store.images() == []
    import_image(path)
    assert not unfinished[0].exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda image: (image / "image.json").write_text("{"),
        lambda image: (image / "image.json").write_text('{"format": 1}'),
        lambda image: (image / "image.json").unlink(),
        lambda image: (image / "inside.json").write_text('{"version": 3}'),
    ],
)
def test_image_with_a_damaged_record_is_ignored(
    store: Store, import_image: ImportImage, tmp_path: Path, damage: object
) -> None:
    image = import_image(write_root(tmp_path / "a.tar"))
    damage(image.directory)  # type: ignore[operator]
    assert store.images() == [] or store.find("world").inside is None
    assert import_image(write_root(tmp_path / "a.tar")).digest == image.digest


# The command line. These images have no Python, so no sandbox is started for them.


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(["image", *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_commands_from_import_to_remove(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_docker([make_tar([*ROOT, Item("dev/null", kind=b"3")])]).write_tar(
        tmp_path / "W.tar"
    )
    status, output, _ = run(capsys, "import", str(path))
    assert status == 0
    assert "Imported w (" in output
    assert "Left out 1 devices" in output
    assert "No Python kernel can run in it. The image w has no python3 in /opt/bin:" in output
    status, output, _ = run(capsys, "list", "--json")
    (listed,) = json.loads(output)
    assert listed["names"] == ["w"]
    assert listed["from"] == str(path)
    assert listed["reference"] == "world:1"
    assert listed["config"].startswith("sha256:")
    assert listed["environment"] == {"PATH": "/opt/bin:/usr/bin", "GREETING": "hello"}
    assert listed["python"] is None
    assert listed["digest"][:12] in run(capsys, "list")[1]
    status, output, _ = run(capsys, "inspect", "w")
    assert f"digest: {listed['digest']}" in output
    assert "GREETING: hello" in output
    assert run(capsys, "verify") == (0, f"{listed['digest'][:12]}  w  unchanged\n", "")
    tool = Path(listed["tree"], "usr/bin/tool")
    tool.write_text("#!/bin/hh\n")
    status, output, _ = run(capsys, "verify", "w")
    assert (status, "CHANGED" in output) == (1, True)
    assert run(capsys, "remove", "w")[0] == 0
    assert run(capsys, "list")[1].startswith("No images.")
    assert {path.name for path in store.root.iterdir()} == {"lock", "names"}
    assert list((store.root / "names").iterdir()) == []


def test_second_import_replaces_the_first(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "import", str(write_root(tmp_path / "w.tar")))
    old = store.find("w")
    status, output, _ = run(capsys, "import", str(write_root(tmp_path / "w.tar", Item("more"))))
    assert status == 0
    assert f"Removed the replaced image {old.digest[:12]}." in output
    assert len(store.images()) == 1
    assert not old.directory.exists()


@pytest.mark.parametrize("change", ["mode", "content", "link", "new", "gone", "time"])
def test_verify_finds_every_change(
    store: Store, tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_oci([make_tar([*ROOT, Item("file", b"x")])]).write_folder(tmp_path / "w")
    run(capsys, "import", str(path))
    tree = store.find("w").tree
    file = tree / "file"
    match change:
        case "mode":
            file.chmod(0o640)
        case "content":
            status = file.stat()
            file.write_bytes(b"y")
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        case "link":
            file.unlink()
            file.symlink_to("usr")
        case "new":
            (tree / "new").touch()
        case "gone":
            file.unlink()
        case "time":
            os.utime(file, (1, 1))
    assert run(capsys, "verify")[0] == 1


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            "./missing.tar",
            "Could not import ./missing.tar: No such file or directory.\nWhat to do: ",
        ),
        ("/nonexistent/image", "Could not import /nonexistent/image: No such file"),
        ("-o", None),
        ("a b", "is neither a file, nor a directory, nor the name of an image"),
        ("a" * 300, "is neither a file, nor a directory, nor the name of an image"),
    ],
)
def test_invalid_sources_are_reported(
    store: Store, source: str, words: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if words is None:
        with pytest.raises(SystemExit):
            main(["image", "import", source])
        return
    status, _, error = run(capsys, "import", source, "--name", "x")
    assert status == 1
    assert words in error


def test_missing_engine_is_reported(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    status, _, error = run(capsys, "import", "python:3.13")
    assert (status, "neither Docker nor Podman is installed" in error) == (1, True)
    engine = tmp_path / "docker"
    engine.write_text("#!/bin/sh\necho Cannot connect to the daemon >&2\nexit 1\n")
    engine.chmod(0o755)
    status, _, error = run(capsys, "import", "python:3.13")
    assert (status, "the engine of docker does not answer" in error) == (1, True)


def test_image_of_an_engine_is_saved_and_imported(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A fake ``docker`` checks the calls, and its output is imported."""
    path = make_docker([make_tar(ROOT)]).write_tar(tmp_path / "saved.tar")
    engine = tmp_path / "docker"
    engine.write_text(
        f'#!/bin/sh\n[ "$1" = version ] && exit\n[ "$*" = "image save world:1" ] || exit 3\n'
        f"/bin/cat {path}\n"
    )
    engine.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(capsys, "import", "world:1")[0] == 0
    assert store.find("world-1").source["from"] == "world:1"
    status, _, error = run(capsys, "import", "other:1")
    assert (status, "cannot save the image other:1" in error) == (1, True)
