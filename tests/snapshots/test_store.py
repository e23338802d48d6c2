"""The store of snapshots is private, bounded, and safe for concurrent processes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import multiprocessing
import os
import shutil
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel.config.validators import MIB
from gvisor_kernel.errors import NoSnapshot, SnapshotError
from gvisor_kernel.host import private_directories
from gvisor_kernel.snapshots import snapshot_store
from gvisor_kernel.snapshots.key import SnapshotKey
from gvisor_kernel.snapshots.manifest import Manifest
from gvisor_kernel.snapshots.snapshot import FORMAT, Meta, Snapshot
from gvisor_kernel.snapshots.snapshot_store import (
    Store,
    builder_lock,
    describe_miss,
    restore_by_key,
)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Store.open()


def key_of(number: int) -> SnapshotKey:
    return SnapshotKey({"config": str(number)})


def add(store: Store, number: int, size: int = MIB, used: float | None = None) -> str:
    key = key_of(number)
    with store.write() as draft:
        (draft.files / "pages.img").write_bytes(os.urandom(size))
        (draft.scratch / "left").touch()
        meta = Meta(
            key=key.name,
            parts=dict(key.parts),
            run=3,
            sandbox_key="s3cret",
            manifest=Manifest({"/usr/bin/python3": (1, 2, 3)}, {"/usr/lib": None}),
            label={"kernel": "gvisor-python"},
            facts={"window": 5},
            created=1.5,
        )
        store.keep(draft, key, meta)
    if used is not None:
        os.utime(store.root / key.name / "used", (used, used))
    return key.name


def keys(store: Store) -> list[str]:
    return [snapshot.meta.key for snapshot in store.snapshots()]


def test_snapshot_is_stored_and_found(store: Store) -> None:
    name = add(store, 1)
    with store.use(name) as snapshot:
        assert snapshot is not None
        assert snapshot.meta.parts == dict(key_of(1).parts)
        assert snapshot.meta.sandbox_key == "s3cret"
        assert snapshot.meta.manifest.files == {"/usr/bin/python3": (1, 2, 3)}
        assert (snapshot.meta.run, snapshot.meta.facts, snapshot.meta.created) == (
            3,
            {"window": 5},
            1.5,
        )
        assert [path.name for path in snapshot.files.iterdir()] == ["pages.img"]
        assert snapshot.size >= MIB
        assert "s3cret" not in repr(snapshot)
    assert not (store.root / name / "scratch").exists()


def test_miss_names_what_differs(store: Store) -> None:
    assert describe_miss(store, key_of(1)) == "there is none yet"
    add(store, 1)
    assert (
        describe_miss(store, key_of(2)) == "the nearest has other settings or mounts of its sandbox"
    )
    parts = {**key_of(1).parts, "cpu": "x", "unheard of": "y"}
    expected = "the nearest has other CPU features or number of CPUs, unheard of"
    assert describe_miss(store, SnapshotKey(parts)) == expected


def test_store_is_private(store: Store) -> None:
    name = add(store, 1)
    for path in (store.root.parent, store.root, store.root / name, store.root / name / "image"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for path in store.root.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_open_directory_is_made_private(store: Store) -> None:
    store.root.chmod(0o755)
    Store.open()
    assert stat.S_IMODE(store.root.stat().st_mode) == 0o700


def test_links_are_not_followed(store: Store, tmp_path: Path) -> None:
    name = add(store, 1)
    meta = store.root / name / "meta.json"
    meta.rename(tmp_path / "elsewhere")
    meta.symlink_to(tmp_path / "elsewhere")
    assert store.snapshots() == []
    with store.use(name) as snapshot:
        assert snapshot is None
    store.root.rename(tmp_path / "images")
    store.root.symlink_to(tmp_path / "images")
    with pytest.raises(SnapshotError, match="is a symbolic link"):
        Store.open()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_other_users_files_are_refused(store: Store) -> None:
    name = add(store, 1)
    os.chown(store.root / name / "meta.json", 12345, 12345)
    assert store.snapshots() == []
    os.chown(store.root, 12345, 12345)
    with pytest.raises(SnapshotError, match="belongs to another user"):
        Store.open()


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", '{"format": 1}', '{"format": 99}'])
def test_invalid_metadata_is_unusable(content: str, store: Store) -> None:
    name = add(store, 1)
    assert store.unusable() == {}
    (store.root / name / "meta.json").write_text(content)
    assert store.snapshots() == []
    assert store.unusable().keys() == {name}
    with store.use(name) as snapshot:
        assert snapshot is None
    add(store, 1)
    assert keys(store) == [name]


def test_directory_that_its_user_cannot_read_is_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != store.root)  # root may read all
    with pytest.raises(SnapshotError, match=f"{store.root} cannot be read by its own user"):
        Store.open()


def test_start_is_cold_where_the_store_cannot_be_read(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even a snapshot that is not the kernel's may stop its start."""
    name = add(store, 1)
    real = os.scandir

    def scandir(path: Path) -> Any:
        if Path(path).name == "image":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(NoSnapshot, match="there is none yet"):
        restore_by_key(store, key_of(2), lambda snapshot: pytest.fail("restored"))
    assert store.unusable().keys() == {name}
    monkeypatch.undo()
    shutil.rmtree(store.root)
    with pytest.raises(NoSnapshot, match=f"{store.root} cannot be used: .*No such file"):
        restore_by_key(store, key_of(2), lambda snapshot: pytest.fail("restored"))
    with pytest.raises(SnapshotError, match=f"below {store.root}: No such file"), store.write():
        pytest.fail("written")
    with pytest.raises(SnapshotError, match="builder cannot be opened"), builder_lock(store):
        pytest.fail("locked")


@pytest.mark.parametrize("key", ["", ".", "..", "../images", "lock", "0" * 31, "0" * 32])
def test_unknown_key_has_no_snapshot(key: str, store: Store) -> None:
    with store.use(key) as snapshot:
        assert snapshot is None
    assert not store.remove(key)
    store.discard(key, "no reason")


def test_least_recently_used_snapshots_are_removed(store: Store) -> None:
    store.max_size = 5 * MIB + MIB // 2
    names = [add(store, number, used=1000.0 + number) for number in range(5)]
    assert keys(store) == names[::-1]
    with store.use(names[0]):
        pass
    assert keys(store)[0] == names[0]
    last = add(store, 9, size=2 * MIB)
    assert set(keys(store)) == {names[0], names[3], names[4], last}


def test_snapshot_in_use_is_kept(store: Store) -> None:
    store.max_size = 2 * MIB + MIB // 2
    first, second = add(store, 1, used=1.0), add(store, 2, used=2.0)
    with store.use(first) as snapshot:
        assert snapshot is not None
        os.utime(snapshot.directory / "used", (1, 1))
        third = add(store, 3)
        assert set(keys(store)) == {first, third}
    assert second not in keys(store)


def test_too_large_snapshot_is_refused(store: Store) -> None:
    store.max_size = 2 * MIB
    name = add(store, 1)
    with pytest.raises(SnapshotError, match="there is room for 2097152"):
        add(store, 2, size=3 * MIB)
    assert keys(store) == [name]
    assert not [path for path in store.root.iterdir() if path.name.startswith(("new", "gone"))]


def test_full_disk_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("usage", (), {"free": 20 * MIB})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    assert store.capacity() == 4 * MIB
    usage.free = 0
    with pytest.raises(SnapshotError, match="too full"), store.write():
        pass


def test_abandoned_draft_is_removed(store: Store) -> None:
    with store.write() as draft:
        (draft.files / "pages.img").touch()
    assert not draft.directory.exists()
    with pytest.raises(SnapshotError, match="No space left"), store.write() as draft:
        raise OSError(28, "No space left on device")


def test_sweep_removes_unfinished_entries(store: Store) -> None:
    for name in ("new-1", "gone-2"):
        (store.root / name / "image").mkdir(parents=True)
    with store.write() as draft:
        Store(store.root).sweep()
        assert draft.files.is_dir()
    assert not [path for path in store.root.iterdir() if path.is_dir()]


def test_remove_fails_while_in_use(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_store, "BUSY_SECONDS", 0.05)
    name = add(store, 1)
    with store.use(name):
        assert not store.remove(name)
    assert store.remove(name)
    assert not store.remove(name)
    assert store.snapshots() == []


def test_start_does_not_wait_for_a_removal_that_is_stopped(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = add(store, 1)
    monkeypatch.setattr(snapshot_store, "BUSY_SECONDS", 0.0)
    with (
        private_directories.lock(store.root / name / "lock", fcntl.LOCK_EX),
        pytest.raises(NoSnapshot, match="another process is removing the one that did"),
    ):
        restore_by_key(store, key_of(1), lambda snapshot: pytest.fail("restored"))
    assert keys(store) == [name]  # it is not discarded


def test_discard_works_while_in_use(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    name = add(store, 1)
    with caplog.at_level("DEBUG"), store.use(name):
        store.discard(name, "it did not restore")
        assert store.snapshots() == []
    assert f"Snapshot {name} is no longer usable: it did not restore" in caplog.text
    # Unrelated clients, after a `pip install`, must not see it on their stderr.
    assert {record.levelname for record in caplog.records} == {"DEBUG"}
    store.sweep()
    assert not [path for path in store.root.iterdir() if path.is_dir()]


def test_snapshot_of_same_key_is_replaced(store: Store) -> None:
    name = add(store, 1)
    with store.use(name) as old:
        assert old is not None
        pages = (old.files / "pages.img").open("rb")
        assert add(store, 1, size=2 * MIB) == name
    with pages, store.use(name) as new:
        assert new is not None
        assert new.size > old.size
        assert len(pages.read()) == MIB


def test_concurrent_use_is_safe(store: Store) -> None:
    store.max_size = 8 * MIB

    def work(number: int) -> None:
        mine = Store(store.root)
        for turn in range(5):
            add(mine, number % 3)
            with mine.use(key_of(turn % 3).name) as snapshot:
                if snapshot is not None:
                    with contextlib.suppress(FileNotFoundError):  # replaced or discarded meanwhile
                        assert (snapshot.files / "pages.img").stat().st_size == MIB
            if turn == 3:
                mine.discard(key_of(number % 3).name, "test")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    store.sweep()
    assert set(keys(store)) <= {key_of(number).name for number in range(3)}
    assert all(len(path.name) == 32 for path in store.root.iterdir() if path.is_dir())


@pytest.fixture
def builder(store: Store) -> Iterator[multiprocessing.Process]:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=build_for_ever, args=(store.root, ready))
    process.start()
    assert ready.wait(20)
    yield process
    process.kill()
    process.join()


def build_for_ever(root: Path, ready: multiprocessing.synchronize.Event) -> None:
    with builder_lock(Store(root)) as mine, Store(root).write():
        assert mine
        ready.set()
        multiprocessing.Event().wait()


def test_builder_lock_is_exclusive_and_ends_with_its_process(
    store: Store, builder: multiprocessing.Process
) -> None:
    with builder_lock(store) as mine:
        assert not mine
    store.sweep()
    assert [path for path in store.root.iterdir() if path.name.startswith("new-")]
    builder.kill()
    builder.join()
    with builder_lock(store) as mine:
        assert mine
    store.sweep()
    assert not [path for path in store.root.iterdir() if path.is_dir()]


def test_metadata_is_json_with_format(store: Store) -> None:
    name = add(store, 1)
    content = json.loads((store.root / name / "meta.json").read_text().partition("\n")[2])
    assert content["format"] == FORMAT
    assert isinstance(store.snapshots()[0], Snapshot)
