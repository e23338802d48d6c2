"""The file in which pages keep data: scopes, quotas, writers, kills, full disks, odd files."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from gvisor_kernel.artifacts.item import Artifact
from gvisor_kernel.artifacts.storage import Quotas, Storage
from gvisor_kernel.errors import StorageError

PAGE, OTHER = Artifact("a" * 32, "/o/a.html"), Artifact("b" * 32, "/o/b.html")


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "storage.sqlite3")


def test_what_is_kept_comes_back_to_its_owner_and_page_alone(storage: Storage) -> None:
    storage.set("ann", PAGE, "score", {"best": 3})
    storage.set("bob", PAGE, "score", "text")
    storage.set(Storage.SHARED, PAGE, "score", [1])
    found = storage.get("ann", PAGE, "score")
    assert found is not None
    assert found.value == {"best": 3}
    assert storage.get("ann", OTHER, "score") is None
    assert storage.get("carl", PAGE, "score") is None
    again = Storage(storage.path).get("bob", PAGE, "score")
    assert again is not None
    assert again.value == "text"
    assert storage.delete("ann", PAGE, "score")
    assert not storage.delete("ann", PAGE, "score")
    assert storage.get(Storage.SHARED, PAGE, "score") is not None


def test_keys_are_listed_by_their_beginning(storage: Storage) -> None:
    for key in ("b2", "a1", "A1", "b1", "b%", "ä"):
        storage.set("ann", PAGE, key, 1)
    storage.set("ann", OTHER, "b3", 1)
    assert storage.list_keys("ann", PAGE) == ["A1", "a1", "b%", "b1", "b2", "ä"]
    assert storage.list_keys("ann", PAGE, "b") == ["b%", "b1", "b2"]
    assert storage.list_keys("ann", PAGE, "b%") == ["b%"]


def test_quotas_count_what_is_replaced_once(storage: Storage) -> None:
    storage = Storage(storage.path, quotas=Quotas(page_keys=2, page_bytes=100, owner_bytes=150))
    storage.set("ann", PAGE, "k", "x" * 90)
    storage.set("ann", PAGE, "k", "y" * 97)  # and two quotes, and the key: exactly 100
    with pytest.raises(StorageError, match="100 B of 100 B"):
        storage.set("ann", PAGE, "l", "")
    storage.set("ann", PAGE, "k", "")
    storage.set("ann", PAGE, "l", "")
    with pytest.raises(StorageError, match="2 keys"):
        storage.set("ann", PAGE, "m", "")
    storage.set("ann", PAGE, "k", "z" * 80)
    storage.set("ann", OTHER, "k", "z" * 50)
    with pytest.raises(StorageError, match="All pages together"):
        storage.set("ann", OTHER, "k", "z" * 80)
    storage.set("bob", OTHER, "k", "z" * 80)
    found = storage.get("ann", OTHER, "k")
    assert found is not None
    assert found.value == "z" * 50


def test_hundred_writers_lose_nothing(storage: Storage) -> None:
    errors: list[BaseException] = []

    def write(number: int) -> None:
        try:
            storage.set("ann", PAGE, f"k{number}", number)
            storage.set("ann", PAGE, "last", number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(storage.list_keys("ann", PAGE)) == 101
    last = storage.get("ann", PAGE, "last")
    assert last is not None
    assert last.value in range(100)


def test_first_writers_of_a_file_wait_for_each_other(tmp_path: Path) -> None:
    """SQLite itself does not wait where several make the file at the same moment."""
    together = threading.Barrier(12)

    def write(storage: Storage, key: int) -> None:
        together.wait()
        storage.set("ann", PAGE, f"k{key}", key)

    with ThreadPoolExecutor(12) as executor:
        for number in range(12):
            storage = Storage(tmp_path / f"{number}.sqlite3")
            list(executor.map(partial(write, storage), range(12)))
            assert len(storage.list_keys("ann", PAGE)) == 12


WRITER = """
import sys
from pathlib import Path
from gvisor_kernel.artifacts.item import Artifact
from gvisor_kernel.artifacts.storage import Storage
storage, page = Storage(Path(sys.argv[1])), Artifact("a" * 32, "/o/a.html")
for number in range(1_000_000):
    storage.set("ann", page, "number", [number] * 1000)
    print(number, flush=True)
"""


def test_a_killed_writer_leaves_whole_values(storage: Storage) -> None:
    for lines in (1, 7, 20):
        command = [sys.executable, "-c", WRITER, str(storage.path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            for _ in range(lines):
                said = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
        found = storage.get("ann", PAGE, "number")
        assert found is not None
        assert found.value == [found.value[0]] * 1000
        assert found.value[0] >= said
        storage.set("ann", PAGE, "after", lines)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def _fill(storage: Storage) -> None:
    for number in range(100):
        storage.set("ann", PAGE, f"k{number}", "x" * 50_000)


def test_a_full_disk_is_said_and_costs_nothing_that_was_kept(small_disk: Path) -> None:
    storage = Storage(small_disk / "storage.sqlite3")
    storage.set("ann", PAGE, "kept", "value")
    with pytest.raises(StorageError, match="full"):
        _fill(storage)
    found = storage.get("ann", PAGE, "kept")
    assert found is not None
    assert found.value == "value"


def test_the_file_is_private_and_no_link(storage: Storage, tmp_path: Path) -> None:
    storage.path.touch(mode=0o644)
    storage.set("ann", PAGE, "k", 1)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    link = tmp_path / "link.sqlite3"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError):
        Storage(link).set("ann", PAGE, "k", 1)
    assert not (tmp_path / "elsewhere").exists()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(StorageError):
        Storage(tmp_path / "fifo").get("ann", PAGE, "k")


@pytest.mark.parametrize("content", [b"garbage" * 1000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_none_is_said(storage: Storage, content: bytes) -> None:
    storage.path.write_bytes(content)
    with pytest.raises(StorageError, match="move it away"):
        storage.get("ann", PAGE, "k")


def test_a_newer_file_is_left_alone(storage: Storage) -> None:
    storage.set("ann", PAGE, "k", 1)
    with sqlite3.connect(storage.path) as database:
        database.execute("pragma user_version = 2")
    database.close()
    with pytest.raises(StorageError, match="newer"):
        storage.get("ann", PAGE, "k")


def test_usage_is_counted_and_removed(storage: Storage) -> None:
    storage.set("ann", PAGE, "k", "x" * 100)
    storage.set("ann", PAGE, "l", 1)
    storage.set("bob", OTHER, "k", 1)
    first, second = storage.usages()
    assert (first.owner, first.artifact, first.keys, first.bytes) == ("ann", PAGE, 2, 105)
    assert (second.owner, second.artifact) == ("bob", OTHER)
    assert [item.key for item in storage.items("ann", PAGE)] == ["k", "l"]
    assert storage.remove("ann", PAGE) == 2
    assert [usage.owner for usage in storage.usages()] == ["bob"]


def test_a_key_that_is_refused_now_is_still_exported(storage: Storage) -> None:
    storage.set("ann", PAGE, "k", 1)
    with sqlite3.connect(storage.path) as database:
        database.execute("update items set key = 'k' || char(8203)")
    database.close()
    assert [item.key for item in storage.items("ann", PAGE)] == ["k\u200b"]
    assert storage.remove("ann", PAGE) == 1


def test_kernels_of_a_folder_cannot_use_up_what_all_have(storage: Storage) -> None:
    storage = Storage(storage.path, quotas=Quotas(folder_bytes=100))
    storage.set("ann", PAGE, "k", "x" * 40, folder="/o")
    storage.set("ann", PAGE, "k", "y" * 50, folder="/o")  # in its place
    with pytest.raises(StorageError, match="a kernel may add no more"):
        storage.set("ann", OTHER, "k", "x" * 50, folder="/o")
    storage.set("ann", Artifact("c" * 32, "/other/c.html"), "k", "x" * 50, folder="/other")
    storage.set("ann", OTHER, "k", "x" * 50)  # a page itself
    storage = Storage(storage.path, quotas=Quotas(folder_keys=2))
    with pytest.raises(StorageError, match="2 keys"):
        storage.set("ann", PAGE, "l", 1, folder="/o")


def test_names_that_keep_nothing_leave_nothing(storage: Storage) -> None:
    """A kernel may name any number of pages: set and delete, under new names without end."""
    storage.set("ann", PAGE, "k", 1)

    def churn(first: int) -> int:
        for number in range(first, first + 300):
            page = Artifact(f"{number:032x}", f"/o/{number}{'x' * 4000}.html")
            storage.set("ann", page, "k", 1, folder="/o")
            assert storage.delete("ann", page, "k")
        with closing(sqlite3.connect(storage.path)) as database:
            database.execute("pragma wal_checkpoint(truncate)")
            assert database.execute("select count(*) from artifacts").fetchone() == (1,)
        return storage.path.stat().st_size

    assert churn(300) <= churn(0) + 64 * 1024
    # Another person's keys keep the path of a page.
    storage.set("bob", PAGE, "k", 1)
    storage.delete("bob", PAGE, "k")
    assert [usage.artifact for usage in storage.usages()] == [PAGE]


def test_what_notebooks_keep_is_no_pages(tmp_path: Path) -> None:
    assert Artifact.of_notebooks(tmp_path).id != Artifact.of_page(tmp_path, "").id
    assert Artifact.of_notebooks(tmp_path).path == str(tmp_path)


def test_a_kernels_value_is_kept_and_read_unparsed(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To parse megabytes of JSON stops every thread of the server."""
    value = b"[" + b"[], " * 1_000_000 + b"0]"
    with monkeypatch.context() as patch:
        patch.delattr("json.loads")
        patch.delattr("json.dumps")
        storage.set_json("ann", PAGE, "k", value)
        found = storage.get("ann", PAGE, "k")
    assert found is not None
    assert found.json == value
    assert len(found.value) == 1_000_001


@pytest.mark.parametrize(
    "value",
    [b"", b"{", b"[1,]", b"NaN", b"1 2", b"'a'", b'"a\0"', b'"a"\0', b'"\xff"', b"[" * 5000],
)
def test_what_is_no_json_is_neither_kept_nor_read(storage: Storage, value: bytes) -> None:
    with pytest.raises(StorageError, match="neither a text nor JSON"):
        storage.set_json("ann", PAGE, "k", value)
    storage.set("ann", PAGE, "k", 1)
    with closing(sqlite3.connect(storage.path)) as database, database:
        database.execute("update items set value = ?", (value,))
    with pytest.raises(StorageError, match="no JSON"):
        storage.get("ann", PAGE, "k")


def test_a_value_that_python_does_not_parse_is_said(storage: Storage) -> None:
    storage.set_json("ann", PAGE, "k", b"9" * 5000)
    found = storage.get("ann", PAGE, "k")
    assert found is not None
    with pytest.raises(StorageError, match="too long a number"):
        _ = found.value
