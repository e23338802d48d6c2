"""A kernel that hibernates: what goes on, what does not, and that nothing is lost on the way."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel import AsyncSandbox, Sandbox
from gvisor_kernel.bridge import Bridge, KernelBridge, attached_sandbox
from gvisor_kernel.bridge.linked_sandbox import LinkedSandbox
from gvisor_kernel.cli.main import main
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import GvisorKernelError, NotIdle, SandboxError, SnapshotError, StateError
from gvisor_kernel.host import processes
from gvisor_kernel.kernel import saved_budget, saved_kernel
from gvisor_kernel.kernel.launch import Launch
from gvisor_kernel.kernel.saved_kernel import SAVE_SECONDS, find_idle_seconds
from gvisor_kernel.runtimes.mounts.plan import Places
from gvisor_kernel.runtimes.runsc import runtime
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.runtimes.state.kept_packages import wait_until_kept
from gvisor_kernel.runtimes.state.listed import Listed, find_all
from gvisor_kernel.spec.layout import UPLOADS

from ..patience import scale_seconds
from ..releases.programs import make_programs
from ..sweeps import ALL

BEGIN = """
import asyncio, os, random, socket, sqlite3, subprocess, tempfile, threading, time
os.environ["KEPT"] = "yes"
os.makedirs("/workspace/deep", exist_ok=True)
os.chdir("/workspace/deep")
for path in ("/workspace/a", "/tmp/b", "/dev/shm/c", "/home/user/d"):
    open(path, "w").write(path)
file = open("/tmp/open", "w+"); file.write("half"); file.flush()
deleted = open("/workspace/deleted", "w+"); deleted.write("still"); os.unlink("/workspace/deleted")
base = sqlite3.connect("/workspace/base.db", isolation_level=None)
base.execute("pragma journal_mode=wal"); base.execute("create table t (n)")
base.execute("insert into t values (1)")
child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
left, right = socket.socketpair()
left.send(b"under way")
queue = __import__("queue").Queue(); answers = __import__("queue").Queue()
def work():
    while True:
        answers.put(queue.get() + 1)
thread = threading.Thread(target=work, daemon=True); thread.start()
random.seed(5); random.random()
memory = bytearray(os.urandom(1 << 20)) * 50
pid, number, n = os.getpid(), hash(bytes(memory)), 0
"""
GO_ON = """
n += 1
queue.put(n)
child.stdin.write(b"%d\\n" % n); child.stdin.flush()
file.write(str(n)); file.seek(0); whole = file.read()
deleted.seek(0)
base.execute("insert into t values (?)", (n,))
(
    n, os.environ["KEPT"], os.getcwd(), [open(p).read() == p for p in
    ("/workspace/a", "/tmp/b", "/dev/shm/c", "/home/user/d")], whole, deleted.read(),
    base.execute("select count(*) from t").fetchone()[0], child.stdout.readline(),
    right.recv(99) if n == 1 else b"", answers.get(timeout=20), os.getpid() == pid,
    hash(bytes(memory)) == number,
)
"""


def find_listed(sandbox: Sandbox | AsyncSandbox) -> Listed:
    return next(listed for listed in find_all() if listed.record.identity == sandbox.id)


def find_saved(sandbox: Sandbox) -> Path:
    return find_listed(sandbox).directory / "saved"


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "read.csv").write_text("1,2\n")
    with Sandbox(uploads=tmp_path / "data", outputs=tmp_path / "out", memory="1G") as sandbox:
        yield sandbox


def test_all_goes_on_as_it_was(sandbox: Sandbox) -> None:
    assert sandbox.run(BEGIN).ok
    count = sandbox.run("0").execution_count
    for n in (1, 2, 3):
        before = find_listed(sandbox)
        assert not sandbox.is_hibernated
        sandbox.hibernate()
        assert sandbox.is_hibernated
        asleep = find_listed(sandbox)
        assert (asleep.state, asleep.id) == ("hibernated", before.id)
        assert not any(map(processes.is_alive, before.record.processes.values()))
        assert find_saved(sandbox).is_dir()
        execution = sandbox.run(GO_ON)
        assert execution.error is None
        files = [True] * 4
        assert ast.literal_eval(execution.text or "") == (
            *(n, "yes", "/workspace/deep", files, "half" + "".join(map(str, range(1, n + 1)))),
            *("still", n + 1, b"%d\n" % n, b"under way" if n == 1 else b"", n + 1, True, True),
        )
        assert execution.execution_count == (count or 0) + n
        wait_until(lambda: not find_saved(sandbox).exists())
    assert sandbox.run("import random; random.seed(5); random.random(); 1").ok


def test_random_numbers_go_on_and_outputs_and_uploads_stay(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    assert sandbox.run("import random; random.seed(7); random.random()").ok
    sandbox.run("open('/mnt/user-data/outputs/one', 'w').write('1')")
    sandbox.hibernate()
    drawn = sandbox.run("random.random()").text
    assert sandbox.run("random.seed(7); random.random(); random.random()").text == drawn
    sandbox.run("open('/mnt/user-data/outputs/two', 'w').write('2')")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"one", "two"}
    status = (tmp_path / "out" / "two").stat()
    assert sandbox.run("open('read.csv').read()").text == "'1,2\\n'"
    sandbox.close()
    status = (tmp_path / "out" / "two").stat()
    assert status.st_uid == (tmp_path / "out").stat().st_uid == tmp_path.stat().st_uid


def test_files_and_commands_wake_the_kernel(sandbox: Sandbox) -> None:
    sandbox.run("open('/workspace/x', 'w').write('kept')")
    sandbox.hibernate()
    assert sandbox.files.read("/workspace/x") == "kept"
    sandbox.hibernate()
    assert sandbox.shell("cat /workspace/x").stdout == "kept"


def test_the_command_changes_wakes_the_kernel(
    sandbox: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    sandbox.run("open('made', 'w').write('1')")
    sandbox.hibernate()
    assert main(["changes", find_listed(sandbox).id]) == 0
    assert "made" in capsys.readouterr().out
    assert not sandbox.is_hibernated


def test_no_request_is_lost_or_doubled_in_any_gap() -> None:
    asyncio.run(send_in_each_gap())


async def send_in_each_gap() -> None:
    async with AsyncSandbox(memory="1G") as sandbox:
        await sandbox.run("n = 0")
        kernel = sandbox._provisioner.sandboxed_kernel  # type: ignore[union-attr]
        assert kernel is not None
        gaps = range(0, 12, 1 if ALL else 2)
        for number, gap in enumerate(gaps, 1):
            saving = asyncio.ensure_future(kernel.hibernation.hibernate())
            await asyncio.sleep(0.03 * gap)  # not a wait: each round hits another step
            execution = await sandbox.run("n += 1; n")
            assert execution.text == str(number)
            with contextlib.suppress(NotIdle):
                await saving
        assert (await sandbox.run("n")).text == str(len(gaps))


def test_what_is_asked_of_a_kernel_that_is_being_saved_waits_for_its_turn() -> None:
    asyncio.run(ask_while_it_is_saved())


async def ask_while_it_is_saved() -> None:
    async with AsyncSandbox(memory="1G") as sandbox:
        await sandbox.run("x = 5")
        await sandbox.checkpoint("base")
        kernel = sandbox._require_kernel()
        hibernation, checkpoints = kernel.hibernation, kernel.checkpoints
        directory = hibernation.find_directory()
        for second in (hibernation.hibernate, partial(checkpoints.rewind, "base")):
            await asyncio.gather(hibernation.hibernate(), second())
            assert (await sandbox.run("x")).text == "5"
        # Its end waits for a save, whoever else has failed to save it meanwhile.
        verbs = [hibernation.hibernate, checkpoints.make, partial(checkpoints.rewind, "base")]
        saving = asyncio.ensure_future(hibernation.hibernate())
        await wait_for_save(saving, directory)
        more = [asyncio.ensure_future(verb()) for verb in verbs]
        await sandbox.close()
        for error in await asyncio.gather(saving, *more, return_exceptions=True):
            assert error is None or isinstance(error, str | GvisorKernelError), error
        assert not directory.exists()


async def wait_for_save(saving: asyncio.Future[None], directory: Path) -> None:
    while not (directory / "saved.new").exists():
        assert not saving.done()
        await asyncio.sleep(0.002)


def test_a_call_that_begins_at_the_same_time_waits() -> None:
    async def ask() -> None:
        async with AsyncSandbox(memory="1G") as sandbox:
            await sandbox.files.write("/workspace/a", "1")
            begun, go_on = threading.Event(), threading.Event()

            async def hold() -> None:
                begun.set()
                assert go_on.wait(scale_seconds(20))

            held = sandbox._require_kernel()._bridge.call(hold())
            assert begun.wait(scale_seconds(20))
            both = asyncio.gather(sandbox.hibernate(), sandbox.files.read("/workspace/a"))
            for _ in range(5):  # until each has asked the bridge, in this order
                await asyncio.sleep(0)
            go_on.set()
            held.result(scale_seconds(20))
            assert await both == [None, "1"]

    asyncio.run(ask())


def test_a_kernel_that_works_is_not_saved(sandbox: Sandbox) -> None:
    sandbox.run(
        "import threading, time\n"
        "def work():\n"
        "    while True: print('.', flush=True); time.sleep(0.001)\n"
        "threading.Thread(target=work, daemon=True).start()"
    )
    with pytest.raises(NotIdle):
        sandbox.hibernate()
    assert find_listed(sandbox).state == "running"
    assert not find_saved(sandbox).exists()
    assert sandbox.run("1 + 1").text == "2"


def test_what_fails_leaves_the_kernel_or_its_save_and_a_restart_begins_anew(
    sandbox: Sandbox,
) -> None:
    sandbox.run("x = 5")
    directory = find_listed(sandbox).directory
    (directory / "saved").symlink_to("/nonexistent")  # as if the folder could not be made
    with pytest.raises(SnapshotError):
        sandbox.hibernate()
    (directory / "saved").unlink()
    assert sandbox.run("x").text == "5"
    sandbox.hibernate()
    saved = find_saved(sandbox)
    saved.rename(saved.with_name("aside"))
    error = sandbox.run("x").error
    assert error is not None
    assert error.name == "NotResumed"
    assert "stays saved" in error.value
    assert find_listed(sandbox).state == "hibernated"
    saved.with_name("aside").rename(saved)
    assert sandbox.run("x").text == "5"
    sandbox.hibernate()
    sandbox.restart()
    assert sandbox.run("x").error is not None
    assert not saved.exists()


def test_a_library_that_was_replaced_is_named_and_not_mixed(tmp_path: Path) -> None:
    library = next(Path("/usr/lib").glob("*/libz.so.1")).resolve()
    (tmp_path / "lib").mkdir()
    shown = tmp_path / "lib" / "libown.so"
    shutil.copyfile(library, shown)
    mounts = [{"source": str(tmp_path / "lib"), "target": "/opt/own"}]
    with Sandbox(memory="1G", mounts=mounts) as sandbox:
        sandbox.run("import ctypes; own = ctypes.CDLL('/opt/own/libown.so'); x = 10")
        # Replaced while the kernel lives: it goes on, and is not saved.
        (tmp_path / "first").hardlink_to(shown)
        shown.unlink()
        shutil.copyfile(library, shown)
        with pytest.raises(SnapshotError, match=r"libown\.so was changed"):
            sandbox.hibernate()
        assert sandbox.run("x").text == "10"
        (tmp_path / "first").rename(shown)
        sandbox.hibernate()
        wait_until_kept()
        shown.unlink()
        error = sandbox.run("x").error
        assert error is not None
        assert f"{shown} is gone" in error.value
        # Another one that is there now is not shown to it.
        shown.write_bytes(library.read_bytes() + b"another")
        execution = sandbox.run("import os; x, os.path.getsize('/opt/own/libown.so')")
        assert execution.text == str((10, library.stat().st_size))
        assert "libown.so. Restart it" in execution.stderr


def test_an_open_file_that_is_gone_is_named(tmp_path: Path) -> None:
    shown = tmp_path / "rows.csv"
    shown.write_text("a\nb\n")
    with Sandbox(memory="1G", uploads=str(tmp_path)) as sandbox:
        sandbox.run(f"rows = open('{UPLOADS}/rows.csv'); rows.readline()")
        sandbox.hibernate()
        shown.rename(tmp_path / "other.csv")
        error = sandbox.run("rows.readline()").error
        assert error is not None
        assert f"has {shown} open, and it is gone. What to do: put it back." in error.value
        (tmp_path / "other.csv").rename(shown)
        assert sandbox.run("rows.readline()").text == r"'b\n'"


def test_what_nobody_could_take_over_is_not_saved(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change_record(directory: Path, record: records.Record, **facts: Any) -> records.Record:
        raise StateError("The disk is full.")

    sandbox.run("x = 5")
    faults: list[tuple[Any, str, object, str]] = [
        (saved_kernel, "MAX_NOTE", 9, "over the limit of 9"),
        (records, "change_record", change_record, "disk is full"),
    ]
    for module, name, value, words in faults:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            with pytest.raises(SnapshotError, match=words):
                sandbox.hibernate()
        assert not find_saved(sandbox).exists()
        assert sandbox.run("x").text == "5"


def test_the_transcript_has_the_cell_that_wakes_the_kernel() -> None:
    with Sandbox(memory="1G", transcripts=True) as sandbox:
        sandbox.run("x = 1")
        sandbox.hibernate()
        sandbox.run("x += 1; print(x)")
        folder = Places(find_listed(sandbox).directory).transcripts
        lines = (folder / "transcript.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    cells = [it["content"]["code"] for it in entries if it["type"] == "execute_request"]
    assert cells[-2:] == ["x = 1", "x += 1; print(x)"]
    assert [it["n"] for it in entries] == [*range(1, len(entries) + 1)]


def test_a_kernel_that_is_slow_to_go_on_keeps_no_other_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Restores take turns. What a guest does after one has no turn."""
    resume, may_go_on, waits = Launch._resume, threading.Event(), threading.Event()

    async def wait(self: Launch, *arguments: Any, **more: Any) -> None:
        if not waits.is_set():
            waits.set()
            await asyncio.to_thread(may_go_on.wait, scale_seconds(60))
        await resume(self, *arguments, **more)

    with Sandbox(memory="1G") as slow, Sandbox(memory="1G") as other, ThreadPoolExecutor(1) as pool:
        for sandbox in (slow, other):
            sandbox.run("x = 5")
            sandbox.hibernate()
        monkeypatch.setattr(Bridge.instance(), "restores", asyncio.Semaphore(1))
        monkeypatch.setattr(Launch, "_resume", wait)
        going = pool.submit(slow.run, "x")
        try:
            assert waits.wait(scale_seconds(60))
            assert other.run("x").text == "5"
            assert not going.done()
        finally:
            may_go_on.set()
        assert going.result().text == "5"


def test_without_room_a_kernel_hibernates_only_by_hand(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(saved_budget, "MAX_SIZE", 1)
    with Sandbox(memory="1G", hibernate_idle_timeout=1) as sandbox:
        wait_until(lambda: "and all may have 1 B" in caplog.text)
        assert (
            "does not hibernate: Saved kernels"
            in Places(find_listed(sandbox).directory).log.read_text()
        )
        assert find_listed(sandbox).state == "running"
        sandbox.hibernate()
        assert find_listed(sandbox).state == "hibernated"


def test_a_file_that_was_edited_meanwhile_is_in_no_ones_way(tmp_path: Path) -> None:
    files = [tmp_path / "tool.py", tmp_path / "notes.so.txt"]
    for file in files:
        file.write_text("v = 1\n")
        file.chmod(0o755)
    with Sandbox(uploads=tmp_path, memory="1G") as sandbox:
        assert sandbox.run("import tool; notes = open('notes.so.txt').read(); tool.v").text == "1"
        sandbox.hibernate()
        for file in files:
            file.write_text("v = 2; w = 3\n")
        assert sandbox.run("tool.v").text == "1"


def test_a_wake_has_as_long_as_a_save(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds, wait, attach = [], runtime.wait_for_sentry, KernelBridge.attach_restored

    def wait_for_sentry(process: Any, places: Any, stderr: Any, most: float, **more: Any) -> Any:
        seconds.append(most)
        return wait(process, places, stderr, most, **more)

    def attach_restored(self: Any, *args: Any, **more: Any) -> Any:
        seconds.append(args[6])
        return attach(self, *args, **more)

    with Sandbox(memory="1G", start_timeout=50) as sandbox:
        sandbox.hibernate()
        monkeypatch.setattr(runtime, "wait_for_sentry", wait_for_sentry)
        monkeypatch.setattr(KernelBridge, "attach_restored", attach_restored)
        assert sandbox.run("1").text == "1"
    assert len(seconds) == 2
    assert all(most >= SAVE_SECONDS for most in seconds)


def test_the_end_removes_what_was_saved(sandbox: Sandbox) -> None:
    sandbox.hibernate()
    directory = find_listed(sandbox).directory
    sandbox.close()
    assert not directory.exists()


def test_a_kernel_that_ends_as_it_falls_asleep_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began, goes_on, close = threading.Event(), threading.Event(), attached_sandbox.close_sandbox

    async def close_slowly(sandbox: LinkedSandbox) -> None:
        began.set()
        while not goes_on.is_set():
            await asyncio.sleep(0.01)
        await close(sandbox)

    async def end() -> Path:
        async with AsyncSandbox(memory="1G") as sandbox:
            monkeypatch.setattr(attached_sandbox, "close_sandbox", close_slowly)
            directory, kernel = find_listed(sandbox).directory, sandbox._require_kernel()._kernel
            assert kernel is not None
            saving = asyncio.ensure_future(sandbox.hibernate())
            await asyncio.to_thread(began.wait, scale_seconds(20))
            closing = asyncio.ensure_future(sandbox.close())
            while kernel.asleep:
                await asyncio.sleep(0.01)
            goes_on.set()
            await closing
            with pytest.raises(GvisorKernelError):
                await saving
        return directory

    assert not asyncio.run(end()).exists()


def test_an_idle_kernel_hibernates_by_itself_with_a_gvisor_that_restores_it_always(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = (str(program.path) for program in make_programs(tmp_path, years=2))
    assert find_idle_seconds(SandboxSpec(runsc=new)) == 1800
    assert find_idle_seconds(SandboxSpec(runsc=new, hibernate_idle_timeout=0)) == 0
    for spec in (SandboxSpec(runsc=old), SandboxSpec(runsc="/no/runsc")):
        assert find_idle_seconds(spec) == 0
    monkeypatch.setattr(saved_kernel, "IDLE_SECONDS", 1)
    with Sandbox(memory="1G", runsc=new, snapshot="off") as sandbox:
        sandbox.run("x = 8")
        wait_for_state(sandbox, "hibernated")
        assert sandbox.run("x").text == "8"
        wait_for_state(sandbox, "hibernated")


def wait_for_state(sandbox: Sandbox, state: str) -> None:
    wait_until(lambda: find_listed(sandbox).state == state)


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + scale_seconds(30)
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_relayed_kernel_goes_on() -> None:
    with Sandbox(memory="1G", kernel_mode="relay") as sandbox:
        sandbox.run("x = 9")
        sandbox.hibernate()
        assert sandbox.run("x").text == "9"
        sandbox.hibernate()
        assert sandbox.run("x").text == "9"


def test_a_sandbox_killed_while_it_is_saved_is_a_death(sandbox: Sandbox) -> None:
    sandbox.run("data = bytearray(__import__('os').urandom(1 << 20)) * 500")
    record, ended = find_listed(sandbox).record, threading.Event()
    saving = find_saved(sandbox).with_name("saved.new")

    def kill() -> None:
        while not saving.exists() and not ended.is_set():
            pass
        os.kill(record.processes["sentry"].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(SandboxError):
            sandbox.hibernate()
    finally:
        ended.set()
        killer.join()
    assert not sandbox.alive
    sandbox.restart()
    assert sandbox.run("1").text == "1"
