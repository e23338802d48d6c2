"""list, logs, kill, prune: with a real kernel, and with records of made-up sandboxes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jupyter_client import BlockingKernelClient, KernelManager

from gvisor_kernel.bridge import sleep
from gvisor_kernel.bridge.addresses import owner_name
from gvisor_kernel.cli import logs
from gvisor_kernel.cli.checks.state import check_leftovers, check_state
from gvisor_kernel.cli.main import main
from gvisor_kernel.cli.sandboxes import find_one
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.host.log_files import EVENTS, INSIDE, STDERR
from gvisor_kernel.host.private_directories import state_root
from gvisor_kernel.host.processes import ProcessId, identify, is_alive
from gvisor_kernel.runtimes.runsc.command_line import find_runsc
from gvisor_kernel.runtimes.state.records import (
    RECORD,
    Machine,
    Record,
    make_directory,
    read_record,
    this_machine,
    this_process,
    write_record,
)

from ..jupyter.helpers import SANDBOXED, running_kernel, wait_until

Captured = pytest.CaptureFixture[str]


def ended_process() -> ProcessId:
    """Return a process that has ended."""
    with subprocess.Popen(["sleep", "60"]) as process:
        found = identify(process.pid)
        process.kill()
    assert found is not None
    return found


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty state directory."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "gvisor-kernel/sandboxes"


def make_record(container_id: str, **changes: object) -> Record:
    """Write the record of a sandbox that this process owns. ``changes``: other values of fields."""
    content: dict[str, object] = {
        "identity": f"container_{container_id.upper()}--made-up--0123456789ab",
        "container_id": container_id,
        "kernel_name": "made-up",
        "kernel_id": "some-kernel",
        "folder": "/some/folder",
        "created": time.time() - 90,
        "memory_limit": 2**30,
        "owner": this_process(),
        "machine": this_machine(),
        **changes,
    }
    record = Record(**content)  # type: ignore[arg-type]
    write_record(make_directory(container_id), record)
    return record


def test_record_of_another_release_is_read(state: Path) -> None:
    """An older one has fewer fields, a later one more. A directory without a record is removed
    with its sandbox, which may be one of a server that was started before an update."""
    record = make_record("older")
    path = state / "older" / RECORD
    content = json.loads(path.read_text())
    for name in ("node", "end_argv", "sweep_argv"):
        del content[name]
    path.write_text(json.dumps(content | {"later": [1]}))
    assert read_record(path.parent) == record


def test_another_release_than_that_of_new_kernels_is_shown(state: Path, capsys: Captured) -> None:
    """Beside the folder, which has little room; the other one is in the document alone."""
    current = find_runsc().version
    make_record("usual", runsc=current)
    make_record("other", runsc="0.0~19990101.0")
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.rstrip().split("  ")[-1].strip() for line in lines[1:]) == [
        "/some/folder",
        "/some/folder (runsc 19990101.0)",
    ]
    assert {one["runsc"] for one in listed(capsys)} == {
        current.removeprefix("0.0~"),
        "19990101.0",
    }


def listed(capsys: Captured) -> list[dict[str, object]]:
    capsys.readouterr()
    assert main(["list", "--json"]) == 0
    return list(json.loads(capsys.readouterr().out))


@pytest.fixture(scope="module")
def kernel(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    with running_kernel(start={"cwd": str(tmp_path_factory.mktemp("notebook"))}) as pair:
        yield pair


@pytest.fixture
def id(kernel: tuple[KernelManager, BlockingKernelClient], capsys: Captured) -> str:
    """The id of that kernel's sandbox, the only one of this process."""
    (found,) = [s for s in listed(capsys) if s["owner_pid"] == os.getpid()]
    return str(found["id"])


@pytest.mark.skipif(not SANDBOXED, reason="the kernel under test has no sandbox")
class TestRealKernel:
    def test_list_shows_running_kernel(self, id: str, capsys: Captured) -> None:
        (found,) = [s for s in listed(capsys) if s["id"] == id]
        assert found["state"] in ("running", "idle")
        assert found["name"] == "gvisor-python"
        assert found["memory_limit"] == 4 * 2**30
        assert 10 * 2**20 < int(str(found["memory_used"])) < 2**30
        assert str(found["folder"]).rpartition("/")[2].startswith("notebook")
        assert main(["list"]) == 0
        header, *lines = capsys.readouterr().out.splitlines()
        assert header.split() == ["ID", "NAME", "STATE", "MEMORY", "AGE", "FOLDER"]
        (line,) = [line for line in lines if line.startswith(id)]
        assert " running " in line or " idle " in line

    def test_list_shows_what_an_idle_kernel_has_given_back(
        self,
        id: str,
        kernel: tuple[KernelManager, BlockingKernelClient],
        capsys: Captured,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def find() -> dict[str, object]:
            return next(s for s in listed(capsys) if s["id"] == id)

        keep = "import os\nx = [os.urandom(8 << 20) for _ in range(16)]\nx = None"
        kernel[1].execute_interactive(keep, timeout=30)
        kept = int(str(find()["memory_used"]))
        assert not find()["memory_given_back"]
        monkeypatch.setattr(sleep, "REST_SECONDS", 0.0)
        wait_until(lambda: bool(find()["memory_given_back"]), "memory to be given back")
        found = find()
        assert int(str(found["memory_given_back"])) > 100 * 2**20
        assert int(str(found["memory_used"])) < kept - 100 * 2**20
        assert main(["list"]) == 0
        assert " MiB given back " in capsys.readouterr().out

    def test_logs_cannot_control_the_terminal(
        self, id: str, kernel: tuple[KernelManager, BlockingKernelClient], capsys: Captured
    ) -> None:
        log = find_one(id).directory / INSIDE
        kernel[1].execute_interactive(
            "import os; _ = os.write(2, b'\\x1b]0;owned\\x07 from inside\\n')", timeout=30
        )
        wait_for(lambda: log.exists() and "from inside" in log.read_text())
        assert main(["logs", id]) == 0
        out = capsys.readouterr().out
        assert "\\x1b]0;owned\\x07 from inside" in out
        assert "\x1b" not in out

    def test_kill_ends_kernel_and_jupyter_notices(
        self, id: str, kernel: tuple[KernelManager, BlockingKernelClient], capsys: Captured
    ) -> None:
        follower = threading.Thread(target=main, args=(["logs", "-f", id],))
        follower.start()
        assert main(["kill", id[:-1]]) == 0
        wait_for(lambda: not kernel[0].is_alive())
        follower.join(timeout=10)
        assert not follower.is_alive()
        assert f"Killed the sandbox {id}\n" in capsys.readouterr().out


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Poll until ``condition`` is true: this process gets no event for it."""
    deadline = time.monotonic() + seconds
    tick = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true in time"
        tick.wait(0.02)


def test_commands_report_that_there_are_no_sandboxes(state: Path, capsys: Captured) -> None:
    assert listed(capsys) == []
    assert main(["list"]) == 0
    assert main(["prune"]) == 0
    assert capsys.readouterr().out == "No sandboxes.\nNothing to remove.\n"
    for command in ("logs", "kill"):
        assert main([command, "01abc"]) == 1
        assert "There is no sandbox '01abc'" in capsys.readouterr().err


def test_list_distinguishes_states(state: Path, capsys: Captured) -> None:
    gone = ended_process()
    here = this_machine()
    make_record("01a", processes={})
    make_record("01b", processes={"runsc": this_process()})
    make_record("01c", processes={"runsc": gone})
    make_record("01d", owner=gone)
    make_record("01e", machine=Machine("other", "boot", "pid:[1]"), owner=gone)
    make_record("01f", machine=Machine(here.host, "an earlier boot", "pid:[1]"), owner=gone)
    found = {str(s["id"]): s["state"] for s in listed(capsys)}
    assert found == {
        "01a": "starting",
        "01b": "running",
        "01c": "ended",
        "01d": "orphaned",
        "01e": "elsewhere",
        "01f": "orphaned",
    }


def test_list_shows_a_paused_kernel(state: Path, capsys: Captured) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        sentry = identify(process.pid)
        assert sentry is not None
        make_record("01a", processes={"sentry": sentry})
        make_record("01b", processes={"sentry": sentry}, spare=True)
        assert [s["paused"] for s in listed(capsys)] == [False, False]
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        assert [(s["state"], s["paused"]) for s in listed(capsys)] == [
            ("idle", True),
            ("spare", False),
        ]
        assert main(["list"]) == 0
        _, first, second = capsys.readouterr().out.splitlines()
        assert " idle " in first
        assert " spare " in second
        process.kill()


def test_record_of_another_directory_is_not_listed(state: Path, capsys: Captured) -> None:
    record = make_record("01a")
    directory = make_directory("01b")
    write_record(directory, record)
    (make_directory("01c") / "record.json").write_text("{")
    assert [s["id"] for s in listed(capsys)] == ["01a"]


def test_list_shows_what_a_branch_is_one_of(state: Path, capsys: Captured) -> None:
    make_record("01a")
    make_record("01b", branch=("try", "01a"), saved=1.0)
    make_record("01c", branch=("x\x1b[2J\n01d", "01a"))
    assert [one["branch"] for one in listed(capsys)][:2] == [None, {"name": "try", "of": "01a"}]
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "/some/folder (branch try of 01a)" in lines[2]
    assert "(branch x\\x1b[2J\\n01d of 01a)" in lines[3]


def test_names_cannot_control_the_terminal(state: Path, capsys: Captured) -> None:
    make_record("01a", folder="/x\x1b[2J\n/y", kernel_name="[red]n\u202e")
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert "/x\\x1b[2J\\n/y" in out
    assert "[red]n\\u202e" in out


def test_prune_removes_orphaned_sandboxes_only(state: Path, capsys: Captured) -> None:
    make_record("01a")
    make_record("01b", owner=ended_process())
    make_record("01c", machine=Machine("other", "boot", "pid:[1]"), owner=ended_process())
    make_record("01d", owner=ended_process(), saved=1.0)
    (state / "01d" / "saved").mkdir()
    assert check_leftovers().state == "warning"
    assert "started sandbox 01b is gone" in check_leftovers().fact
    assert main(["prune"]) == 0
    assert capsys.readouterr().out == "Removed the sandbox 01b\n"
    assert {path.name for path in state.iterdir()} == {"01a", "01c", "01d"}
    assert check_leftovers().state == "ok"
    assert "1 kernels hibernate" in check_leftovers().fact


def test_prune_removes_the_sockets_of_ended_processes(state: Path, capsys: Captured) -> None:
    sockets = state_root() / "sockets"
    own = sockets / (owner_name(os.getpid()) or "")
    own.mkdir(parents=True)
    (sockets / "1-1").mkdir()
    (sockets / "1-1/shell").touch()
    assert main(["prune"]) == 0
    assert capsys.readouterr().out == "Removed the sockets of 1 ended process\n"
    assert [path.name for path in sockets.iterdir()] == [own.name]
    assert main(["prune"]) == 0
    assert capsys.readouterr().out == "Nothing to remove.\n"


def test_kill_removes_orphaned_sandbox(state: Path) -> None:
    make_record("01b", owner=ended_process())
    assert main(["kill", "01b"]) == 0
    assert not (state / "01b").exists()


def test_kill_refuses_sandbox_of_another_machine(state: Path, capsys: Captured) -> None:
    make_record("01a", machine=Machine("other", "boot", "pid:[1]"))
    assert main(["kill", "01a"]) == 1
    assert "runs on the machine other" in capsys.readouterr().err


def test_kill_ignores_processes_that_only_the_record_names(state: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as bystander:
        process = identify(bystander.pid)
        assert process is not None
        make_record("01a", processes={"runsc": process})
        assert main(["kill", "01a"]) == 0
        assert is_alive(process)
        bystander.kill()


def test_id_may_be_shortened_if_unique(state: Path) -> None:
    make_record("01abc")
    make_record("01abd")
    assert find_one("01ABC").id == "01abc"
    assert find_one("container_01abd").id == "01abd"
    with pytest.raises(GvisorKernelError, match="2 sandboxes have an id that begins with '01ab'"):
        find_one("01ab")
    make_record("01ab")
    assert find_one("01ab").id == "01ab"


@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory"])
def test_log_that_is_no_regular_file_is_not_read(state: Path, kind: str, capsys: Captured) -> None:
    make_record("01a")
    log = state / "01a" / EVENTS
    if kind == "symlink":
        log.symlink_to("/etc/passwd")
    elif kind == "fifo":
        os.mkfifo(log)
    else:
        log.mkdir()
    assert main(["logs", "01a"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "has no log yet" in captured.err


def test_logs_prints_older_parts_first(state: Path, capsys: Captured) -> None:
    make_record("01a")
    (state / "01a" / f"{EVENTS}.first").write_text("1 first\n")
    (state / "01a" / f"{EVENTS}.1").write_text("2 old\n")
    (state / "01a" / EVENTS).write_bytes(b"4 new \xff\x1b\n")
    (state / "01a" / INSIDE).write_text("3 inside\n5 inside\n")
    (state / "01a" / STDERR).write_text("0 stderr\n")
    assert main(["logs", "01a"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        *("0 stderr", "1 first", "2 old", "3 inside", "4 new \\xff\\x1b", "5 inside")
    ]


def test_following_survives_rotation_and_ends_with_sandbox(state: Path) -> None:
    make_record("01a", processes={"runsc": this_process()})
    log = state / "01a" / EVENTS
    log.write_text("one\n")
    following = logs.follow(log.parent, find_one("01a"))
    assert next(following) == "one\n"
    with log.open("a") as file:
        file.write("two\n")
    assert next(following) == "two\n"
    log.rename(log.with_name(f"{log.name}.1"))
    log.write_text("three\n")
    assert next(following) == "three\n"
    (log.parent / INSIDE).write_text("four\n")
    assert next(following) == "four\n"
    (state / "01a" / "record.json").unlink()
    assert list(following) == []


def test_state_check_warns_of_little_space(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_state().state == "ok"
    monkeypatch.setattr("gvisor_kernel.cli.checks.state.MIN_SPACE", 2**62)
    assert check_state().state == "warning"
