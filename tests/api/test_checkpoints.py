"""Checkpoints: what rolls back, what does not, and that nothing is lost on the way."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from gvisor_kernel import AsyncSandbox, RewindChanges, Sandbox
from gvisor_kernel.errors import GvisorKernelError, NoCheckpoint, NotIdle, SnapshotError
from gvisor_kernel.kernel import checkpoints
from gvisor_kernel.kernel.facts import KernelEvents, Rewound
from gvisor_kernel.runtimes.mounts.plan import Places
from gvisor_kernel.runtimes.state import packer

from .test_hibernation import find_listed, find_saved, wait_until

BEGIN = """
import os, queue, subprocess, threading
child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
asked, answers = queue.Queue(), queue.Queue()
def work(total=0):
    while True:
        total += asked.get()
        answers.put(total)
threading.Thread(target=work, daemon=True).start()
n = 0
"""
STEP = """
n += 1
asked.put(1)
child.stdin.write(b"%d\\n" % n); child.stdin.flush()
for path in ("/workspace/file", "/tmp/file"):
    with open(path, "a") as file: file.write(str(n))
texts = [open(path).read() for path in ("/workspace/file", "/tmp/file")]
n, answers.get(timeout=20), child.stdout.readline(), texts
"""


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    with Sandbox(outputs=tmp_path / "out", memory="1G") as sandbox:
        yield sandbox


def step(sandbox: Sandbox) -> tuple[object, ...]:
    execution = sandbox.run(STEP)
    assert execution.error is None
    return (execution.execution_count, *ast.literal_eval(execution.text or ""))


def test_all_of_the_kernel_goes_back_and_comes_again(sandbox: Sandbox) -> None:
    assert sandbox.run(BEGIN).ok
    first = step(sandbox)
    assert sandbox.checkpoint("one") == "one"
    second, third = step(sandbox), step(sandbox)
    for _ in range(2):
        assert sandbox.rewind("one").changed == ()
        assert step(sandbox) == second
    sandbox.rewind("before-rewind")  # after `second`, as the last rewind has left it
    assert step(sandbox) == third
    assert first[1:3] == (1, 1)
    listed = {one.name: one for one in sandbox.checkpoints()}
    assert listed.keys() == {"one", "before-rewind"}
    assert (listed["one"].kind, listed["one"].cell) == ("named", first[0])
    assert listed["before-rewind"].kind == "before-rewind"


def find_folder(sandbox: Sandbox | AsyncSandbox) -> Path:
    return find_listed(sandbox).directory / "checkpoints"


def measure(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def wait_until_packed(sandbox: Sandbox, *names: str) -> None:
    folder = find_folder(sandbox)
    for name in names:
        wait_until(lambda name=name: (folder / name / "packed").exists())  # type: ignore[misc]
        wait_until(lambda name=name: not list((folder / name).glob("image*")))  # type: ignore[misc]


def test_outputs_stay_and_are_told(sandbox: Sandbox, tmp_path: Path) -> None:
    out = "/mnt/user-data/outputs"
    sandbox.run(f"import os; [open(f'{out}/{{n}}', 'w').write('1') for n in 'abc']")
    sandbox.checkpoint("one")
    assert sandbox.rewind("one") == RewindChanges()
    sandbox.run(f"open('{out}/a', 'w').write('22'); os.remove('{out}/b'); os.mkdir('{out}/d')")
    sandbox.run(f"open('{out}/d/new', 'w').write('3'); os.symlink('/etc/passwd', '{out}/link')")
    told = sandbox.rewind("one")
    assert (told.added, told.changed, told.removed) == (("d/new",), ("a",), ("b",))
    assert not told.more
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a", "c", "d", "link"}
    assert sandbox.run(f"open('{out}/a').read()").text == "'22'"


def test_it_goes_on_while_and_after_it_hibernates(sandbox: Sandbox) -> None:
    sandbox.run("x = 1")
    told: list[object] = []
    KernelEvents.instance().watch(told.append)
    sandbox.checkpoint("one")
    sandbox.run("x = 2")
    sandbox.hibernate()
    assert [one.name for one in sandbox.checkpoints()] == ["one"]
    assert find_listed(sandbox).state == "hibernated"  # to list them wakes nothing
    wait_until_packed(sandbox, "one")
    sandbox.rewind("one")
    assert sandbox.run("x").text == "1"
    assert not find_saved(sandbox).exists()
    sandbox.hibernate()
    assert sandbox.run("x").text == "1"
    assert sandbox.checkpoint() == "state-1"
    assert sandbox.checkpoint() == "state-2"
    sandbox.rewind("before-rewind")
    assert sandbox.run("x").text == "2"
    KernelEvents.instance().unwatch(told.append)
    assert [event.checkpoint for event in told if isinstance(event, Rewound)] == [
        "one",
        "before-rewind",
    ]
    log = Places(find_listed(sandbox).directory).log
    assert "went back to the checkpoint one" in log.read_text()


@pytest.mark.parametrize("broken", ["image", "pages", "size"])
def test_a_broken_image_leaves_the_kernel_as_it_was(
    sandbox: Sandbox, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.run("import threading; x = 1")
    folder = find_folder(sandbox)
    if broken == "image":
        monkeypatch.setattr(packer, "WAIT_SECONDS", 1000.0)
    sandbox.checkpoint("one")
    sandbox.run("x = 2")
    if broken != "image":
        wait_until_packed(sandbox, "one")
    if broken == "size":
        file = folder / "one" / "packed"
        line, _, rest = file.read_bytes().partition(b"\n")
        head = json.loads(line)
        head["files"][0][1] += 1 << 57
        file.write_bytes(json.dumps(head).encode() + b"\n" + rest)
    else:
        found = folder.glob("one/image/*" if broken == "image" else ".pages/*.pages")
        path = max(found, key=lambda it: it.stat().st_size)
        os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(SnapshotError) as raised:
        sandbox.rewind("one")
    assert "goes on as it was" in raised.value.fact
    assert find_listed(sandbox).state != "hibernated"
    assert sandbox.run("x").text == "2"
    assert not find_saved(sandbox).exists()
    assert sandbox.alive


def test_names_and_refusals(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox.checkpoint("one")
    for name in ("one", "", "../x", "a/b", "x" * 65, "before-rewind", "cell-3", "a.new", ".pages"):
        with pytest.raises(SnapshotError):
            sandbox.checkpoint(name)
    for name in ("two", "../checkpoints/one", ""):
        with pytest.raises(NoCheckpoint, match="choose one of these: one"):
            sandbox.rewind(name)
        with pytest.raises(NoCheckpoint):
            sandbox.remove_checkpoint(name)
    usage = shutil.disk_usage("/")
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(SnapshotError, match="left"):
            sandbox.checkpoint("two")
        with pytest.raises(SnapshotError, match="left"):
            sandbox.rewind("one")
    with monkeypatch.context() as bounded:
        bounded.setattr(checkpoints, "MAX_SIZE", 1000)
        with pytest.raises(SnapshotError, match="may take"):
            sandbox.checkpoint("two")
    sandbox.run(
        "import threading, time\n"
        "def work():\n"
        "    while goes: print('.', flush=True); time.sleep(0.001)\n"
        "goes = True; threading.Thread(target=work, daemon=True).start()"
    )
    with pytest.raises(NotIdle, match="interrupt it"):
        sandbox.rewind("one")
    with pytest.raises(NotIdle):
        sandbox.checkpoint("two")
    assert sandbox.run("goes = False; 7").text == "7"
    assert [one.name for one in sandbox.checkpoints()] == ["one"]
    sandbox.remove_checkpoint("one")
    assert sandbox.checkpoints() == ()
    assert sorted(path.name for path in find_folder(sandbox).iterdir()) in ([], [".pages"])


def test_automatic_ones_go_only_if_that_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoints"
    for number, name in enumerate(("mine", "cell-1", "cell-2", "cell-3")):
        (folder / name / "image").mkdir(parents=True)
        (folder / name / "image" / "pages").write_bytes(os.urandom(1 << 20))
        about = {"kind": "automatic", "time": number, "cell": number, "what": ""}
        if number:
            (folder / name / "about.json").write_text(json.dumps(about))
    usage = shutil.disk_usage("/")._replace(total=1 << 40)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    for most, needed, expected in ((9, 4, []), (7, 4, ["cell-1"]), (6, 4, ["cell-2", "cell-1"])):
        monkeypatch.setattr(checkpoints, "MAX_SIZE", (most << 20) + (1 << 18))
        found = checkpoints._find_superfluous(tmp_path, "new", needed << 20)
        assert found == expected
    with pytest.raises(SnapshotError, match=f"checkpoints {tmp_path.name} --remove mine"):
        checkpoints._find_superfluous(tmp_path, "new", 6 << 20)
    # one whose description cannot be read is one all the same
    found = checkpoints.find_checkpoints(tmp_path)
    assert {one.name: one.kind for one in found}["mine"] == "named"
    assert checkpoints._find_place(tmp_path, "mine") == folder / "mine"
    assert len(list(folder.iterdir())) == 4
    shutil.rmtree(folder / "mine")
    with pytest.raises(SnapshotError, match="larger disk"):
        checkpoints._find_superfluous(tmp_path, "new", 7 << 20)


def test_many_verbs_at_once_lose_nothing() -> None:
    asyncio.run(do_many_at_once())


async def do_many_at_once() -> None:
    async with AsyncSandbox(memory="1G") as sandbox:
        await sandbox.run("x = 0")
        await sandbox.checkpoint("zero")
        kernel = sandbox._kernel
        assert kernel is not None
        states = kernel.checkpoints

        async def count() -> None:
            execution = await sandbox.run("x += 1; x")
            assert execution.error is None

        works = [
            *(states.rewind("zero"), count(), kernel.hibernation.hibernate(), states.make("a")),
            *(count(), states.rewind("zero"), states.remove("zero"), kernel.hibernation.resume()),
        ]
        done = await asyncio.gather(*works, return_exceptions=True)
        for result in done:
            assert not isinstance(result, Exception) or isinstance(result, (NotIdle, NoCheckpoint))
        assert (await sandbox.run("x")).text in ("0", "1", "2")
        assert "zero" not in {one.name for one in await sandbox.checkpoints()}


def test_a_request_that_comes_meanwhile_runs_in_the_state_gone_back_to() -> None:
    asyncio.run(send_in_each_gap())


def test_files_wait_until_the_state_is_saved() -> None:
    asyncio.run(read_in_each_gap())


async def read_in_each_gap() -> None:
    async with AsyncSandbox(memory="1G") as sandbox:
        await sandbox.run("open('/workspace/file', 'w').write('kept')")
        await sandbox.checkpoint("one")
        kernel = sandbox._kernel
        assert kernel is not None
        states = kernel.checkpoints
        for gap in range(3):
            for work in (states.make(), states.rewind("one")):
                saving = asyncio.ensure_future(work)
                await asyncio.sleep(0.1 * gap)  # not a wait: each round hits another step
                assert await sandbox.files.read("/workspace/file") == "kept"
                with suppress(NotIdle):  # then the read came before it
                    await saving


async def send_in_each_gap() -> None:
    async with AsyncSandbox(memory="1G") as sandbox:
        await sandbox.run("x = 0")
        await sandbox.checkpoint("zero")
        kernel = sandbox._kernel
        assert kernel is not None
        for gap in range(6):
            going = asyncio.ensure_future(kernel.checkpoints.rewind("zero"))
            await asyncio.sleep(0.1 * gap)  # not a wait: each round hits another step
            execution = await sandbox.run("x += 1; x")
            assert execution.text == "1"
            with suppress(NotIdle):  # then the cell came before it
                await going
            await kernel.checkpoints.rewind("zero")


def test_a_sandbox_killed_while_it_goes_back_loses_no_state(sandbox: Sandbox) -> None:
    sandbox.run("x = 1")
    sandbox.checkpoint("one")
    sandbox.run("x = 2")
    directory, ended = find_listed(sandbox).directory, threading.Event()

    def kill() -> None:
        """Kill the sandbox that is restored, as soon as there is one."""
        saved = directory / "saved"
        while not ended.is_set():
            if saved.exists():
                with suppress(OSError, StopIteration, AttributeError):
                    for path in Path("/proc").glob("[0-9]*/cmdline"):
                        words = path.read_bytes().split(b"\0")
                        if b"restore" in words and directory.name.encode() in b"".join(words):
                            os.kill(int(path.parent.name), 9)
                            return

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(GvisorKernelError, match="goes on as it was"):
            sandbox.rewind("one")
    finally:
        ended.set()
        killer.join()
    assert sandbox.run("x").text == "2"
    sandbox.rewind("one")
    assert sandbox.run("x").text == "1"


def test_another_checkpoint_costs_what_differs(sandbox: Sandbox) -> None:
    sandbox.run("import os; data = os.urandom(50 << 20)")
    sizes = []
    for number in range(15):
        sandbox.run(f"x = {number}")
        sandbox.checkpoint(f"n{number}")
        if number in (0, 14):
            wait_until_packed(sandbox, *(f"n{n}" for n in range(number + 1)))
            sizes.append(measure(find_folder(sandbox)))
    first, last = sizes
    assert 50 << 20 < first < 400 << 20
    print("further checkpoint", (last - first) / 14 / 1e6, "MB; the first", first / 1e6)
    assert (last - first) / 14 < 10e6
    sandbox.rewind("n3")
    assert sandbox.run("x, len(data)").text == f"(3, {50 << 20})"


def find_names(sandbox: Sandbox) -> list[str]:
    return [one.name for one in sandbox.checkpoints() if one.kind == "automatic"]


def test_runs_of_programs_have_checkpoints_and_are_taken_back() -> None:
    """One after the other, also when others were made in between."""
    with Sandbox(memory="1G", checkpoints="agent", checkpoints_kept=3) as sandbox:
        for n in range(4):
            sandbox.run(f"x = {n}")
        wait_until(lambda: find_names(sandbox) == ["before-3", "before-4", "before-5"])
        sandbox.files.write("/workspace/new", "kept")
        sandbox.run("x, y = 'wrong', 1")
        sandbox.rewind()
        assert sandbox.run("x").text == "3"
        assert sandbox.files.read("/workspace/new") == "kept"
        sandbox.rewind()
        sandbox.rewind()
        sandbox.run("x *= 10")
        sandbox.rewind()
        assert sandbox.run("x").text == "2"


def test_long_cells_have_checkpoints_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "FIRST_COST", 0.05)
    with Sandbox(memory="1G", checkpoints="cells") as sandbox:
        sandbox.run("x = 1")
        cell = sandbox.run("import time; time.sleep(1.5)").execution_count
        wait_until(lambda: find_names(sandbox) == [f"cell-{cell}"])
        sandbox.run("x = 2")
        sandbox.rewind(f"cell-{cell}")
        assert sandbox.run("x").text == "1"
        assert find_names(sandbox) == [f"cell-{cell}"]
