"""The spare, a sandbox that is restored ahead: which start takes it, and when it is removed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client import BlockingKernelClient, KernelManager
from jupyter_client.kernelspec import KernelSpecManager
from traitlets.config import Config

from gvisor_kernel.jupyter.provisioner import GVisorProvisioner
from gvisor_kernel.kernel import preparation
from gvisor_kernel.kernel.plan import KernelPlan
from gvisor_kernel.kernel.preparation import SpareKeeper
from gvisor_kernel.runtimes.runsc.runsc_sandbox import RunscSandbox
from gvisor_kernel.runtimes.state.listed import Listed, find_all

from .. import leaks
from ..jupyter.helpers import SECONDS, execute, kernel_log, running_kernel, sandbox_of, wait_until
from ..sweeps import needs_all
from ..world import DEFAULT_KERNEL, WAYS, World

pytestmark = pytest.mark.usefixtures("shared_snapshot")

Running = tuple[KernelManager, BlockingKernelClient]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "notebooks"
    path.mkdir()
    monkeypatch.chdir(path)
    return path


@pytest.fixture(autouse=True, scope="module")
def snapshot(world: World) -> None:
    """The run's snapshot, made again if a test of another module has discarded it."""
    build = [sys.executable, "-m", "gvisor_kernel", "snapshot", "build"]
    subprocess.run(build, capture_output=True, timeout=170, check=True)


@pytest.fixture(autouse=True)
def keeper(monkeypatch: pytest.MonkeyPatch) -> Iterator[SpareKeeper]:
    """A keeper that makes spares without a delay; none is left at the end."""
    keeper = SpareKeeper()
    monkeypatch.setattr(preparation, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr(SpareKeeper, "_instance", keeper)
    yield keeper
    keeper.end()
    assert not find_spares()


def find_spares() -> list[Listed]:
    return [sandbox for sandbox in find_all() if sandbox.state == "spare"]


def state_of(sandbox: Listed) -> str:
    pid = sandbox.record.processes["sentry"].pid
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def started(**start: Any) -> Any:
    return running_kernel(settings={"spare": True}, start=start)


def identity_of(manager: KernelManager) -> str:
    return str(sandbox_of(manager).identity)


@pytest.fixture
def spare() -> Listed:
    """A spare for the test's folder, made after two starts."""
    start_twice()
    return wait_for_spare()


def start_twice() -> None:
    """Start the kernel of the folder as often as a spare of it needs, from the snapshot."""
    for _ in range(2):
        assert not find_spares()
        with started() as (manager, _):
            log = kernel_log(manager)
            assert "the kernel was restored from a snapshot" in log, log


def wait_for_spare() -> Listed:
    wait_until(lambda: SpareKeeper.instance().ready, "a spare")
    (found,) = find_spares()
    assert state_of(found) == "T"
    return found


def test_busy_sandbox_becomes_no_spare(
    keeper: SpareKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = threading.Semaphore(0)

    def look(sandbox: RunscSandbox) -> bool:
        looks.release()
        return True

    monkeypatch.setattr(RunscSandbox, "is_busy", look)
    monkeypatch.setattr(preparation, "MAX_STOPS", 2)
    start_twice()
    assert looks.acquire(timeout=SECONDS)
    assert looks.acquire(timeout=SECONDS)
    wait_until(lambda: not find_spares(), "the removal of the sandbox")
    assert not keeper.ready


def test_next_start_of_same_kind_takes_spare(spare: Listed, folder: Path) -> None:
    """The command list shows it as a spare until then, and afterwards as that start's kernel."""
    command = [sys.executable, "-m", "gvisor_kernel", "list", "--json"]
    shown = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert [(s["id"], s["state"]) for s in shown] == [(spare.id, "spare")]
    (folder / "data.txt").write_text("later than the spare")

    def name(manager: KernelManager) -> None:
        manager.kernel_id = "of-this-start"

    environment = {"env": {"UNKNOWN": "secret"}}
    with running_kernel(settings={"spare": True}, prepare=name, start=environment) as running:
        manager, client = running
        assert identity_of(manager) == spare.record.identity
        assert "the kernel was restored from a snapshot" in kernel_log(manager)
        code = """
import os, secrets
open("/mnt/user-data/outputs/kept", "w").write("kept")
print(open("data.txt").read(), os.getcwd(), "UNKNOWN" in os.environ, 6 * 7)
"""
        assert execute(client, code).text == "later than the spare /workspace False 42\n"
        (listed,) = [s for s in find_all() if s.id == spare.id]
        assert (listed.state, listed.record.spare) == ("running", False)
        assert listed.record.kernel_id == "of-this-start"
        another = wait_for_spare()
        assert another.id != spare.id
        with started() as (_, second):
            code = "import os, random, uuid; print(os.urandom(8), random.random(), uuid.uuid4())"
            assert execute(client, code).text != execute(second, code).text
    assert (folder / "outputs" / "kept").read_text() == "kept"


def test_start_of_other_kind_does_not_take_spare(
    spare: Listed, folder: Path, tmp_path: Path
) -> None:
    """Neither in another folder, nor with other settings, nor in a folder in the old one's place,
    which the spare does not show. So it is removed then."""
    with started(cwd=str(tmp_path)) as (manager, _):
        assert identity_of(manager) != spare.record.identity
    assert [s.id for s in find_spares()] == [spare.id]
    settings = {"spare": True, "memory_limit": "1G"}
    with running_kernel(settings=settings) as (manager, _):
        assert identity_of(manager) != spare.record.identity
    folder.rename(folder.with_name("moved"))
    folder.mkdir()
    (folder / "new.txt").touch()
    with started(cwd=str(folder)) as (manager, client):
        assert identity_of(manager) != spare.record.identity
        assert execute(client, "import os; os.listdir()").result.count("new.txt") == 1
        assert spare.id not in [s.id for s in find_all()]


def test_killed_spare_does_not_stop_next_start(spare: Listed) -> None:
    kill = [sys.executable, "-m", "gvisor_kernel", "kill", spare.id]
    subprocess.run(kill, check=True, capture_output=True)
    with started() as (manager, client):
        assert identity_of(manager) != spare.record.identity
        assert execute(client, "6 * 7").result == "42"
        assert spare.id not in [s.id for s in find_all()]


@pytest.mark.once
def test_spare_is_removed_after_keep_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "KEEP_SECONDS", 0.2)
    seen: list[bool] = []
    make = SpareKeeper._make

    def make_and_look(self: SpareKeeper, plan: Any) -> None:
        make(self, plan)
        seen.append(bool(find_spares()))

    monkeypatch.setattr(SpareKeeper, "_make", make_and_look)
    for _ in range(2):
        with started():
            pass
    wait_until(lambda: seen, "a spare")
    assert seen == [True]
    wait_until(lambda: not find_spares(), "the removal of the spare")


@pytest.mark.once
def test_setting_turns_spares_off(keeper: SpareKeeper) -> None:
    for _ in range(2):
        with running_kernel(settings={"spare": False}):
            pass
    assert keeper._thread is None


OWNER = """
import asyncio, json, sys, time
from jupyter_client import KernelManager
from traitlets.config import Config
from gvisor_kernel.jupyter.provisioner import GVisorProvisioner
from gvisor_kernel.kernel import preparation
from gvisor_kernel.kernel.plan import KernelPlan
from gvisor_kernel.runtimes.state.listed import find_all

preparation.WAIT_SECONDS = 0
config = Config({"GVisorProvisioner": {"snapshot": "auto", "spare": True}})
for _ in range(2):
    manager = KernelManager(kernel_name="gvisor-python", config=config)
    manager.start_kernel()
    manager.shutdown_kernel(now=True)
end = time.monotonic() + 60
while not (found := [s for s in find_all() if s.state == "spare"]) and time.monotonic() < end:
    time.sleep(0.02)
print(found[0].id, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", [pytest.param("exits", marks=needs_all), "is killed"])
def test_spare_ends_with_its_process(how: str, world: World) -> None:
    before = leaks.find_things(world, leaks.SANDBOX)
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdin is not None
        assert owner.stdout is not None
        identity = owner.stdout.readline().strip()
        assert identity
        if how == "is killed":
            os.kill(owner.pid, signal.SIGKILL)
        owner.stdin.close()
        owner.wait(60)
    assert not leaks.find_leftovers(before, lambda: leaks.find_things(world, leaks.SANDBOX))


def test_a_spare_makes_no_folder_of_outputs_before_a_kernel_takes_it(
    keeper: SpareKeeper, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a folder that a person has only browsed. The folder is kept aside until then; where
    somebody has made one meanwhile, that one is used."""
    monkeypatch.setattr(preparation, "MIN_STARTS", 9)  # spares are made of what is prepared alone
    settings = {**WAYS["restored"], "spare": True}
    for made in (False, True):
        keeper.prepare(plan_for(folder, settings))
        spare = wait_for_spare()
        assert not (folder / "outputs").exists()
        if made:
            (folder / "outputs").mkdir()
            (folder / "outputs" / "mine").touch()
        with started(cwd=str(folder)) as (manager, client):
            assert (identity_of(manager) == spare.record.identity) is not made
            code = "open('outputs/new', 'w').close(); sorted(__import__('os').listdir('outputs'))"
            assert execute(client, code).result == ("['mine', 'new']" if made else "['new']")
            (folder / "outputs" / "new").unlink()
        assert (folder / "outputs").exists() is made
    keeper.prepare(plan_for(folder.parent, settings))
    wait_for_spare()
    keeper.end()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["notebooks"]


def plan_for(folder: Path, settings: dict[str, Any]) -> KernelPlan:
    kernel_spec = KernelSpecManager().get_kernel_spec(DEFAULT_KERNEL)
    own = kernel_spec.metadata["kernel_provisioner"]["config"]
    config = Config({"GVisorProvisioner": settings})
    provisioner = GVisorProvisioner(kernel_spec=kernel_spec, config=config, parent=None, **own)
    return provisioner.plan_ahead(DEFAULT_KERNEL, folder)
