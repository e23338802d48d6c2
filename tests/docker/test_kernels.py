"""Kernels in sandboxes of a real engine: what they leave, and all ways in which they end."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from jupyter_client import BlockingKernelClient, KernelManager

from gvisor_kernel.cli.main import main
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import GvisorKernelError, IsolationError, LaunchError
from gvisor_kernel.runtimes.base import LaunchRequest
from gvisor_kernel.runtimes.docker import docker_sandbox
from gvisor_kernel.runtimes.docker.docker_sandbox import DockerSandbox
from gvisor_kernel.runtimes.docker.runtime import DockerRuntime
from gvisor_kernel.runtimes.state import records

from ..egress.indexes import make_wheel
from ..environments.helpers import serving_pip
from ..jupyter.helpers import (
    call_sandbox,
    connected,
    execute,
    finish,
    running_kernel,
    wait_for_text,
    wait_until,
)
from ..lasting.refusals import assert_nothing_is_saved
from ..sweeps import needs_all
from ..world import PROJECT, WAYS
from .dockerd import IMAGE, Dockerd, needs_dockerd, runsc_runtime
from .helpers import OUTPUTS, ask, sandbox_of

pytestmark = [*needs_dockerd, pytest.mark.usefixtures("dockerd")]

Kernel = tuple[KernelManager, BlockingKernelClient]
Start = Callable[..., AbstractContextManager[Kernel]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "notebooks"
    path.mkdir()
    return path


@pytest.fixture
def start(folder: Path, dockerd: Dockerd) -> Iterator[Start]:
    """Start a kernel in ``folder``; nothing of it may be left in the engine."""

    @contextmanager
    def start_one(**settings: Any) -> Iterator[Kernel]:
        with running_kernel(
            settings={**WAYS["docker"], **settings}, start={"cwd": str(folder)}
        ) as kernel:
            yield kernel

    yield start_one
    assert dockerd.ours() == []


# -- outputs ---------------------------------------------------------------------------------------


@needs_all
def test_an_end_that_comes_late_is_told_to_nobody_else(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pump waits for an engine that does not answer, when its sandbox is closed."""
    asked, answered = threading.Event(), threading.Event()
    with start() as (manager, _):
        sandbox = sandbox_of(manager)
        kill = sandbox.container.engine.kill

        def kill_late(container: str) -> None:
            asked.set()
            assert answered.wait(60)

        monkeypatch.setattr(docker_sandbox, "THREAD_SECONDS", 0.1)
        monkeypatch.setattr(sandbox.container.engine, "kill", kill_late)
        kill(sandbox.container.id)
        assert asked.wait(60)
        sandbox.close()
        stranger = os.eventfd(0, os.EFD_NONBLOCK)
        taken = fcntl.fcntl(stranger, fcntl.F_DUPFD_CLOEXEC, sandbox.exit_fd)
        answered.set()
        sandbox._pumps._threads[1].join(60)
        with pytest.raises(BlockingIOError):
            os.eventfd_read(stranger)
        os.close(stranger)
        os.close(taken)
        assert taken == sandbox.exit_fd


def test_outputs_are_copied_at_the_end(start: Start, folder: Path) -> None:
    (folder / "outputs").mkdir()
    os.chown(folder / "outputs", 4711, 4712)
    (folder / "outputs" / "kept").write_text("as it was")
    os.utime(folder / "outputs" / "kept", (1_600_000_000, 1_600_000_000))
    (folder / "outputs" / "changed").write_text("old")
    with start() as (manager, client):
        assert_nothing_is_saved(manager, client)
        code = (
            f"os.chdir('{OUTPUTS}'); os.mkdir('sub'); open('sub/new', 'w').write('new');"
            "open('changed', 'w').write('by the kernel'); os.symlink('/etc/passwd', 'link');"
            "os.mkfifo('pipe')"
        )
        assert execute(client, "import os; " + code).status == "ok"
        assert not (folder / "outputs" / "sub").exists()
        (folder / "outputs" / "kept").write_text("by the host")
    outputs = folder / "outputs"
    assert sorted(path.name for path in outputs.iterdir()) == ["changed", "kept", "link", "sub"]
    assert (outputs / "sub" / "new").read_text() == "new"
    assert (outputs / "changed").read_text() == "by the kernel"
    assert (outputs / "kept").read_text() == "by the host"
    assert (outputs / "link").readlink() == Path("/etc/passwd")
    status = (outputs / "sub" / "new").stat()
    assert (status.st_uid, status.st_gid) == (4711, 4712)


@needs_all  # the next test copies by this command, too
def test_outputs_are_copied_by_sync(
    start: Start, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with start() as (manager, client):
        execute(client, f"open('{OUTPUTS}/a', 'w').write('now')")
        sandbox = sandbox_of(manager)
        capsys.readouterr()
        assert main(["sync", sandbox.directory.name]) == 0
        assert "Copied 1 changed files" in capsys.readouterr().out
        assert (folder / "outputs" / "a").read_text() == "now"
        assert ask(client, "1") == 1
    assert (folder / "outputs" / "a").read_text() == "now"


def test_outputs_are_not_copied_into_another_folder(
    start: Start, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is copied to a link or another folder in their place; the files wait."""
    home, other, moved = (folder.with_name(name) for name in ("home", "other", "moved"))
    for path in (home, home / "outputs", other):
        path.mkdir()
    outputs = folder / "outputs"
    with start() as (manager, client):
        execute(client, f"open('{OUTPUTS}/.bashrc', 'w').write('echo taken')")
        directory = sandbox_of(manager).directory
        sync = ["sync", directory.name]
        outputs.rename(moved)
        for plant in (lambda: outputs.symlink_to(home), lambda: other.rename(outputs)):
            plant()
            assert main(sync) == 1
            assert "sync --to FOLDER" in capsys.readouterr().err
            outputs.unlink() if outputs.is_symlink() else outputs.rename(other)
        folder.rename(folder.with_name("away"))
        folder.symlink_to(home)
        assert main(sync) == 1
    assert directory.exists(), "the sandbox is kept until its outputs are copied"
    folder.unlink()
    folder.with_name("away").rename(folder)
    assert sorted(path.name for path in (*home.rglob("*"), *other.rglob("*"))) == ["outputs"]
    assert main(["sync", "--to", str(moved), directory.name]) == 0
    assert (moved / ".bashrc").read_text() == "echo taken"
    with start():
        assert not directory.exists()


@needs_all
def test_empty_outputs_folder_is_removed(start: Start, folder: Path) -> None:
    with start():
        assert (folder / "outputs").is_dir()
    assert list(folder.iterdir()) == []


@needs_all
def test_outputs_without_a_folder_are_not_kept(start: Start, folder: Path) -> None:
    with start(outputs=None, disk_limit="16M") as (_, client):
        answer = execute(client, f"open('{OUTPUTS}/a', 'wb').write(bytes(32 * 2**20))")
        assert answer.error == "OSError"
    assert list(folder.iterdir()) == []


@needs_all
def test_outputs_wait_in_the_engine_while_the_disk_is_full(
    start: Start, folder: Path, monkeypatch: pytest.MonkeyPatch, dockerd: Dockerd
) -> None:
    with monkeypatch.context() as full:
        full.setattr("gvisor_kernel.runtimes.copies.outputs.DISK_SPARE", 2**60)
        with start() as (_, client):
            execute(client, f"open('{OUTPUTS}/a', 'w').write('result')")
        assert dockerd.ours()
    ((directory, record),) = records.find_sandboxes()
    assert main(["sync", record.container_id]) == 0
    assert (folder / "outputs" / "a").read_text() == "result"
    with start():  # the next start of this process removes what is left
        assert not directory.exists()


# -- ends ------------------------------------------------------------------------------------------


def read_death_reason(client: BlockingKernelClient, code: str) -> str:
    """Run ``code``, which ends the kernel; return the reason that the cell shows."""
    answer = client.execute(code)
    message = None
    while message is None or message["parent_header"].get("msg_id") != answer:
        message = client.get_iopub_msg(timeout=60)
        if message["msg_type"] != "error":
            message = None
    return str(message["content"]["evalue"])


EAT_MEMORY = "held = []\nwhile True: held.append(b'x' * 2**22)"


def test_cell_over_the_memory_limit_says_so(start: Start) -> None:
    with start(memory_limit="300M") as (_, client):
        assert "its limit is 300 MiB" in read_death_reason(client, EAT_MEMORY)


@needs_all
def test_cell_over_the_memory_limit_of_a_remote_engine_says_so(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its report is too late for a fast program: the engine's own limit ends it."""
    monkeypatch.setattr(docker_sandbox, "find_group", lambda *arguments: None)
    with start(memory_limit="300M") as (manager, client):
        sandbox = sandbox_of(manager)
        wait_until(sandbox.memory_used, "the engine to tell what the sandbox uses")
        assert sandbox.memory_used() > 10 * 2**20
        assert "its limit is 300 MiB" in read_death_reason(client, EAT_MEMORY)


def test_exited_kernel_restarts_in_its_sandbox(start: Start) -> None:
    with start() as (manager, client):
        sandbox = sandbox_of(manager)
        assert call_sandbox(manager, do="make", path="made") == {"done": True}
        assert "exit status 3" in read_death_reason(client, "import os; os._exit(3)")
        manager.restart_kernel()
        assert sandbox_of(manager) is sandbox
        with connected(manager) as again:
            assert ask(again, "1 + 1") == 2
            assert call_sandbox(manager, do="exists", path="made")["exists"] is True


@needs_all
def test_kill_command_ends_the_sandbox(start: Start) -> None:
    with start() as (manager, client):
        sandbox = sandbox_of(manager)
        execute(client, "x = 1")
        request = client.execute("import time; print('runs', flush=True); time.sleep(1000)")
        wait_for_text(client, "runs")
        assert main(["kill", sandbox.directory.name]) == 0
        message = client.get_iopub_msg(timeout=60)
        while message["msg_type"] != "error":
            message = client.get_iopub_msg(timeout=60)
        assert message["parent_header"]["msg_id"] == request
        assert "sandbox is gone" in message["content"]["evalue"]
        manager.restart_kernel()
        assert sandbox_of(manager) is not sandbox
        with connected(manager) as again:
            assert ask(again, "1 + 1") == 2


def test_outputs_survive_a_stopped_engine(start: Start, dockerd: Dockerd, folder: Path) -> None:
    with start() as (manager, client):
        execute(client, f"open('{OUTPUTS}/a', 'w').write('before')")
        client.execute("import time; print('runs', flush=True); time.sleep(1000)")
        wait_for_text(client, "runs")
        dockerd.stop()
        try:
            message = client.get_iopub_msg(timeout=60)
            while message["msg_type"] != "error":
                message = client.get_iopub_msg(timeout=60)
            assert "sandbox is gone" in message["content"]["evalue"]
            manager.shutdown_kernel(now=True)
            with pytest.raises(GvisorKernelError, match="does not answer"), start():
                pass
        finally:
            dockerd.start()
    with start() as (_, client):
        assert ask(client, f"open('{OUTPUTS}/a').read()") == "before"


def run_owner(folder: Path) -> tuple[subprocess.Popen[str], Path]:
    owner = subprocess.Popen(
        [sys.executable, "-m", "tests.docker.owner", str(folder), IMAGE],
        stdout=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
        # The killed process leaves files of Jupyter's.
        env={**os.environ, "TMPDIR": str(folder.parent)},
    )
    assert owner.stdout is not None
    return owner, Path(owner.stdout.readline().strip())


def kill_owner(owner: subprocess.Popen[str]) -> None:
    owner.send_signal(signal.SIGKILL)
    owner.communicate(timeout=60)


def test_killed_owner_leaves_outputs_and_nothing_else(folder: Path, dockerd: Dockerd) -> None:
    """The outputs are copied, and everything else of the sandbox is removed."""
    owner, directory = run_owner(folder)
    assert directory.is_dir()
    assert dockerd.ours()
    kill_owner(owner)
    wait_until(lambda: not directory.exists(), "the sandbox to be removed")
    assert dockerd.ours() == []
    assert (folder / "outputs" / "kept").read_text() == "x"


def test_sandbox_without_state_directory_is_removed(folder: Path, dockerd: Dockerd) -> None:
    """Only the labels in the engine show to whom it belongs."""
    owner, directory = run_owner(folder)
    shutil.rmtree(directory)
    kill_owner(owner)
    assert dockerd.ours()
    runtime = DockerRuntime()
    assert runtime.sweep()
    assert dockerd.ours() == []


# -- refused starts --------------------------------------------------------------------------------


def test_runtime_that_is_not_gvisor_runs_no_kernel(
    dockerd: Dockerd, start: Start, tmp_path: Path
) -> None:
    """The program has gVisor's name, and starts an ordinary container."""
    program = tmp_path / "runsc"
    program.write_text('#!/bin/sh\nexec runc "$@"\n')
    program.chmod(0o755)
    with dockerd.client() as engine:

        def has(path: str) -> bool:
            return bool(engine.info()["Runtimes"]["runsc"]["path"] == path)

        dockerd.configure({"runsc": {"path": str(program)}})
        try:
            wait_until(lambda: has(str(program)), "the engine to know the other runtime")
            with pytest.raises((IsolationError, LaunchError)), start():
                pass
        finally:
            real = runsc_runtime()
            dockerd.configure(real)
            wait_until(lambda: has(real["runsc"]["path"]), "the engine to know runsc again")


def fake_other_kernel(sandbox: DockerSandbox, patch: pytest.MonkeyPatch) -> str:
    return "Linux version 6.1"


def fake_more_capabilities(sandbox: DockerSandbox, patch: pytest.MonkeyPatch) -> str:
    made = sandbox.container.engine.inspect(sandbox.container.id)
    made["HostConfig"]["CapAdd"] = ["ALL"]
    patch.setattr(sandbox.container.engine, "inspect", lambda container: made)
    return GVISOR


def fake_other_process(sandbox: DockerSandbox, patch: pytest.MonkeyPatch) -> str:
    patch.setattr(docker_sandbox, "read_argv", lambda pid: ["/usr/bin/python3"])
    return GVISOR


GVISOR = "[    0.000000] Starting gVisor..."


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (fake_other_kernel, "does not name gVisor"),
        (fake_more_capabilities, "capabilities"),
        (fake_other_process, "not runsc-sandbox"),
    ],
)
def test_container_that_differs_from_the_request_is_killed(
    change: Callable[[DockerSandbox, pytest.MonkeyPatch], str],
    words: str,
    folder: Path,
    dockerd: Dockerd,
) -> None:
    runtime = DockerRuntime()
    request = LaunchRequest("gvisor-python", "", folder, "python3", {})
    sandbox = runtime.start(SandboxSpec(runtime="docker", image=IMAGE, outputs=None), request)
    assert isinstance(sandbox, DockerSandbox)
    try:
        sandbox.verify({"dmesg": GVISOR})
        with pytest.MonkeyPatch.context() as patch:
            dmesg = change(sandbox, patch)
            with pytest.raises(IsolationError, match=words):
                sandbox.verify({"dmesg": dmesg})
        wait_until(lambda: sandbox.poll() is not None, "the sandbox to end")
    finally:
        sandbox.close()
    assert dockerd.ours() == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"image": "nothing/like:it"}, "has no image nothing/like:it"),
        ({"image": "empty:1"}, "python3"),
        ({"disk_limit": "16M"}, "too large to be copied"),
        ({"command": ["nothing", "{connection_file}"]}, "did not start|cannot be started"),
    ],
)
def test_failed_start_leaves_nothing(
    settings: dict[str, Any], words: str, start: Start, dockerd: Dockerd, folder: Path
) -> None:
    if settings.get("image") == "empty:1":
        with dockerd.client() as engine:
            engine._patient.import_image_from_data(bytes(10240), "empty", "1")
    (folder / "large").write_bytes(bytes(17 * 2**20))
    with pytest.raises(GvisorKernelError, match=words), start(**settings):
        pass
    assert [path.name for path in folder.iterdir()] == ["large"]


def test_writable_mount_is_refused(start: Start, tmp_path: Path) -> None:
    mount = {"source": str(tmp_path), "target": "/mnt/more", "read_only": False}
    with pytest.raises(GvisorKernelError, match="mounts"), start(mounts=[mount]):
        pass


def test_image_host_is_refused(start: Start) -> None:
    with pytest.raises(GvisorKernelError, match="image is 'host'"), start(image="host"):
        pass


@needs_all
def test_large_output_is_complete(start: Start) -> None:
    """It is larger than every buffer on the way; a full buffer stalls the kernel."""
    with start() as (_, client):
        request = client.execute("for n in range(300): print(str(n) + 'x' * 2**18)")
        answer = finish(client, request)
        assert answer.text.count("\n") == 300


# -- packages --------------------------------------------------------------------------------------


@needs_all  # it takes 20 s; tests/environments shows the same with runsc
def test_packages_are_installed_in_the_engine_and_copied_into_it(start: Start) -> None:
    words = ["install", "--user", "--name", "gk-engine", "--image", IMAGE, "--with", "demo"]
    with serving_pip() as index:
        index.add_project("demo", make_wheel("demo"))
        assert main([*words, "--set", "runtime=docker"]) == 0
        try:
            with running_kernel("gk-engine", settings={}) as (_, client):
                code = "import demo; print(demo.VERSION, demo.__file__)"
                assert "1.0 /opt/gvisor-kernel/python-packages/" in execute(client, code).text
        finally:
            assert main(["uninstall", "--user", "--name", "gk-engine"]) == 0
