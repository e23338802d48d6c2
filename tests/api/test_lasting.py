"""Sandboxes that outlive their program, and those that do not."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gvisor_kernel import AsyncSandbox, LastingSandbox, Sandbox
from gvisor_kernel.cli.main import main
from gvisor_kernel.errors import GvisorKernelError, SandboxError, SnapshotError
from gvisor_kernel.host.processes import ProcessId
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.runtimes.state.listed import find_all
from gvisor_kernel.runtimes.state.sweep import remove_orphan, sweep_orphans

from ..patience import scale_seconds
from ..world import PROJECT
from .test_hibernation import find_listed, wait_until

PROGRAM = """
import asyncio, os, signal, sys, time
from gvisor_kernel import AsyncSandbox, Sandbox

way, arguments = sys.argv[1], dict(snapshot="off", lasting=True)

async def leave_loop():
    sandbox = await AsyncSandbox.create(**arguments)
    await sandbox.run("n = 41")
    print(sandbox.id, flush=True)

if way == "loop":
    asyncio.run(leave_loop())
    sys.exit()
sandbox = Sandbox(**arguments | {"lasting": way != "ends"})
sandbox.run("n = 41")
if way == "works":
    def go_on(text):
        print(sandbox.id, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    sandbox.run("print('works', flush=True); import time; time.sleep(1); n += 1", on_stdout=go_on)
if way in ("asleep", "ends"):
    sandbox.hibernate()
print(sandbox.id, flush=True)
if way not in ("exit", "raise"):
    os.kill(os.getpid(), signal.SIGTERM if way == "term" else signal.SIGKILL)
if way == "raise":
    raise KeyError
"""


def run_program(way: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, way],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=scale_seconds(90),
        check=False,
    )
    assert done.stdout, done.stderr
    assert done.returncode == {"exit": 0, "loop": 0, "raise": 1, "term": -15}.get(way, -9)
    return done.stdout.strip()


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    before = {one.id for one in find_all()}
    yield
    for one in find_all():
        if one.id not in before and one.record.keeper == "program":
            wait_until(lambda one=one: remove_orphan(one.directory) or not one.directory.exists())


@pytest.fixture
def left(tmp_path: Path) -> Iterator[Sandbox]:
    """One that was left, in which n is 41. It is closed, and has its id."""
    for name in ("data", "out"):
        (tmp_path / name).mkdir()
    folders = {"uploads": tmp_path / "data", "outputs": tmp_path / "out"}
    sandbox = Sandbox(memory="1G", lasting=True, snapshot="off", **folders)
    assert sandbox.run("n = 41").ok
    yield sandbox
    sandbox.close()


def find_saved(id: str) -> LastingSandbox | None:
    return next((one for one in Sandbox.saved() if one.id == id), None)


@pytest.mark.parametrize("way", ["exit", "raise", "term", "kill", "asleep", "loop", "works"])
def test_another_program_takes_it_over(way: str) -> None:
    identity = run_program(way)
    with Sandbox.attach(identity, timeout=30) as sandbox:
        assert sandbox.id == identity
        # A cell that ran goes on before the next one begins.
        assert sandbox.run("n").text == ("42" if way == "works" else "41")
        directory = find_listed(sandbox).directory
    assert not directory.exists()
    with pytest.raises(SandboxError, match="There is no sandbox"):
        Sandbox.attach(identity)


def test_what_hibernates_ends_with_its_program() -> None:
    identity = run_program("ends")
    wait_until(lambda: all(one.record.identity != identity for one in find_all()))


def test_it_is_left_and_listed_and_taken_over(left: Sandbox, tmp_path: Path) -> None:
    identity = left.id
    id = left.leave()
    assert not left.alive
    with pytest.raises(SandboxError, match="It was closed"):
        left.run("1")
    saved = find_saved(id)
    assert saved is not None
    assert (saved.language, saved.outputs) == ("python", str(tmp_path / "out"))
    assert saved.folder == str(Path.cwd())
    assert saved.size > 1024 * 1024
    assert saved.kept_until - saved.saved == 30 * 86400
    with Sandbox.attach(id) as sandbox:
        assert (sandbox.id, find_saved(id)) == (identity, None)
        assert sandbox.run("n += 1; n").text == "42"
        sandbox.run("open('/mnt/user-data/outputs/a', 'w').write('a')")
        assert [file.path for file in sandbox.outputs().files] == ["a"]
        with pytest.raises(SandboxError, match=f"belongs to the process {os.getpid()} "):
            Sandbox.attach(id)
        assert sandbox.leave() == id
    with Sandbox.attach(id) as sandbox:
        assert sandbox.run("n").text == "42"


def test_only_what_lasts_can_be_left() -> None:
    with Sandbox(snapshot="off") as sandbox, pytest.raises(SandboxError, match="lasting=True"):
        sandbox.leave()
    with pytest.raises(SandboxError, match="docker cannot be saved"):
        Sandbox(lasting=True, runtime="docker", image="debian")


def test_from_a_loop(left: Sandbox) -> None:
    async def use(id: str) -> None:
        assert id in [one.id for one in await AsyncSandbox.saved()]
        sandbox = await AsyncSandbox.attach(id)
        assert (await sandbox.run("n")).text == "41"
        (branch,) = await sandbox.branch(name="other")
        assert await sandbox.leave() == id
        own = await branch.leave()
        for name in (id, own):
            async with await AsyncSandbox.attach(name) as sandbox:
                assert (await sandbox.run("n")).text == "41"

    asyncio.run(use(left.leave()))


def change(id: str, **facts: object) -> None:
    (one,) = (one for one in find_all() if one.id == id)
    records.change_record(one.directory, one.record, **facts)


def test_after_a_reboot(left: Sandbox) -> None:
    id = left.leave()
    machine = replace(records.this_machine(), boot="an earlier one", pid_namespace="pid:[1]")
    change(id, machine=machine, owner=ProcessId(os.getpid(), 1))
    assert find_saved(id) is not None
    with Sandbox.attach(id) as sandbox:
        assert sandbox.run("n").text == "41"


def test_encrypted(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.touch(0o600)
    key.write_text(os.urandom(32).hex())
    sandbox = Sandbox(hibernate_key=f"file:{key}", lasting=True, snapshot="off")
    sandbox.run("n = 41")
    id = sandbox.leave()
    moved = key.rename(tmp_path / "away")
    with pytest.raises(SandboxError):
        Sandbox.attach(id)
    moved.rename(key)
    with Sandbox.attach(id) as sandbox:
        assert sandbox.run("n").text == "41"


def test_what_does_not_go_on_stays(left: Sandbox, tmp_path: Path) -> None:
    id = left.leave()
    with pytest.raises(SnapshotError, match="does not grant what the kernel was started with"):
        Sandbox.attach(id, uploads=None)
    (tmp_path / "data").rename(tmp_path / "away")
    with pytest.raises(GvisorKernelError, match="uploads"):
        Sandbox.attach(id)
    (tmp_path / "away").rename(tmp_path / "data")
    assert find_saved(id) is not None
    with Sandbox.attach(id) as sandbox:
        assert sandbox.run("n").text == "41"


def test_a_sweep_keeps_what_is_for_others(left: Sandbox) -> None:
    id = left.leave()
    change(id, keeper="server")
    for keeper, words in (("server", "start the Jupyter server"), ("nobody", "ended with its")):
        change(id, keeper=keeper)
        assert find_saved(id) is None
        with pytest.raises(SandboxError, match=words):
            Sandbox.attach(id)
    change(id, keeper="program")
    sweep_orphans()
    assert find_saved(id) is not None
    change(id, keeper="nobody")
    sweep_orphans()
    assert id not in [one.id for one in find_all()]


@pytest.mark.parametrize(
    ("keeper", "words"),
    [
        ("program", 'Sandbox.attach("{id}")'),
        ("server", "start the Jupyter server of"),
        ("nobody", "ends with it"),
    ],
)
def test_words_fit_the_owner(
    left: Sandbox, capsys: pytest.CaptureFixture[str], keeper: str, words: str
) -> None:
    id = left.leave()
    change(id, keeper=keeper)
    assert main(["resume", id]) == 1
    assert words.format(id=id) in capsys.readouterr().err
    change(id, keeper="program")
