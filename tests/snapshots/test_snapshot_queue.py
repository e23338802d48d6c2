"""Snapshots made in the background: after a cold start, one at a time, with low priority."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from gvisor_kernel.host.private_directories import state_root
from gvisor_kernel.jupyter.plan_factory import make_plan
from gvisor_kernel.kernel import snapshot_queue
from gvisor_kernel.kernel.client import private_connection_info
from gvisor_kernel.kernel.snapshot_builder import NICENESS, build_snapshot
from gvisor_kernel.kernel.snapshot_queue import SnapshotQueue
from gvisor_kernel.runtimes import get_runtime
from gvisor_kernel.runtimes.state.records import Record, find_sandboxes
from gvisor_kernel.snapshots.snapshot_store import Store

from ..jupyter.helpers import execute, kernel_log, running_kernel, wait_until
from ..sweeps import ALL, needs_all
from ..world import kernelspec_of
from .conftest import copy_snapshot, packages_of

KERNEL = kernelspec_of("restored")

SERVER = """
import os, sys, time
from gvisor_kernel.kernel import snapshot_queue
from jupyter_client import KernelManager
from traitlets.config import Config
snapshot_queue.WAIT_SECONDS = 0.1
snapshot_queue.SnapshotQueue.instance().leaves_builder = False
managers = []
for preload in sys.argv[2:]:
    config = Config({"GVisorProvisioner": {"preload": [preload]}})
    manager = KernelManager(kernel_name="gvisor-python-restored", config=config)
    manager.start_kernel(cwd=sys.argv[1])
    managers.append(manager)
print("started", flush=True)
if sys.stdin.readline() == "fork\\n":
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(600)
for manager in managers:
    manager.shutdown_kernel(now=True)
"""
"""A server that starts a kernel for each module to preload. It ends at a line on stdin. At the line
"fork" it forks a child instead, and both stay."""


HOSTILE = "open('imported', 'w').close(); raise SystemExit(7)\n"


@contextmanager
def server(folder: Path, *preload: str, program: str = SERVER) -> Iterator[subprocess.Popen[str]]:
    """Run a server in a folder whose hostile modules must not be imported."""
    for name in ("gvisor_kernel.py", "json.py", "rich.py", "sitecustomize.py"):
        (folder / name).write_text(HOSTILE)
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", program, folder, *preload],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder)},  # for files that a killed server leaves
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        yield process
    finally:
        with process:
            assert process.stdin is not None
            if process.poll() is None:
                process.stdin.write("\n")
        assert not (folder / "imported").exists()


@pytest.fixture
def in_background(own_store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """An empty store. This process makes snapshots in the background, like any server."""
    monkeypatch.setattr(snapshot_queue, "WAIT_SECONDS", 0.1)
    monkeypatch.setattr(SnapshotQueue, "_instance", None)
    yield own_store
    SnapshotQueue.instance().stop()


def labels(store: Store) -> list[str]:
    return sorted(snapshot.meta.label["preload"] for snapshot in store.snapshots())


def sandboxes_of(store: Store) -> list[Record]:
    """Return the sandboxes of kernels that a snapshot is being made of."""
    return [record for _, record in find_sandboxes() if record.folder.startswith(str(store.root))]


def left_in(store: Store) -> set[str]:
    return {path.name for path in store.root.iterdir()} - {"lock", "builder"}


def test_first_start_is_cold_and_next_is_restored(
    in_background: Store,
    kernelspec: str,
    environment: Path,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    """An upgraded package makes the next start cold again, in the same server."""
    module = packages_of(environment) / "gk_version.py"
    module.write_text("version = 1\n")

    def start() -> tuple[str, str]:
        settings = {"preload": ["gk_version"]}
        with running_kernel(kernelspec, settings=settings, start={"cwd": str(tmp_path)}) as (m, c):
            said = execute(c, "import gk_version; print(gk_version.version)").text.strip()
            log = kernel_log(m)
        return said, "restored" if "was restored from a snapshot" in log else log

    version, log = start()
    assert version == "1"
    assert "the kernel starts without a snapshot: no snapshot fits" in log
    wait_until(lambda: labels(in_background) == ["gk_version"], "the snapshot")
    assert start() == ("1", "restored")
    old = in_background.snapshots()[0].meta.created
    module.write_text("version = 22\n")
    version, log = start()
    assert version == "22"
    assert f"the kernel starts without a snapshot: {module} has changed" in log
    if not ALL:
        return  # the next snapshot is made as the first one was
    wait_until(
        lambda: [s for s in in_background.snapshots() if s.meta.created > old], "the next snapshot"
    )
    assert start() == ("22", "restored")


@pytest.mark.once
def test_snapshots_are_made_one_at_a_time_with_low_priority(
    own_store: Store, tmp_path: Path
) -> None:
    """Two servers make their snapshots in turn, at the lowest priority."""
    first, second = (["wave", "csv"] if ALL else ["wave"]), ["json"]
    count = len(first) + len(second)
    disk: dict[int, Counter[str]] = defaultdict(Counter)
    with server(tmp_path, *first), server(tmp_path, *second):

        def look() -> bool:
            making = sandboxes_of(own_store)
            assert len(making) <= 1
            assert len([name for name in left_in(own_store) if name.startswith("new-")]) <= 1
            for record in making:
                for process in (record.owner, *record.processes.values()):
                    with suppress(ProcessLookupError):
                        assert os.getpriority(os.PRIO_PROCESS, process.pid) == NICENESS
                        # A program is started for each: looks that take long miss sandboxes.
                        if "idle" not in disk[process.pid]:
                            disk[process.pid][disk_priority(process.pid)] += 1
            return len(labels(own_store)) == count

        wait_until(look, "the snapshots", 120)
    assert labels(own_store) == sorted(first + second)
    assert sum("idle" in seen for seen in disk.values()) >= 2, "a builder and its sandbox"
    # A process that ends has no priority, and some were not seen before their end.
    assert all("idle" in seen or seen.total() <= 2 for seen in disk.values()), disk
    assert len(left_in(own_store)) == count


def disk_priority(pid: int) -> str:
    command = ["ionice", "-p", str(pid)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


@pytest.mark.parametrize(
    "how",
    [
        pytest.param("ended", marks=pytest.mark.once),
        pytest.param("killed", marks=needs_all),
        "killed with a child that stays",
    ],
)
def test_builder_ends_with_its_server(how: str, own_store: Store, tmp_path: Path) -> None:
    """It leaves no process, no sandbox and no unfinished snapshot."""
    with server(tmp_path, "pandas") as process:
        wait_until(
            lambda: any(r.processes for r in sandboxes_of(own_store)), "a snapshot's sandbox"
        )
        (builder_id,) = {record.owner.pid for record in sandboxes_of(own_store)}
        child = 0
        if "child" in how:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("fork\n")
            process.stdin.flush()
            child = int(process.stdout.readline())
        if how != "ended":
            process.kill()
            process.wait()
    wait_until(lambda: not is_there(builder_id), "the end of the builder")
    if child:
        os.kill(child, signal.SIGKILL)
    assert sandboxes_of(own_store) == []
    assert left_in(own_store) == set()
    get_runtime("runsc").sweep()  # a killed server leaves its kernel's directory


@pytest.mark.once
@pytest.mark.parametrize("begun", [True, False])
def test_program_leaves_its_builder_to_finish(
    begun: bool, own_store: Store, tmp_path: Path
) -> None:
    """Whether the builder has begun when the program ends, or waits still: the next start of such a
    program is no cold one."""
    program = SERVER.replace("leaves_builder = False", "leaves_builder = True")
    if not begun:
        program = program.replace("WAIT_SECONDS = 0.1", "WAIT_SECONDS = 600")
    with server(tmp_path, "wave", program=program) as process:
        if begun:
            wait_until(lambda: bool(sandboxes_of(own_store)), "a snapshot's sandbox")
            assert labels(own_store) == []
    assert process.returncode == 0
    wait_until(lambda: labels(own_store) == ["wave"], "the snapshot", 120)
    wait_until(lambda: not find_builders(own_store), "the end of the builder")
    assert sandboxes_of(own_store) == []
    assert len(left_in(own_store)) == 1
    assert not (state_root() / snapshot_queue.FILE).exists()


def find_builders(store: Store) -> list[int]:
    """Return the processes that make snapshots in ``store``, which their environment names."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if str(store.root.parents[1]).encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return [pid for pid in found if pid != os.getpid() and is_there(pid)]


def is_there(pid: int) -> bool:
    try:
        return "snapshot" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


@pytest.mark.once
def test_failing_snapshot_is_tried_twice(
    in_background: Store, caplog: pytest.LogCaptureFixture
) -> None:
    plan = make_plan(KERNEL, private_connection_info(), "")
    plan = replace(plan, spec=replace(plan.spec, preload=("gk_no_such_module",)))
    queue = SnapshotQueue.instance()
    for tries in (1, 2):
        queue.request(plan)
        wait_until(lambda tries=tries: queue._failed.total() == tries, "a failed attempt")
        wait_until(lambda: not queue._current, "the end of the attempt")
    queue.request(plan)
    assert not queue._wanted
    assert "gk_no_such_module cannot be imported" in caplog.text
    assert left_in(in_background) == set()


@pytest.mark.once
def test_store_removes_least_recently_used_snapshot(
    shared_snapshot: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store has room for two of three snapshots."""
    oldest = copy_snapshot(tmp_path, monkeypatch)
    os.utime(oldest.directory / "used", (1e9, 1e9))
    monkeypatch.setattr(Store.__init__, "__defaults__", (int(2.5 * oldest.size),))
    store = Store.open()
    said: list[tuple[str, float]] = []
    for module in ("json", "csv"):
        plan = make_plan(KERNEL, private_connection_info(), "")
        made = build_snapshot(plan, [module], lambda words, done: said.append((words, done)))
        assert made.meta.label["preload"] == module
    assert labels(store) == ["csv", "json"]
    assert len(left_in(store)) == 2
    words = [text for text, _ in said]
    assert words[: len(words) // 2] == [
        *("Starting a kernel", "Waiting for the kernel", "Making the list of fonts"),
        *(
            "Importing json",
            "Warming up the kernel",
            "Writing the snapshot",
            "Storing the snapshot",
        ),
    ]
    done = [share for _, share in said][: len(words) // 2]
    assert done == sorted(done)
    assert 0 < done[0] < done[-1] < 1
