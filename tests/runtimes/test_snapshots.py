"""Snapshots of sandboxes: saved, and restored with the folders of another session."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import SnapshotError
from gvisor_kernel.runtimes.base import Sandbox
from gvisor_kernel.runtimes.runsc.runtime import RunscRuntime
from gvisor_kernel.runtimes.state import lifeline, records

from ..patience import scale_seconds
from .conftest import Start, make_request
from .standin import Conversation
from .test_outside import descriptors, find_traces

WRITE_SECONDS = scale_seconds(60)

PREPARE = """
import sys; sys.path.insert(0, "/opt/gvisor-kernel")
from gvisor_kernel.guest import main, process
main.mount_workspace()
os.chdir("/workspace")
kernel = process.start_kernel(["/bin/sleep", "1000"], {}, "/workspace")
remembered = os.urandom(8).hex()
"""
"""What the guest does: it mounts the workspace, and starts a process in a user namespace of its
own."""


@pytest.fixture(scope="module")
def snapshot(runtime: RunscRuntime, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The snapshot of a sandbox that had an empty folder, and the workspace mounted over it."""
    folder = tmp_path_factory.mktemp("builder")
    sandbox = runtime.start(SandboxSpec(), make_request(folder))
    try:
        inside = Conversation(sandbox)
        inside.ask(f"run({PREPARE!r})")
        directory = tmp_path_factory.mktemp("snapshot")
        sandbox.checkpoint(directory, WRITE_SECONDS)
    finally:
        sandbox.close()
    return directory


Restore = Callable[..., Conversation]


@pytest.fixture
def restore(runtime: RunscRuntime, folder: Path, snapshot: Path) -> Iterator[Restore]:
    sandboxes: list[Sandbox] = []

    def restore_one(where: Path | None = None, **settings: object) -> Conversation:
        spec = SandboxSpec(**settings)  # type: ignore[arg-type]
        sandboxes.append(runtime.start(spec, make_request(where or folder), snapshot))
        return Conversation(sandboxes[-1])

    yield restore_one
    for sandbox in sandboxes:
        sandbox.close()


def test_restored_sandbox_sees_the_folders_of_its_own_session(
    restore: Restore, runtime: RunscRuntime, folder: Path
) -> None:
    (folder / "data.csv").write_text("a,b\n")
    before = find_traces()
    inside = restore()
    inside.sandbox.verify()
    assert len(inside.ask("remembered")) == 16
    assert inside.ask("os.getcwd()") == "/workspace"
    inside.ask("os.close(os.open('/workspace/.new', os.O_CREAT)) or os.unlink('/workspace/.new')")
    assert sorted(inside.ask("os.listdir('/workspace')")) == ["data.csv", "outputs"]
    assert inside.ask("read('data.csv')") == "a,b\n"
    inside.ask("open('data.csv', 'w').write('mine')")
    inside.ask("open('/mnt/user-data/outputs/kept', 'w').write('x')")
    assert (folder / "data.csv").read_text() == "a,b\n"
    assert (folder / "outputs" / "kept").stat().st_uid == folder.stat().st_uid
    assert inside.sandbox.identity in inside.ask("read('/container_info.json')")
    transcripts = inside.sandbox.view.transcripts
    assert transcripts is not None
    (transcripts / "transcript.jsonl").write_text("{}\n")
    assert inside.ask("read('/mnt/transcripts/transcript.jsonl')") == "{}\n"
    assert "sleep" in inside.ask("read('/proc/%d/cmdline' % kernel.pid)")
    inside.sandbox.close()
    assert find_traces() == before


def test_snapshot_is_readable_by_its_user_only(snapshot: Path) -> None:
    assert snapshot.stat().st_uid == os.geteuid()
    for path in snapshot.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {path.name for path in snapshot.iterdir()} >= {"checkpoint.img"}


def test_restored_sandboxes_share_nothing(restore: Restore, tmp_path: Path) -> None:
    found = []
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        found.append(restore(tmp_path / str(number)))
    for number, inside in enumerate(found):
        inside.ask(f"run('remembered = {number}')")
        inside.ask(f"open('/workspace/mine', 'w').write('{number}')")
    for number, inside in enumerate(found):
        assert inside.ask("remembered") == number
        assert inside.ask("read('/workspace/mine')") == str(number)
    assert len({inside.sandbox.identity for inside in found}) == 3
    found[1].sandbox.close()
    assert found[2].ask("remembered") == 2


def test_restored_sandbox_can_be_saved_again(
    restore: Restore, runtime: RunscRuntime, folder: Path, tmp_path: Path
) -> None:
    inside = restore()
    inside.ask("run('generation = 2')")
    directory = tmp_path / "snapshot"
    directory.mkdir(mode=0o700)
    inside.sandbox.checkpoint(directory, WRITE_SECONDS)
    inside.sandbox.close()
    again = runtime.start(SandboxSpec(), make_request(folder), directory)
    try:
        assert Conversation(again).ask("[generation, len(remembered)]") == [2, 16]
    finally:
        again.close()


def test_memory_limit_is_that_of_the_restoring_session(restore: Restore) -> None:
    # A current runsc compares the GiB of the memory file and the size of /dev/shm: both are equal.
    inside = restore(memory_limit=4608 << 20)
    record = records.read_record(inside.sandbox.directory)
    assert record is not None
    for group in map(Path, record.cgroups):
        for file in ("memory.max", "memory.limit_in_bytes"):
            if (group / file).exists():
                assert int((group / file).read_text()) == (4608 + 192) << 20
    assert "MemTotal:        4718592 kB" in inside.ask("read('/proc/meminfo')")


def assert_fails_and_leaves_nothing(
    runtime: RunscRuntime, spec: SandboxSpec, folder: Path, snapshot: Path
) -> None:
    before, opened, held = find_traces(), descriptors(), lifeline._held
    with pytest.raises(SnapshotError, match="could not be restored"):
        runtime.start(spec, make_request(folder), snapshot)
    assert find_traces() == before
    assert descriptors() == opened
    assert lifeline._held == held
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("damage", ["none", "empty", "truncated"])
def test_damaged_snapshot_is_refused(
    damage: str, runtime: RunscRuntime, folder: Path, snapshot: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "damaged"
    directory.mkdir()
    for path in snapshot.iterdir():
        if damage != "none":
            content = path.read_bytes() if damage == "truncated" else b""
            (directory / path.name).write_bytes(content[: len(content) // 2])
    assert_fails_and_leaves_nothing(runtime, SandboxSpec(), folder, directory)


def test_snapshot_whose_mounts_are_missing_is_refused(
    runtime: RunscRuntime, folder: Path, snapshot: Path
) -> None:
    assert_fails_and_leaves_nothing(runtime, SandboxSpec(outputs=None), folder, snapshot)


def test_ended_sandbox_cannot_be_saved(start: Start, runtime: RunscRuntime, tmp_path: Path) -> None:
    inside = start()
    inside.ask("1")
    inside.sandbox.kill()
    with pytest.raises(SnapshotError, match="could not be written"):
        inside.sandbox.checkpoint(tmp_path, WRITE_SECONDS)


def test_checkpoint_that_takes_too_long_is_an_error(
    start: Start, runtime: RunscRuntime, tmp_path: Path
) -> None:
    before = find_traces()
    inside = start()
    inside.ask("1")
    with pytest.raises(SnapshotError, match=r"within 0\.01 s"):
        inside.sandbox.checkpoint(tmp_path, 0.01)
    inside.sandbox.close()
    assert find_traces() == before
