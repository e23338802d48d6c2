"""A kernel that hibernates: what goes on, what does not, and that nothing is lost on the way."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gvisor_kernel import AsyncSandbox, Sandbox
from gvisor_kernel.errors import NotIdle, SandboxError, SnapshotError
from gvisor_kernel.host import processes
from gvisor_kernel.runtimes.state.listed import Listed, find_all

from ..patience import scale_seconds
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
        sandbox.hibernate()
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
    (directory / "saving").symlink_to("/nonexistent")  # as if the folder could not be made
    (directory / "saving").rename(directory / "saved")
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
        sandbox.hibernate()
        shown.rename(tmp_path / "first")
        shutil.copyfile(library, shown)
        error = sandbox.run("x").error
        assert error is not None
        assert f"{shown} was changed" in error.value
        (tmp_path / "first").rename(shown)
        assert sandbox.run("x").text == "10"
        # Replaced while the kernel lives: it goes on, and is not saved.
        shown.unlink()
        shutil.copyfile(library, shown)
        with pytest.raises(SnapshotError, match=r"libown\.so was changed"):
            sandbox.hibernate()
        assert sandbox.run("x").text == "10"


def test_the_end_removes_what_was_saved(sandbox: Sandbox) -> None:
    sandbox.hibernate()
    directory = find_listed(sandbox).directory
    sandbox.close()
    assert not directory.exists()


def test_an_idle_kernel_hibernates_by_itself() -> None:
    with Sandbox(memory="1G", hibernate_idle_timeout=1) as sandbox:
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
    record = find_listed(sandbox).record
    import threading

    def kill() -> None:
        saving = find_saved(sandbox).with_name("saving")
        while not saving.exists():
            pass
        os.kill(record.processes["sentry"].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(SandboxError):
        sandbox.hibernate()
    killer.join()
    assert not sandbox.alive
    sandbox.restart()
    assert sandbox.run("1").text == "1"
