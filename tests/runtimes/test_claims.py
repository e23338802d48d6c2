"""What a dead owner has left is saved, removed or taken over by one process at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from gvisor_kernel.cli.sandboxes import run_prune
from gvisor_kernel.errors import StateError
from gvisor_kernel.host import commands, processes
from gvisor_kernel.host.processes import ProcessId
from gvisor_kernel.kernel import saved_kernel
from gvisor_kernel.runtimes.runsc import memory, orphan, runsc_sandbox
from gvisor_kernel.runtimes.state import records, sweep
from gvisor_kernel.runtimes.state.records import Record, claimed

from ..jupyter.helpers import wait_until
from ..patience import scale_seconds

SECONDS = scale_seconds(20)
DEAD = ProcessId(2**22 - 1, 1)
KERNEL = "kernel-of-test-claims"


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def sentry() -> Iterator[Callable[[], ProcessId]]:
    """Starts processes that stand for sentries."""
    started = []

    def start() -> ProcessId:
        started.append(subprocess.Popen(["sleep", "600"]))
        identified = processes.identify(started[-1].pid)
        assert identified is not None
        return identified

    yield start
    for process in started:
        process.kill()
        process.wait(SECONDS)


def leave(name: str, *, saved: bool = False, sentry: ProcessId | None = None) -> Path:
    """Make what a killed server leaves of a kernel."""
    with records.locked():
        state = records.make_directory(name)
        record = Record(
            *(f"{name}@test", name, "gvisor-python", KERNEL, "/nowhere", 0.0, 1, DEAD),
            machine=records.this_machine(),
            saved=1.0 if saved else 0.0,
            processes={} if sentry is None else {"sentry": sentry},
        )
        records.write_record(state, record)
    if saved:
        (state / "saved").mkdir()
    return state


def note_saved(directory: Path, record: Record) -> bool:
    (directory / "saved").mkdir()
    records.change_record(directory, record, saved=2.0)
    return True


def test_of_two_sweeps_one_saves_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    saves, begun, go_on = [], threading.Event(), threading.Event()

    def save(directory: Path, record: Record) -> bool:
        saves.append(directory)
        begun.set()
        return len(saves) == 1 and go_on.wait(SECONDS) and note_saved(directory, record)

    monkeypatch.setattr(orphan, "save_orphan", save)
    monkeypatch.setattr(saved_kernel, "CLAIM_SECONDS", 0.0)
    directory = leave("a")
    first = threading.Thread(target=sweep.sweep_orphans)
    first.start()
    assert begun.wait(SECONDS)
    try:
        assert sweep.sweep_orphans() == []
        with pytest.raises(StateError, match="is being saved"):
            saved_kernel.find_saved(KERNEL)
    finally:
        go_on.set()
        first.join(SECONDS)
    assert saves == [directory]
    record = records.read_record(directory)
    assert record is not None
    assert record.saved
    assert (directory / "saved").is_dir()


def test_a_late_sweep_leaves_a_kernel_that_was_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    (leave("a") / "runsc").mkdir()
    (leave("b", saved=True) / "runsc").mkdir()
    find = sweep.find_orphans

    def find_and_be_late(runtime: str | None = None) -> list[tuple[Path, Record | None]]:
        found = find(runtime)
        for directory, record in found:
            assert record is not None
            records.write_record(directory, replace(record, owner=records.this_process()))
        return found

    monkeypatch.setattr(sweep, "find_orphans", find_and_be_late)
    assert sweep.sweep_orphans() == []
    kept = records.sandbox_directories()
    assert [path.name for path in kept if (path / "runsc").is_dir()] == ["a", "b"]
    assert not sweep.remove_orphan(kept[1])


def test_what_is_not_ended_or_cannot_be_read_is_not_taken_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sweep, "retire_sandbox", lambda directory, record: False)
    directory = leave("a", saved=True)
    (directory / "runsc").mkdir()
    with pytest.raises(StateError, match="has not ended"):
        saved_kernel.find_saved(KERNEL)
    (directory / "runsc").rmdir()
    with pytest.raises(StateError, match="cannot be read"):
        saved_kernel.find_saved(KERNEL)
    assert directory.is_dir()
    assert saved_kernel.find_saved("another") is None


def test_all_wait_stopped_and_the_small_ones_are_saved_first(
    monkeypatch: pytest.MonkeyPatch, sentry: Callable[[], ProcessId]
) -> None:
    sizes = {"a": 3, "b": 2, "c": 1}
    for name in sizes:
        leave(name, sentry=sentry())
    monkeypatch.setattr(memory, "measure_sandbox", lambda record: sizes[record.container_id])
    monkeypatch.setattr(sweep, "AT_ONCE", 1)
    saved = []

    def save(directory: Path, record: Record) -> bool:
        saved.append(directory.name)
        for _, other in records.find_sandboxes():  # the signal is sent, and arrives soon
            wait_until(partial(processes.is_stopped, other.processes["sentry"].pid), "stopped")
        return note_saved(directory, record)

    monkeypatch.setattr(orphan, "save_orphan", save)
    assert sweep.sweep_orphans() == []
    assert saved == ["c", "b", "a"]


def test_what_could_not_be_removed_is_claimed_again_before_the_next_try(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory = leave("a", saved=True)
    with monkeypatch.context() as patch:
        patch.setattr(sweep, "end_sandbox", lambda directory, groups: False)
        assert not sweep.remove_orphan(directory)
    sweep.finish_removals()
    assert directory.is_dir()
    assert sweep.remove_orphan(directory)


def test_a_claim_ends_with_its_holder() -> None:
    directory = leave("a")
    with claimed(directory), pytest.raises(TimeoutError), claimed(directory):
        pass
    with claimed(directory):
        assert sweep.sweep_orphans() == []
    assert sweep.sweep_orphans() == ["a@test"]
    assert not directory.exists()


def test_prune_says_what_it_saved(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(orphan, "save_orphan", note_saved)
    leave("a")
    run_prune(Namespace())
    assert capsys.readouterr().out == "Saved the kernel of the sandbox a\n"
    held = leave("b")
    with claimed(held):
        run_prune(Namespace())
    assert "Another process saves or removes the sandbox b" in capsys.readouterr().out


def test_what_was_saved_stays_if_its_record_cannot_be_read(
    caplog: pytest.LogCaptureFixture,
) -> None:
    kept, without = leave("a", saved=True), leave("b")
    gone = leave("c", saved=True)  # half removed
    for directory in (kept, without):
        (directory / records.RECORD).write_text('{"identity": 7}')
    (gone / records.RECORD).unlink()
    for _ in range(2):
        sweep.sweep_orphans()
        assert records.sandbox_directories() == [kept]
        assert (kept / "saved").is_dir()
    (line,) = caplog.messages
    assert str(kept) in line


def test_a_kernel_waits_stopped_from_its_save_on(
    monkeypatch: pytest.MonkeyPatch, sentry: Callable[[], ProcessId]
) -> None:
    """However long the process that saves it is stopped then."""
    process = sentry()
    directory = leave("a", sentry=process)
    (directory / "kernel.json").write_text('{"sources": {}}')
    os.kill(process.pid, signal.SIGSTOP)
    script = 'test "$(cut -d" " -f3 /proc/$0/stat)" != T && echo page >"$1/pages"'
    monkeypatch.setattr(
        runsc_sandbox,
        "checkpoint_argv",
        lambda _, snapshot, **more: ["sh", "-c", script, str(process.pid), snapshot],
    )
    monkeypatch.setattr(runsc_sandbox, "find_runsc", lambda _: None)
    monkeypatch.setattr(orphan, "begin_to_keep", lambda *_: None)
    record = records.read_record(directory)
    assert record is not None
    assert orphan.save_orphan(directory, record)
    assert (directory / "saved" / "image" / "pages").exists()
    assert processes.is_stopped(process.pid)


def test_a_program_that_has_ended_is_seen_by_a_process_that_was_stopped_meanwhile() -> None:
    command = commands._Command(["true"], 100, None, -1, {"PATH": os.environ["PATH"]}, False)
    os.waitid(os.P_PID, command._process.pid, os.WEXITED | os.WNOWAIT)
    assert command.wait(time.monotonic() - 60).status == 0
    command.close()
