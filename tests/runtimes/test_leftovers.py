"""Removals in the background: tried again, a bounded number of times, without blocking a start."""

from __future__ import annotations

import io
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel.host.folders import find_identity
from gvisor_kernel.runtimes.copies.contents import read_list
from gvisor_kernel.runtimes.copies.outputs import COPIED
from gvisor_kernel.runtimes.docker import removal
from gvisor_kernel.runtimes.state import leftovers, records, sweep
from gvisor_kernel.runtimes.state.leftovers import Leftovers
from gvisor_kernel.runtimes.state.listed import find_state
from gvisor_kernel.runtimes.state.records import Record, this_machine, this_process

SECONDS = 20.0


class Removal:
    """Fails ``failures`` times. With ``held`` each try waits for ``may_end``."""

    def __init__(self, failures: int = 0, *, held: bool = False) -> None:
        self.tries = 0
        self.began = threading.Event()
        self.may_end = threading.Event()
        self.done = threading.Event()
        self._failures = failures
        if not held:
            self.may_end.set()

    def __call__(self) -> bool:
        self.tries += 1
        self.began.set()
        assert self.may_end.wait(SECONDS)
        if self.tries <= self._failures:
            return False
        self.done.set()
        return True


@pytest.fixture
def left() -> Leftovers:
    """One that does not wait for long."""
    return Leftovers(0.001, 0.01, tries=5)


def wait_until_empty(left: Leftovers) -> None:
    deadline = time.monotonic() + SECONDS
    with left._changed:
        while left._left or left._thread is not None:
            assert left._changed.wait(0.05) or time.monotonic() < deadline


def test_failed_removal_is_tried_again(left: Leftovers) -> None:
    removal = Removal(failures=3)
    left.put(Path("/one"), None, removal)
    assert removal.done.wait(SECONDS)
    wait_until_empty(left)
    assert removal.tries == 4


def test_removal_is_given_up_after_max_tries(left: Leftovers) -> None:
    removal = Removal(failures=1000)
    left.put(Path("/one"), None, removal)
    wait_until_empty(left)
    assert removal.tries == 5


def test_exception_does_not_end_the_thread(left: Leftovers) -> None:
    failed = threading.Event()

    def fail() -> bool:
        if failed.is_set():
            return True
        failed.set()
        raise ValueError("odd")

    left.put(Path("/one"), None, fail)
    wait_until_empty(left)
    assert failed.is_set()


def test_slow_removal_is_tried_at_longer_intervals() -> None:
    """A start has it tried at once only where that takes little time."""
    left = Leftovers()
    removal = Removal(failures=1, held=True)
    left.put(Path("/one"), "/outputs", removal)
    left.try_soon(None, 0)
    assert removal.began.wait(SECONDS)
    waiting = left._left[Path("/one")]
    waiting.wait = leftovers.SOON  # as after many tries
    removal.may_end.set()
    with left._changed:
        assert left._changed.wait_for(lambda: waiting.tries == 1, SECONDS)
    assert waiting.due > time.monotonic() + leftovers.SOON
    left.try_soon("/outputs", 1000.0)
    assert removal.tries == 1
    with left._changed:
        waiting.due = 0
        left._changed.notify_all()
    wait_until_empty(left)
    assert removal.done.is_set()


def test_only_a_start_with_the_same_outputs_waits(left: Leftovers) -> None:
    slow, other = Removal(held=True), Removal()
    left.put(Path("/slow"), "/outputs", slow)
    assert slow.began.wait(SECONDS)
    left.put(Path("/other"), "/others", other)
    left.try_soon(None, 1000.0)  # the first two calls must not wait at all
    left.try_soon("/elsewhere", 1000.0)
    left.try_soon("/outputs", 0.01)
    released = threading.Timer(0.05, slow.may_end.set)
    released.start()
    left.try_soon("/outputs", 1000.0)
    assert slow.done.is_set()
    released.join()
    wait_until_empty(left)


# -- removals of sandboxes -------------------------------------------------------------------------


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return records.make_directory("01a")


def make_record(directory: Path, outputs: Path) -> Record:
    outputs.mkdir(exist_ok=True)
    record = Record(
        identity="container_01A",
        container_id="01a",
        kernel_name="k",
        kernel_id="",
        folder="/",
        created=0.0,
        memory_limit=1,
        owner=this_process(),
        machine=this_machine(),
        outputs=str(outputs),
        outputs_file=find_identity(str(outputs)),
        outputs_parent=find_identity(str(outputs.parent)),
        runtime="docker",
        engine="unix:///nowhere.sock",
        ready=True,
    )
    records.write_record(directory, record)
    return record


def test_slow_copy_of_outputs_does_not_block_a_start(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: Leftovers
) -> None:
    """It continues in the background, with more time, and ``list`` shows the state meanwhile."""
    record = make_record(directory, tmp_path / "outputs")
    assert find_state(record) == "running"
    given: list[float | None] = []
    again = Removal(held=True)

    def remove_from_engine(directory: Path, record: Record, seconds: float | None) -> bool:
        removal.record_end(directory)
        given.append(seconds)
        return len(given) > 1 and again()

    monkeypatch.setattr(removal, "remove_from_engine", remove_from_engine)
    monkeypatch.setattr(sweep, "LEFTOVERS", left)
    assert not sweep.remove_sandbox(directory, record)
    assert again.began.wait(SECONDS)
    sweep.finish_removals()  # as before a start: must return while the copy still runs
    sweep.finish_removals(str(tmp_path / "others"))
    found = records.read_record(directory)
    assert found is not None
    assert find_state(found) == "copying"
    again.may_end.set()
    wait_until_empty(left)
    assert not directory.exists()
    assert given == [None, sweep.LATER_SECONDS]


class FakeEngine:
    """Has an archive of two files, and fails at the second one while ``slow``."""

    def __init__(self) -> None:
        self.slow = True
        packed = io.BytesIO()
        self._sizes = [0]
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for name in ("a", "b"):
                info = tarfile.TarInfo(f"./{name}")
                info.size, info.mtime = 3, 1_600_000_000
                archive.addfile(info, io.BytesIO(b"abc"))
                self._sizes.append(packed.tell())
        self._data = packed.getvalue()

    def get(self, container: str, path: str) -> Iterator[bytes]:
        yield self._data[: self._sizes[1]]
        if self.slow:
            raise TimeoutError("it takes too long")
        yield self._data[self._sizes[1] :]


def test_copy_of_outputs_continues_where_it_stopped(directory: Path, tmp_path: Path) -> None:
    record = make_record(directory, tmp_path / "outputs")
    engine: Any = FakeEngine()
    with pytest.raises(TimeoutError):
        removal.copy_outputs(engine, directory, record)
    assert set(read_list(directory / COPIED)) == {"a"}
    engine.slow = False
    assert removal.copy_outputs(engine, directory, record).written == 1
    assert sorted(path.name for path in (tmp_path / "outputs").iterdir()) == ["a", "b"]
