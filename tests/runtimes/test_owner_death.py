"""A sandbox does not outlive its owner, however that ends, and other sandboxes are not touched."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel.host.folders import open_path
from gvisor_kernel.host.processes import SUBUID_BASE, ProcessId, is_alive
from gvisor_kernel.runtimes.runsc.command_line import find_runsc
from gvisor_kernel.runtimes.runsc.runtime import RunscRuntime
from gvisor_kernel.runtimes.state import lifeline, records, sweep

from .. import run_as_user
from ..patience import scale_seconds
from .conftest import Start, overlay, root_only
from .standin import Conversation

GONE_SECONDS = scale_seconds(10)
STRANGER = 54321
PROJECT = Path(__file__).parents[2]


def can_read(uid: int, folder: Path) -> bool:
    """Whether a process of ``uid`` without groups can list ``folder``."""
    argv = ["/bin/ls", str(folder)]
    options: dict[str, Any] = {"user": uid, "group": uid, "extra_groups": [], "cwd": "/"}
    return subprocess.run(argv, check=False, capture_output=True, **options).returncode == 0


def find_strangers_python() -> tuple[Path, str]:
    """Return the distribution's Python, or an environment of it, and a PYTHONPATH for the tests.

    The libraries of this process are for that Python only if it is of the same version.
    """
    own = os.pathsep.join([str(PROJECT), *(p for p in sys.path if p.endswith("-packages"))])
    environments = run_as_user.CACHE.glob("*/bin/python")
    tried = [(Path("/usr/bin/python3"), own), *((path, str(PROJECT)) for path in environments)]
    for python, paths in tried:
        argv = [str(python), "-B", "-c", "import tests.runtimes.owner"]
        environment = {"PATH": os.defpath, "PYTHONPATH": paths}
        with contextlib.suppress(OSError):
            if not subprocess.run(
                argv, env=environment, capture_output=True, check=False
            ).returncode:
                return python, paths
    pytest.skip("no Python that other users can run has the libraries: tests/run_as_user.py")


class Owner:
    """A process that owns a sandbox. What has to end with it is held by pidfds."""

    def __init__(self, folder: Path, argv: list[str], **options: Any) -> None:
        self.process = subprocess.Popen(
            [*argv, "-m", "tests.runtimes.owner", str(folder)],
            stdout=subprocess.PIPE,
            cwd=PROJECT,
            **options,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.communicate()
            pytest.fail("the owner could not start a sandbox; its stderr is above")
        self.report: dict[str, Any] = json.loads(line)
        self.directory = Path(self.report["directory"])
        self.groups = [Path(group) for group in self.report["record"]["cgroups"]]
        self.processes = {
            name: ProcessId(**process)
            for name, process in self.report["record"]["processes"].items()
        }
        pids = [process.pid for process in self.processes.values()]
        self.fds = [os.pidfd_open(pid) for pid in (*pids, self.report["lifeline"])]

    def wait_until_removed(self) -> None:
        """Wait for the processes, then for the lifeline, which ends once everything is removed."""
        deadline = time.monotonic() + GONE_SECONDS
        for fd in self.fds:
            left = max(deadline - time.monotonic(), 0)
            assert select.select([fd], [], [], left)[0], "a process is left"
        assert not self.directory.exists()
        assert not [group for group in self.groups if group.exists()]

    def close(self) -> None:
        self.process.kill()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process.wait()
        for fd in self.fds:
            os.close(fd)


@contextlib.contextmanager
def running_owner(folder: Path, argv: list[str] | None = None, **options: Any) -> Iterator[Owner]:
    owner = Owner(folder, argv or [sys.executable], **options)
    try:
        yield owner
    finally:
        owner.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_killed_owner_leaves_nothing(number: int, folder: Path, shared: Conversation) -> None:
    with running_owner(folder) as owner:
        owner.process.send_signal(number)
        owner.process.wait()
        owner.wait_until_removed()
    assert (folder / "outputs" / "kept").read_text() == "x"
    assert shared.ask("1") == 1
    assert shared.sandbox.poll() is None


@root_only
def test_killed_owner_gives_lent_outputs_back(tmp_path: Path) -> None:
    """Whichever process removes the sandbox gives them back."""
    with overlay(tmp_path) as mounted:
        folder = mounted / "notebook"
        folder.mkdir()
        os.chown(folder, STRANGER, STRANGER)
        with running_owner(folder) as owner:
            assert (folder / "outputs").stat().st_uid == SUBUID_BASE
            owner.process.kill()
            owner.process.wait()
            owner.wait_until_removed()
        found = [folder / "outputs", folder / "outputs" / "kept"]
        assert [path.stat().st_uid for path in found] == [STRANGER, STRANGER]


@pytest.mark.parametrize("name", ["sentry", "gofer"])
def test_killed_process_and_killed_owner_leave_nothing(name: str, folder: Path) -> None:
    with running_owner(folder) as owner:
        os.kill(owner.processes[name].pid, signal.SIGKILL)
        owner.process.kill()
        owner.process.wait()
        owner.wait_until_removed()


def test_sweep_removes_what_killed_owner_and_lifeline_left(
    folder: Path, runtime: RunscRuntime
) -> None:
    """The next start of any process does the same."""
    with running_owner(folder) as owner:
        os.kill(owner.report["lifeline"], signal.SIGKILL)
        owner.process.kill()
        owner.process.wait()
        assert owner.directory.exists()
        assert owner.report["record"]["identity"] in runtime.sweep()
        owner.wait_until_removed()


def test_sweep_leaves_sandboxes_of_living_owners(folder: Path, runtime: RunscRuntime) -> None:
    with running_owner(folder) as owner:
        assert owner.report["record"]["identity"] not in runtime.sweep()
        assert all(is_alive(process) for process in owner.processes.values())
        owner.process.kill()
        owner.process.wait()
        owner.wait_until_removed()


def test_sweep_removes_half_made_directory(runtime: RunscRuntime) -> None:
    directory = records.make_directory("0half0made0")
    (directory / "rootfs").mkdir()
    assert runtime.sweep() == ["0half0made0"]
    assert not directory.exists()


def test_owner_is_known_by_start_time_and_machine(shared: Conversation) -> None:
    record = records.read_record(shared.sandbox.directory)
    assert record is not None
    assert not records.is_orphan(record)
    later = replace(record, owner=replace(record.owner, started=record.owner.started + 1))
    assert records.is_orphan(later)
    here = record.machine
    assert records.is_orphan(replace(record, machine=replace(here, boot="an earlier one")))
    for other in (
        replace(here, boot="another", host="elsewhere"),
        replace(here, pid_namespace="pid:[1]"),
    ):
        # Whether that owner lives cannot be seen from here.
        assert not records.is_orphan(replace(later, machine=other))


def test_forked_child_does_not_hold_the_lifeline(start: Start) -> None:
    start().ask("1")
    assert lifeline._process is not None
    assert lifeline._process.stdin is not None
    number = lifeline._process.stdin.fileno()
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Python warns of a fork while threads run; users do it all the same.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
        if child == 0:
            try:
                os.fstat(number)
                os.write(writer, b"open")
            except OSError:
                os.write(writer, b"closed")
            finally:
                os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 100) == b"closed"
    os.close(reader)
    os.close(writer)


def test_give_back_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/hostname")
    (tmp_path / "loop").symlink_to(tmp_path)
    before = Path("/etc/hostname").stat().st_uid
    with open_path(str(tmp_path)) as folder:
        sweep.give_back(folder, (os.getuid(), os.getgid()))
    assert Path("/etc/hostname").stat().st_uid == before


@root_only
def test_killed_owner_of_an_ordinary_user_leaves_nothing(shared: Conversation) -> None:
    """With the distribution's Python, and a uid without a name in /etc/passwd."""
    if not can_read(STRANGER, PROJECT):
        pytest.skip("other users cannot enter this checkout's folder")
    python, paths = find_strangers_python()
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="gk-user-") as home:
        os.chown(home, STRANGER, STRANGER)
        folder = Path(home, "notebook")
        folder.mkdir()
        os.chown(folder, STRANGER, STRANGER)
        programs = f"{Path(find_runsc().path).parent}{os.pathsep}{os.defpath}"
        environment = {"HOME": home, "PATH": programs, "PYTHONPATH": paths}
        argv = [str(python), "-B"]
        options = {"user": STRANGER, "group": STRANGER, "extra_groups": [], "env": environment}
        with running_owner(folder, argv, **options) as owner:
            assert owner.report["uid"] == STRANGER
            assert owner.report["uid_inside"] == 0
            assert owner.report["owner_of_outputs"] == STRANGER
            assert owner.directory.is_relative_to(home)
            owner.process.kill()
            owner.process.wait()
            owner.wait_until_removed()
        assert (folder / "outputs" / "kept").exists()
