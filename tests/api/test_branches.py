"""Branches of a kernel: what goes on in each, what differs, and that nothing is lost or left."""

from __future__ import annotations

import ast
import asyncio
import dataclasses
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel import AsyncSandbox, Sandbox
from gvisor_kernel.errors import NoCheckpoint, NotIdle, SandboxError, SnapshotError
from gvisor_kernel.kernel import branches as branching
from gvisor_kernel.kernel.branches import name_branches, remove_all, take_saved
from gvisor_kernel.runtimes.runsc.runsc_sandbox import RunscSandbox
from gvisor_kernel.runtimes.state import pages, records
from gvisor_kernel.runtimes.state.listed import Listed, find_all
from gvisor_kernel.runtimes.state.sweep import sweep_orphans

BEGIN = """
import os, queue, subprocess, threading
asked, answers, n = queue.Queue(), queue.Queue(), 0
def work():
    while True:
        answers.put(asked.get() * 2)
threading.Thread(target=work, daemon=True).start()
child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
file = open("/tmp/open", "w+"); file.write("half "); file.flush()
open("/workspace/kept", "w").write("kept")
"""
GO_ON = """
n += {step}
asked.put(n)
child.stdin.write(b"%d\\n" % n); child.stdin.flush()
file.write(str(n)); file.flush(); file.seek(0); whole = file.read()
open("/workspace/own", "a").write(str(n))
(
    n, answers.get(timeout=20), child.stdout.readline(), whole, open("/workspace/kept").read(),
    open("/workspace/own").read(),
)
"""
LOAD = """
import multiprocessing.process, os, queue, random, secrets, ssl, tempfile, threading, uuid
import numpy
random.seed(3); numpy.random.seed(3); generator = numpy.random.default_rng(3)
uuid.uuid1(), ssl.RAND_bytes(8), tempfile.mktemp()
asked, answers = queue.Queue(), queue.Queue()
def work():
    while True:
        asked.get(), answers.put(ssl.RAND_bytes(16))
threading.Thread(target=work, daemon=True).start()
asked.put(1), answers.get()
"""
SAME = "(random.random(), float(numpy.random.rand()), float(generator.random()))"
APART = """
asked.put(1)
kernel = get_ipython().kernel
(
    str(uuid.uuid4()), str(uuid.uuid1())[9:], os.urandom(16), ssl.RAND_bytes(16), answers.get(),
    secrets.token_bytes(16), kernel.session.session, kernel.session.key, kernel.ident,
    bytes(multiprocessing.process.current_process().authkey), tempfile.mktemp(),
)
"""


def evaluate(sandbox: Sandbox, code: str) -> Any:
    execution = sandbox.run(code)
    assert execution.error is None, execution.error
    return ast.literal_eval(execution.text or "None")


def find_listed(sandbox: Sandbox | AsyncSandbox) -> Listed:
    return next(listed for listed in find_all() if listed.record.identity == sandbox.id)


def count_directories() -> int:
    return len(records.sandbox_directories())


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    with Sandbox(outputs=tmp_path / "out", memory="1G") as sandbox:
        yield sandbox


def close(*sandboxes: Sandbox) -> None:
    for sandbox in sandboxes:
        sandbox.close()


def test_all_goes_on_in_each_and_apart(sandbox: Sandbox) -> None:
    assert sandbox.run(BEGIN).ok
    count = sandbox.run("0").execution_count
    before = count_directories()
    made = sandbox.branch(2, name="b")
    assert len({find_listed(one).directory for one in (sandbox, *made)}) == 3
    assert len({find_listed(one).record.kernel_id for one in (sandbox, *made)}) == 3
    for step, one in ((1, sandbox), (10, made[0]), (100, made[1])):
        execution = one.run(GO_ON.format(step=step))
        assert execution.execution_count == (count or 0) + 1
        assert ast.literal_eval(execution.text or "") == (
            *(step, 2 * step, b"%d\n" % step, f"half {step}", "kept", str(step)),
        )
        assert not (find_listed(one).directory / "saved").exists()
    [grandchild] = made[0].branch()
    assert [find_listed(one).record.branch for one in (sandbox, made[1])] == [
        None,
        ("b-2", find_listed(sandbox).id),
    ]
    assert evaluate(grandchild, GO_ON.format(step=5))[0] == 15
    close(*made, grandchild)
    assert count_directories() == before
    assert evaluate(sandbox, "n") == 1


@pytest.mark.parametrize("mode", ["auto", "relay"])
def test_secrets_differ_and_random_numbers_go_on(mode: str) -> None:
    with Sandbox(memory="1G", kernel_mode=mode) as sandbox:
        assert sandbox.run(LOAD).ok
        made = sandbox.branch(2)
        everyone = (sandbox, *made)
        assert len({evaluate(one, SAME) for one in everyone}) == 1
        found = [evaluate(one, APART) for one in everyone]
        relayed = {7: 1} if mode == "relay" else {}  # its key is its sandbox's own
        for index, values in enumerate(zip(*found, strict=True)):
            assert len(set(values)) == relayed.get(index, 3), (index, values)
        [other] = made[0].branch(reseed=True)
        drawn, others = evaluate(made[0], SAME), evaluate(other, SAME)
        assert [a == b for a, b in zip(drawn, others, strict=True)] == [False, False, True]
        close(*made, other)


@pytest.mark.parametrize("choice", ["own", "read-only", "shared"])
def test_outputs_have_one_writer_unless_they_are_shared(choice: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Sandbox(outputs=out, memory="1G", branch_outputs=choice) as sandbox:
        sandbox.run("import os; os.chdir('/mnt/user-data/outputs'); open('a', 'w').write('a')")
        sandbox.run("os.chdir('/workspace'); os.chdir('/mnt/user-data/outputs')")
        [branch] = sandbox.branch(name="b")
        seen = evaluate(branch, "sorted(os.listdir())")
        assert seen == ([] if choice == "own" else ["a"])
        error = branch.run("file = open('a', 'w'); file.write('b'); file.flush()").error
        assert (error is None) == (choice != "read-only")
        assert (out / "a").read_text() == ("b" if choice == "shared" else "a")
        own = out / "branches" / "b" / "a"
        assert own.exists() == (choice == "own")
        assert [file.path for file in branch.outputs().files] == ["a"]
        branch.restart()
        assert branch.run("open('/mnt/user-data/outputs/c', 'w')").ok == (choice != "read-only")
        assert (out / "c").exists() == (choice == "shared")
        branch.close()
        if choice == "own":
            with pytest.raises(SnapshotError, match="would not begin"):
                sandbox.branch(name="b")
            assert own.read_text() == "b"
            shutil.rmtree(own.parent)
            close(*sandbox.branch(2))
            assert not (out / "branches").exists()
            assert own.parent.parent.parent.stat().st_uid == tmp_path.stat().st_uid


def test_open_outputs_are_named_and_nothing_is_left(tmp_path: Path) -> None:
    before, out, aim = count_directories(), tmp_path / "out", tmp_path / "aim"
    aim.mkdir()
    with Sandbox(outputs=out, memory="1G") as sandbox:
        sandbox.run("file = open('/mnt/user-data/outputs/in', 'w'); x = 1")
        with pytest.raises(SnapshotError, match=r"open.*: in\."):
            sandbox.branch()
        assert count_directories() == before + 1
        assert not (out / "branches").exists()
        sandbox.hibernate()  # what is open is known of a kernel that sleeps, too
        with pytest.raises(SnapshotError, match=r"open.*: in\."):
            sandbox.branch()
        sandbox.run("file.close()")
        close(*sandbox.branch())
        (out / "branches").symlink_to(aim)  # a kernel can write it
        with pytest.raises(SnapshotError, match="cannot be made"):
            sandbox.branch()
        assert not [*aim.iterdir()]


def test_a_kernel_that_sleeps_sleeps_on(sandbox: Sandbox) -> None:
    sandbox.run("x = 5")
    sandbox.hibernate()
    image = find_listed(sandbox).directory / "saved" / "image"
    pages = next(path for path in image.iterdir() if path.stat().st_size > 1 << 20)
    made = sandbox.branch(2)
    assert find_listed(sandbox).state == "hibernated"
    assert [evaluate(one, "(x := x + 1)") for one in made] == [6, 6]
    assert pages.stat().st_nlink == 1  # each had a link to it, and gave it up
    close(*made)
    assert evaluate(sandbox, "x") == 5


def test_a_branch_goes_on_from_a_checkpoint(sandbox: Sandbox) -> None:
    before = count_directories()
    sandbox.run("x = 5; open('/workspace/own', 'w').write('then')")
    sandbox.checkpoint("then")
    folder = find_listed(sandbox).directory / pages.FOLDER
    pages.pack(folder / "then")
    sandbox.run("x = 6; open('/workspace/own', 'w').write('now')")
    code = "(x := x + 1, open('/workspace/own').read())"
    for sleeps in (False, True):
        if sleeps:
            sandbox.hibernate()
        [branch] = sandbox.branch(from_checkpoint="then")
        assert evaluate(branch, code) == (6, "then")
        assert branch.checkpoints() == ()
        assert (find_listed(sandbox).state == "hibernated") == sleeps
        branch.close()
    with pytest.raises(NoCheckpoint, match="then"):
        sandbox.branch(from_checkpoint="other")
    assert count_directories() == before
    assert evaluate(sandbox, code) == (7, "now")
    sandbox.rewind("then")
    assert evaluate(sandbox, code) == (6, "then")


def test_no_request_is_lost_or_doubled_in_any_gap() -> None:
    asyncio.run(send_in_each_gap())


async def send_in_each_gap() -> None:
    async with AsyncSandbox(memory="1G") as sandbox:
        await sandbox.run("n = 0")
        hibernation = sandbox._require_kernel().hibernation
        for gap in range(8):
            copying = asyncio.ensure_future(hibernation.branch(name_branches(1, None)))
            await asyncio.sleep(0.05 * gap)  # not a wait: each round hits another step
            assert (await sandbox.run("n += 1; n")).text == str(gap + 1)
            try:
                remove_all(await copying)
            except NotIdle:
                continue
        assert (await sandbox.run("n")).text == "8"


def fail(error: Exception) -> Callable[..., Any]:
    def call(*arguments: Any, **more: Any) -> Any:
        raise error

    return call


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("place", "name", "error"),
    [
        (branching.records, "write_record", FULL),
        (RunscSandbox, "checkpoint", SnapshotError("runsc was killed")),
        (RunscSandbox, "find_held", FULL),
        (os, "link", FULL),
        (branching, "make_folder", FULL),
        (branching, "write_file", FULL),
        (branching, "read_saved", SnapshotError("unreadable")),
        (RunscSandbox, "__init__", SnapshotError("the wake fails")),
    ],
)
def test_a_failure_at_each_step_leaves_the_source_and_nothing_else(
    shared: Sandbox, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, error: Exception
) -> None:
    before = count_directories()
    with monkeypatch.context() as patch:
        patch.setattr(place, name, fail(error))
        with pytest.raises(SandboxError):
            shared.branch(2)
    assert count_directories() == before
    assert not (Path(find_listed(shared).record.outputs or "") / "branches").exists()
    assert evaluate(shared, "x") == 5


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with Sandbox(outputs=tmp_path_factory.mktemp("out"), memory="1G") as sandbox:
        sandbox.run("x = 5")
        yield sandbox


def test_branches_of_a_process_that_was_killed_are_swept(shared: Sandbox) -> None:
    before, wanted = count_directories(), name_branches(2, "left")
    kernel = shared._target._kernel
    assert kernel is not None
    made = shared._thread.run(kernel.checkpoints.branch(wanted))
    gone = dataclasses.replace(records.this_process(), started=1)
    for one in made:
        record = records.read_record(one.directory)
        assert record is not None
        assert take_saved(record.kernel_id, "nobody") is None  # only what was handed on, or left
        records.write_record(one.directory, dataclasses.replace(record, owner=gone))
    assert {one.identity for one in made} <= {*sweep_orphans()}
    assert count_directories() == before
    assert not (Path(find_listed(shared).record.outputs or "") / "branches").exists()


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".x", "a" * 65, "é", "a\n"])
def test_a_name_is_one_of_a_folder(name: str) -> None:
    with pytest.raises(SandboxError, match="name of a branch"):
        name_branches(1, name)
