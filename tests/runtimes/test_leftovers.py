"""Removals that nobody waits for: tried again, bounded, and in nobody's way."""

from __future__ import annotations

import io
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel.cli.sandboxes import find_state
from gvisor_kernel.host.folders import find_identity
from gvisor_kernel.runtimes.docker import removal
from gvisor_kernel.runtimes.docker.files import read_list
from gvisor_kernel.runtimes.state import leftovers, records, sweep
from gvisor_kernel.runtimes.state.leftovers import Leftovers
from gvisor_kernel.runtimes.state.records import Record, this_machine, this_process

SECONDS = 20.0


class Removal:
    """Fails ``failures`` times; each try waits until it may end."""

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
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(leftovers, "LONGEST_WAIT", 0.01)


def wait_until_empty(left: Leftovers) -> None:
    deadline = time.monotonic() + SECONDS
    with left._changed:
        while left._left or left._thread is not None:
            assert left._changed.wait(0.05) or time.monotonic() < deadline


def test_what_fails_is_tried_again(soon: None) -> None:
    left = Leftovers()
    removal = Removal(failures=3)
    left.put(Path("/one"), None, removal)
    assert removal.done.wait(SECONDS)
    wait_until_empty(left)
    assert removal.tries == 4


def test_not_for_ever(soon: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "MAX_TRIES", 5)
    left = Leftovers()
    removal = Removal(failures=1000)
    left.put(Path("/one"), None, removal)
    wait_until_empty(left)
    assert removal.tries == 5


def test_an_error_ends_nothing(soon: None) -> None:
    left = Leftovers()
    failed = threading.Event()

    def fail() -> bool:
        if failed.is_set():
            return True
        failed.set()
        raise ValueError("odd")

    left.put(Path("/one"), None, fail)
    wait_until_empty(left)
    assert failed.is_set()


def test_the_longer_it_takes_the_more_seldom() -> None:
    """A start has it tried at once only where that takes no time."""
    left = Leftovers()
    removal = Removal(failures=1, held=True)
    left.put(Path("/one"), "/outputs", removal)
    left.try_soon(None, 0)
    assert removal.began.wait(SECONDS)
    waiting = left._left[Path("/one")]
    waiting.wait = leftovers.SOON  # as if it had been tried often
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


def test_only_who_needs_the_outputs_waits_and_not_for_long(soon: None) -> None:
    left = Leftovers()
    slow, other = Removal(held=True), Removal()
    left.put(Path("/slow"), "/outputs", slow)
    assert slow.began.wait(SECONDS)
    left.put(Path("/other"), "/others", other)
    left.try_soon(None, 1000.0)  # these would never return
    left.try_soon("/elsewhere", 1000.0)
    left.try_soon("/outputs", 0.01)
    released = threading.Timer(0.05, slow.may_end.set)
    released.start()
    left.try_soon("/outputs", 1000.0)
    assert slow.done.is_set()
    released.join()
    wait_until_empty(left)


# -- of sandboxes ----------------------------------------------------------------------------------


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


def test_a_landing_that_takes_too_long_blocks_no_start(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, soon: None
) -> None:
    """It goes on in the background, for longer, and ``list`` shows it meanwhile."""
    record = make_record(directory, tmp_path / "outputs")
    assert find_state(record) == "running"
    given: list[float] = []
    again = Removal(held=True)

    def remove_parts(directory: Path, record: Record, seconds: float) -> bool:
        removal._note_end(directory)
        given.append(seconds)
        return len(given) > 1 and again()

    monkeypatch.setattr(removal, "remove_parts", remove_parts)
    left = Leftovers()
    monkeypatch.setattr(sweep, "LEFTOVERS", left)
    assert not sweep.remove_sandbox(directory, record)
    assert again.began.wait(SECONDS)
    sweep.finish_removals()  # before a start: these did not return before the landing did
    sweep.finish_removals(str(tmp_path / "others"))
    found = records.read_record(directory)
    assert found is not None
    assert find_state(found) == "landing"
    again.may_end.set()
    wait_until_empty(left)
    assert not directory.exists()
    assert given == [removal.COPY_SECONDS, sweep.LATER_SECONDS]


class FakeEngine:
    """Has an archive of two files, and is slow at the second."""

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


def test_a_landing_goes_on_where_it_was(directory: Path, tmp_path: Path) -> None:
    record = make_record(directory, tmp_path / "outputs")
    engine: Any = FakeEngine()
    with pytest.raises(TimeoutError):
        removal.copy_outputs(engine, directory, record)
    assert set(read_list(directory / removal.COPIED)) == {"a"}
    engine.slow = False
    assert removal.copy_outputs(engine, directory, record).written == 1
    assert sorted(path.name for path in (tmp_path / "outputs").iterdir()) == ["a", "b"]
