"""A kernel keeps its runsc, new kernels get the chosen one, and what is saved names its own.

As root the store of releases is that of the machine, so the tests run in a mount namespace of their
own; an ordinary user has a store in the folder of the run.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from jupyter_client import BlockingKernelClient, KernelManager
from traitlets.config import Config

from gvisor_kernel.cli import snapshots
from gvisor_kernel.cli.main import main
from gvisor_kernel.errors import ReleaseError
from gvisor_kernel.jupyter.plan_factory import make_plan
from gvisor_kernel.kernel import preparation
from gvisor_kernel.kernel.client import private_connection_info
from gvisor_kernel.kernel.preparation import SpareKeeper
from gvisor_kernel.kernel.restore import has_snapshot
from gvisor_kernel.releases import release_store
from gvisor_kernel.releases.release_store import SYSTEM, Release, choose, find_releases
from gvisor_kernel.runtimes.runsc import kept_programs, runtime
from gvisor_kernel.runtimes.runsc.command_line import find_runsc
from gvisor_kernel.runtimes.runsc.kept_programs import sweep_copies
from gvisor_kernel.runtimes.runsc.starting import wait_for_sentry
from gvisor_kernel.runtimes.state.kept_packages import wait_until_kept
from gvisor_kernel.runtimes.state.listed import find_all
from gvisor_kernel.runtimes.state.records import Record, read_record
from gvisor_kernel.snapshots.snapshot_store import Store

from .. import run_as_user
from ..jupyter.helpers import SECONDS, execute, kernel_log, running_kernel, sandbox_of, wait_until
from ..jupyter.server import JupyterServer
from ..patience import scale_seconds
from ..sweeps import ALL
from ..without_runsc import COVER
from ..world import DEFAULT_KERNEL, PROJECT, World
from .programs import Program, install, make_programs, replace

IN_NAMESPACE = "GK_TEST_OWN_STORE"
"""Set in the process whose store of releases is its own although it is root's."""
IS_ROOT = os.geteuid() == 0
inside = pytest.mark.skipif(
    IS_ROOT and IN_NAMESPACE not in os.environ,
    reason="root's store is that of the machine: see test_in_a_namespace",
)
as_root_inside = pytest.mark.skipif(IN_NAMESPACE not in os.environ, reason="needs root's store")


@pytest.mark.skipif(not IS_ROOT or IN_NAMESPACE in os.environ, reason="runs the others as root")
@pytest.mark.timeout(900)
def test_in_a_namespace() -> None:
    """With an empty store of root, and a /usr/bin/runsc that can be replaced."""
    script = f"""
        {COVER}
        exec "$0" -m pytest -p no:cacheprovider -q -rs --timeout=300 "$1"
    """
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", script, sys.executable, __file__],
        env={**os.environ, IN_NAMESPACE: "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=scale_seconds(800),
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, Program]:
    return make_programs(tmp_path_factory.mktemp("programs"))


@pytest.fixture
def system(
    programs: tuple[Program, Program], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The path of the distribution's runsc, which a test may replace. It is the older one."""
    folder = tmp_path / "bin"
    shutil.copytree(programs[0].path.parent, folder)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder / "runsc"


@pytest.fixture
def releases(programs: tuple[Program, Program], system: Path) -> Iterator[tuple[Release, Release]]:
    """Both programs as releases. The older one is chosen; nothing of it is left."""
    yield install(programs[0]), install(programs[1])
    shutil.rmtree(release_store.own_store())


@pytest.fixture(autouse=True)
def empty_store(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if (request.node.get_closest_marker("skipif") and not IS_ROOT) or IN_NAMESPACE in os.environ:
        shutil.rmtree(release_store.own_store(), ignore_errors=True)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "notebooks"
    path.mkdir()
    monkeypatch.chdir(path)
    return path


def record_of(manager: KernelManager) -> Record:
    record = read_record(sandbox_of(manager).directory)
    assert record is not None
    return record


def restart(manager: KernelManager, client: BlockingKernelClient, how: str) -> None:
    if how == "after its death":
        client.execute("import os; os.kill(os.getpid(), 9)")
        wait_until(lambda: not manager.is_alive(), "the death of the kernel")
    elif how == "after the sandbox's death":
        os.kill(record_of(manager).processes["sentry"].pid, signal.SIGKILL)
        wait_until(lambda: not manager.is_alive(), "the death of the kernel")
    manager.restart_kernel(now=how != "politely")
    client.wait_for_ready(timeout=SECONDS)
    assert execute(client, "print(6 * 7)").text == "42\n"


RESTARTS: tuple[str, ...] = ("politely", "after its death", "after the sandbox's death")
if not ALL:
    RESTARTS = RESTARTS[::2]


@inside
@pytest.mark.parametrize("keeps", ["kernel", "sandbox"])
def test_running_kernel_keeps_its_release_over_a_switch(
    releases: tuple[Release, Release], keeps: str
) -> None:
    """To its end, also if it dies or its whole sandbox is made anew; another one gets the new."""
    old, new = releases
    choose(old.name)
    settings = {"snapshot": "off", "restart": keeps}
    with running_kernel(settings=settings) as (manager, client):
        first = record_of(manager)
        assert (first.runsc, first.program) == (old.version, find_runsc(old.name).program)
        choose(new.name)
        for how in RESTARTS:
            before = sandbox_of(manager)
            restart(manager, client, how)
            same = keeps == "kernel" and how != "after the sandbox's death"
            assert (sandbox_of(manager) is before) == same
            assert record_of(manager).program == first.program
        with running_kernel(settings=settings) as (other, _):
            assert record_of(other).runsc == new.version
            assert all(map(release_store.find_processes, releases))
        listed = subprocess.run(
            [sys.executable, "-m", "gvisor_kernel", "list"], capture_output=True, text=True
        )
        assert f"(runsc {old.name})" in listed.stdout
        with pytest.raises(ReleaseError, match=f"run with the release {old.name}"):
            release_store.remove(old)
    assert not release_store.find_processes(old)
    release_store.remove(old)
    with pytest.raises(ReleaseError, match=f"start with the release {new.name}"):
        release_store.remove(new)


@inside
@pytest.mark.parametrize("how", ["replaced", "removed"])
def test_saved_kernel_keeps_its_runsc_that_nobody_holds_any_more(
    how: str,
    programs: tuple[Program, Program],
    system: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As after an update of the package, or `runsc remove`, while the server is away."""
    if how == "removed":
        release_store.choose(install(programs[0]).name)
    path = find_runsc().path
    with running_kernel(settings={"snapshot": "off"}) as (manager, client):
        execute(client, "x = 5")
        first = record_of(manager)
        assert first.program == find_runsc().program
        directory = sandbox_of(manager).directory
        sleep = manager.provisioner.sandboxed_kernel.hibernation  # type: ignore[union-attr]
        asyncio.run(sleep.hibernate())
        wait_until_kept()
        kept = directory / "saved" / "kept.json"
        monkeypatch.setattr(kept_programs, "_held", {})
        if how == "replaced":
            assert find_releases() == []
            replace(system, programs[1])
        kept.rename(kept.with_name("aside"))
        if how == "removed":
            replace(system, programs[1])
            release_store.choose("system")
            assert main(["runsc", "remove", programs[0].name]) == 1
            assert f"{directory.name} was saved by the release" in capsys.readouterr().err
        else:
            client.execute("x")
            refused = client.get_shell_msg(timeout=SECONDS)["content"]
            assert f"{system} was changed" in refused["evalue"]
        kept.with_name("aside").rename(kept)
        if how == "removed":
            assert main(["runsc", "remove", programs[0].name]) == 0
            assert not Path(path).exists()
        assert execute(client, "print(x)").text.endswith("5\n")
        assert record_of(manager).program == first.program
        (copy,) = find_releases()
        assert copy.program.read_bytes() == programs[0].path.read_bytes()
        with running_kernel(settings={"snapshot": "off"}) as (other, _):
            assert record_of(other).runsc == programs[1].version


@inside
@pytest.mark.parametrize("where", ["on the PATH", pytest.param("/usr/bin", marks=as_root_inside)])
def test_running_kernel_keeps_its_runsc_over_an_update_of_the_package(
    where: str,
    programs: tuple[Program, Program],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """It gets a copy when it restarts, and not before; nobody else does."""
    old, new = programs
    if where == "/usr/bin":
        place = tmp_path / "usr/runsc"
        place.parent.mkdir()
        shutil.copy2(old.path, place)
        mount_over(place, request)
    else:
        place = request.getfixturevalue("system")
    settings = {"snapshot": "off", "restart": "sandbox"}
    with running_kernel(settings=settings) as (manager, client):
        first = record_of(manager)
        assert first.runsc == old.version
        if where == "/usr/bin":
            mount_over(new.path, request)
        else:
            replace(place, new)
        with running_kernel(settings=settings) as (other, again):
            assert record_of(other).runsc == new.version
            restart(other, again, "politely")
        assert find_releases() == []
        for how in RESTARTS:
            restart(manager, client, how)
            assert (record_of(manager).program, record_of(manager).runsc) == (
                first.program,
                old.version,
            )
        (copy,) = find_releases()
        assert copy.name.startswith(f"{SYSTEM}-")
        assert copy.source == first.program
        assert copy.program.read_bytes() == old.path.read_bytes()
        os.utime(copy.directory, (0, 0))
        sweep_copies()
        assert find_releases() == [copy], "a sandbox runs with it"
        seen = find_runsc(first.program)
        assert (seen.executable, seen.path) == (str(copy.program), first.program.split("\n")[0])
    sweep_copies()
    assert find_releases() == [copy], "it was used just now"
    os.utime(copy.directory, (0, 0))
    sweep_copies()
    assert find_releases() == []


def mount_over(program: Path, request: pytest.FixtureRequest) -> None:
    """Show ``program`` as /usr/bin/runsc, in this namespace alone. This process holds it open."""
    subprocess.run(["mount", "--bind", program, "/usr/bin/runsc"], check=True)
    request.addfinalizer(lambda: subprocess.run(["umount", "--lazy", "/usr/bin/runsc"], check=True))


@inside
def test_kernel_whose_runsc_is_gone_restarts_with_the_current_one(
    programs: tuple[Program, Program],
    system: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That is said once. A restart that needs no runsc is none of that."""
    old, new = programs
    with running_kernel(settings={"snapshot": "off"}) as (manager, client):
        replace(system, new)
        monkeypatch.setattr(kept_programs, "_held", {})
        before = sandbox_of(manager)
        restart(manager, client, "politely")
        assert sandbox_of(manager) is before
        assert record_of(manager).runsc == old.version
        for _ in range(2):
            restart(manager, client, "after the sandbox's death")
            assert record_of(manager).runsc == new.version
    said = [r.getMessage() for r in caplog.records if "go on with another" in r.getMessage()]
    assert len(said) == 1
    assert str(system) in said[0]


@inside
def test_start_whose_program_is_replaced_meanwhile_is_begun_again(
    programs: tuple[Program, Program], system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the program that it was planned for: its snapshots fit no other."""
    planned, starts = find_runsc().program, []

    def wait(*words: Any, **options: Any) -> Any:
        if not starts:
            replace(system, programs[1])
        starts.append(words)
        return wait_for_sentry(*words, **options)

    monkeypatch.setattr(runtime, "wait_for_sentry", wait)
    with running_kernel(settings={"snapshot": "off"}) as (manager, _):
        assert "was replaced or removed while the sandbox started" in kernel_log(manager)
        assert record_of(manager).program == planned
        assert find_runsc().version == programs[1].version
    assert len(starts) == 2


# -- snapshots and spares --------------------------------------------------------------------------


@pytest.fixture
def kernelspec(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """One whose kernels start from snapshots and take spares; there is no snapshot yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    spec = json.loads((world.kernelspecs / DEFAULT_KERNEL / "kernel.json").read_text())
    spec["metadata"]["kernel_provisioner"]["config"] |= {"snapshot": "auto", "spare": True}
    folder = world.add_kernelspec("gk-switched", spec)
    yield "gk-switched"
    shutil.rmtree(folder)


def plan_of(kernel: str) -> Any:
    return make_plan(kernel, private_connection_info(), "")


@inside
def test_first_start_after_a_switch_is_restored(
    releases: tuple[Release, Release],
    kernelspec: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The snapshots are made before the release is chosen; a failure forbids nothing. They fit as
    long as there is their release."""
    old, new = releases
    choose(old.name)
    snapshots.build_for_release(old.name)
    assert has_snapshot(plan_of(kernelspec))
    snapshots.build_for_release(new.name)
    said = capsys.readouterr().out
    assert said.count(f"{kernelspec}: Kernels start from the snapshot") == 2
    choose(new.name)
    assert has_snapshot(plan_of(kernelspec))
    assert read_states() == {old.version: None, new.version: None}
    with running_kernel(kernelspec, settings={"spare": False}) as (manager, _):
        assert record_of(manager).runsc == new.version
        assert "the kernel was restored from a snapshot" in kernel_log(manager)
    choose(SYSTEM)
    release_store.remove(new)
    monkeypatch.setattr(kept_programs, "_held", {})  # as in another process
    gone = "its runsc was replaced or removed"
    assert read_states() == {old.version: None, new.version: gone}
    snapshots.build_for_release(new.name)
    said = capsys.readouterr().out
    assert f"{kernelspec}: No snapshot was made" in said
    assert f"The release {new.name} of runsc is not installed." in said


def read_states() -> dict[str, str | None]:
    """Return why no kernel may start from the snapshot of each version."""
    found = Store.open().snapshots()
    return {one.meta.label["runsc"]: snapshots.find_change(one) for one in found}


@inside
def test_kernels_with_the_release_that_their_kernelspec_names_are_restored(
    releases: tuple[Release, Release], kernelspec: str, world: World
) -> None:
    old, new = releases
    choose(old.name)
    snapshots.build_for_release(new.name)
    path = world.kernelspecs / kernelspec / "kernel.json"
    spec = json.loads(path.read_text())
    spec["metadata"]["kernel_provisioner"]["config"]["runsc"] = new.name
    path.write_text(json.dumps(spec))
    with running_kernel(kernelspec, settings={"spare": False}) as (manager, _):
        assert record_of(manager).runsc == new.version
        assert "the kernel was restored from a snapshot" in kernel_log(manager)
    snapshots.build_for_release(old.name)
    made = {(s.meta.label["kernel"], s.meta.label["runsc"]) for s in Store.open().snapshots()}
    assert (kernelspec, old.version) not in made, "its kernels do not start with the chosen one"


@inside
def test_restart_after_an_update_of_the_package_is_restored(
    programs: tuple[Program, Program], system: Path, kernelspec: str
) -> None:
    """The copy is the very program that has made the snapshot."""
    snapshots.build_missing(kernelspec)
    with running_kernel(kernelspec, settings={"spare": False}) as (manager, client):
        restored = "the kernel was restored from a snapshot"
        assert restored in kernel_log(manager)
        replace(system, programs[1])
        restart(manager, client, "after the sandbox's death")
        assert restored in kernel_log(manager)
        assert record_of(manager).runsc == programs[0].version


@inside
def test_spare_of_the_old_release_is_replaced(
    releases: tuple[Release, Release], kernelspec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start takes only one of its own release."""
    old, new = releases
    keeper = SpareKeeper()
    monkeypatch.setattr(preparation, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr(SpareKeeper, "_instance", keeper)
    for release in releases:
        snapshots.build_for_release(release.name)
    try:
        choose(old.name)
        assert preparation.prepare(plan_of(kernelspec)) == "spare"
        wait_until(lambda: keeper.ready, "a spare")
        assert [spare.runsc for spare in find_spares()] == [old.version]
        choose(new.name)
        with running_kernel(kernelspec, config=Config()) as (manager, _):
            assert record_of(manager).runsc == new.version
            assert [spare.runsc for spare in find_spares()] == [old.version]
        assert preparation.prepare(plan_of(kernelspec)) == "spare"
        wait_until(lambda: [s.runsc for s in find_spares()] == [new.version], "another spare")
        wait_until(lambda: keeper.ready, "the spare to be stopped")
        (spare,) = find_spares()
        with running_kernel(kernelspec, config=Config()) as (manager, _):
            assert record_of(manager).identity == spare.identity
    finally:
        keeper.end()


def find_spares() -> list[Record]:
    return [one.record for one in find_all() if one.record.spare]


class WatchfulServer(JupyterServer):
    """A server that looks for another runsc all the time."""

    def argv(self, port: int) -> list[str]:
        code = """
import sys
import tempfile
from gvisor_kernel.server import kernel_preparer
kernel_preparer.LOOK_SECONDS = kernel_preparer.RUNSC_SECONDS = 0.2
from jupyter_server.serverapp import main
main(sys.argv[1:])
"""
        options = [word for word in super().argv(port) if word.startswith("--")]
        return [sys.executable, "-c", code, *options]


@inside
@pytest.mark.parametrize("how", ["chosen", "updated"])
def test_running_server_notices_another_runsc(
    how: str, releases: tuple[Release, Release], system: Path, kernelspec: str, folder: Path
) -> None:
    """It makes the snapshot, and the spare in place of the old one; its kernels keep theirs."""
    old, new = releases
    choose(old.name if how == "chosen" else SYSTEM)
    snapshots.build_missing(kernelspec)
    server = WatchfulServer(
        folder,
        f"--MultiKernelManager.default_kernel_name={kernelspec}",
        extensions=("gvisor_kernel.server",),
    )
    try:
        server.start()
        wait_until(lambda: [s.runsc for s in find_spares()] == [old.version], "a spare")
        kernel = server.ask("POST", "kernels")["id"]
        if how == "chosen":
            choose(new.name)
        else:
            replace(system, Program(new.program, new.version))
        wait_until(lambda: new.version in [s.runsc for s in find_spares()], "another spare", 120)
        assert new.version in read_states()
        assert release_of(server, kernel) == old.version
        server.ask("POST", f"kernels/{kernel}/restart")
        assert release_of(server, kernel) == old.version
        other = server.ask("POST", "kernels")["id"]
        assert release_of(server, other) == new.version
        for one in (kernel, other):
            server.ask("DELETE", f"kernels/{one}")
    finally:
        server.stop()


def release_of(server: JupyterServer, kernel: str) -> str:
    """Return what the page is told."""
    return str(server.ask("GET", f"../gvisor-kernel/api/kernels/{kernel}")["release"]["runsc"])


# -- root's store, for all users -------------------------------------------------------------------

USER = 65534
AS_USER = """
import sys
import tempfile
from gvisor_kernel import Sandbox
from gvisor_kernel.errors import ReleaseError
from gvisor_kernel.releases.release_store import SYSTEM, choose, find_chosen, remove
from gvisor_kernel.runtimes.state.listed import find_all

def run():
    with Sandbox(snapshot="off") as sandbox:
        assert sandbox.run("6 * 7").text == "42"
        (one,) = find_all()
        print(one.record.program.partition(chr(10))[0], one.record.runsc, flush=True)
        sys.stdin.readline()

run()
try:
    remove(find_chosen())
except ReleaseError as error:
    print(error.fact, flush=True)
choose(SYSTEM)
run()
"""


@as_root_inside
def test_a_release_of_root_serves_all_users(
    releases: tuple[Release, Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may choose another, and not remove it; root may not while anybody's sandbox runs."""
    old, new = releases
    choose(new.name)
    with tempfile.TemporaryDirectory(dir="/tmp") as home:
        os.chown(home, USER, USER)
        options: dict[str, Any] = {"user": USER, "group": USER, "extra_groups": [], "cwd": home}
        options["env"] = {"HOME": home, "PATH": os.defpath, "TMPDIR": home}
        options["env"]["PYTHONPATH"] = str(PROJECT)
        pythons = [sys.executable, *map(str, run_as_user.CACHE.glob("*/bin/python"))]
        python = next((path for path in pythons if can_use(path, options)), None)
        if python is None:
            pytest.skip("another user cannot use this Python; tests/run_as_user.py makes one")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        program = subprocess.Popen([python, "-c", AS_USER], **options, **pipes)
        with program:
            assert program.stdin is not None
            assert program.stdout is not None
            try:
                said = program.stdout.readline()
                assert said == f"{new.program} {new.version}\n"
                choose(old.name)
                with pytest.raises(ReleaseError, match=f"run with the release {new.name}"):
                    release_store.remove(new)
                choose(new.name)
                program.stdin.write("\n")
                program.stdin.flush()
                said = program.stdout.readline()
                assert said == f"The release {new.name} is in root's store.\n"
                assert program.stdout.readline() == f"/usr/bin/runsc {old.version}\n"
                program.stdin.write("\n")
                program.stdin.flush()
                assert program.wait(SECONDS) == 0
            finally:
                program.kill()


def can_use(python: str, options: dict[str, Any]) -> bool:
    with suppress(PermissionError):
        code = AS_USER[: AS_USER.index("def")]
        return subprocess.run([python, "-c", code], **options, check=False).returncode == 0
    return False
