"""What the host sees of a sandbox: its isolation, its limits, and what it leaves."""

from __future__ import annotations

import os
import select
import stat
from pathlib import Path

import pytest

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.config.validators import MIB
from gvisor_kernel.errors import IsolationError, LaunchError, RuntimeMissing
from gvisor_kernel.host import processes
from gvisor_kernel.host.log_files import STDERR
from gvisor_kernel.host.private_directories import state_root
from gvisor_kernel.host.processes import GOFER_NAME, SANDBOX_NAME, Posture
from gvisor_kernel.runtimes import get_runtime
from gvisor_kernel.runtimes.runsc import runsc_sandbox
from gvisor_kernel.runtimes.runsc.runsc_sandbox import RunscSandbox
from gvisor_kernel.runtimes.runsc.runtime import RunscRuntime
from gvisor_kernel.runtimes.state import lifeline, records
from gvisor_kernel.spec.limits import memory_file_limit

from .. import leaks
from ..world import World
from .conftest import AS_ROOT, STARTED, Start, make_request
from .standin import Conversation


def wait_for_end(sandbox: RunscSandbox, seconds: float = 10) -> None:
    assert select.select([sandbox.exit_fd], [], [], seconds)[0], "the sandbox does not end"


def find_process(sandbox: object, name: str) -> int:
    assert isinstance(sandbox, RunscSandbox)
    pid = sandbox.find_process(name)
    assert pid is not None
    return pid


def find_traces() -> set[Path]:
    """Return directories and cgroups of the sandboxes of this test run only."""
    found = set(records.sandbox_directories())
    for folder, _, _ in os.walk("/sys/fs/cgroup", onerror=lambda _: None):
        if Path(folder).name in STARTED:
            found.add(Path(folder))
    return found


def descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a Path would add its own


def test_sandbox_processes_are_isolated(runtime: RunscRuntime, start: Start) -> None:
    inside = start()
    inside.ask("1")
    inside.sandbox.verify()
    for name in (SANDBOX_NAME, GOFER_NAME):
        seen = processes.read_posture(find_process(inside.sandbox, name))
        assert seen is not None
        assert 0 not in seen.uids
        assert seen.seccomp == 2
    record = records.read_record(inside.sandbox.directory)
    assert record is not None
    assert set(record.processes) == {"sentry", "gofer"}
    assert all(processes.is_alive(process) for process in record.processes.values())


def test_find_faults_names_every_fault() -> None:
    own = Posture(1, "x", frozenset({0}), 0, dict.fromkeys(runsc_sandbox.NAMESPACES, "host"))
    assert runsc_sandbox.find_faults(own, own) == [
        "it is root on the host",
        "it has no seccomp filter",
        *(f"it shares the host's {name} namespace" for name in runsc_sandbox.NAMESPACES),
    ]


def test_sandbox_that_is_not_isolated_is_killed(
    runtime: RunscRuntime, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runsc_sandbox, "SECCOMP_FILTER", 3)
    inside = start()
    inside.ask("1")
    with pytest.raises(IsolationError, match="no seccomp filter"):
        inside.sandbox.verify()
    assert select.select([inside.sandbox.exit_fd], [], [], 10)[0], "it was not ended"
    inside.sandbox.close()
    assert inside.sandbox.poll() is not None
    assert not inside.sandbox.directory.exists()


def test_state_directory_is_private(shared: Conversation) -> None:
    for path in (shared.sandbox.directory, state_root()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert path.stat().st_uid == os.geteuid()


def test_host_mount_table_does_not_change(start: Start, world: World) -> None:
    before = leaks.mounts(world)
    start().ask("1")
    assert leaks.mounts(world) == before


def test_memory_used_follows_allocations(start: Start) -> None:
    inside = start()
    inside.ask("1")
    before = inside.sandbox.memory_used()
    assert before is not None
    assert 0 < before < 100 * MIB
    inside.ask("run('block = bytes(1) * (64 << 20); block = bytearray(b\"x\" * (64 << 20))')")
    full = inside.sandbox.memory_used()
    assert full is not None
    assert full > before + 60 * MIB
    inside.sandbox.close()
    assert inside.sandbox.memory_used() is None


def test_limits_are_set(start: Start) -> None:
    inside = start(memory_limit=512 * MIB, pids_limit=100, cpu_shares=300)
    inside.ask("1")
    assert isinstance(inside.sandbox, RunscSandbox)
    sentry = find_process(inside.sandbox, SANDBOX_NAME)
    limits = Path(f"/proc/{sentry}/limits").read_text()
    record = records.read_record(inside.sandbox.directory)
    assert record is not None
    groups = {Path(group).parts[4]: Path(group) for group in record.cgroups}
    if not groups:
        assert f"Max file size             {4 << 30}" in limits
        assert inside.ask("__import__('resource').getrlimit(1)") == [2 << 30, 2 << 30]
    elif "memory" in groups:  # version 1
        assert AS_ROOT
        assert (groups["memory"] / "memory.limit_in_bytes").read_text() == f"{704 * MIB}\n"
        assert (groups["cpu"] / "cpu.shares").read_text() == "300\n"
        assert int((groups["pids"] / "pids.max").read_text()) > 200
        assert str(sentry) in (groups["memory"] / "cgroup.procs").read_text().split()
    else:
        group = Path(record.cgroups[0])
        assert (group / "memory.max").read_text() == f"{704 * MIB}\n"
        assert str(sentry) in (group / "cgroup.procs").read_text().split()
    assert inside.ask("__import__('resource').getrlimit(6)") == [100, 100]


def test_link_has_large_nonblocking_pipes(shared: Conversation) -> None:
    import fcntl

    for fd in (shared.sandbox.link_in, shared.sandbox.link_out):
        assert not os.get_blocking(fd)
        assert fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) == 1024 * 1024


def test_closing_the_link_ends_the_sandbox(start: Start) -> None:
    inside = start()
    inside.ask("1")
    with open("/dev/null") as null:  # keep the number in use: Sandbox.close() closes it
        os.dup2(null.fileno(), inside.sandbox.link_in)
    assert isinstance(inside.sandbox, RunscSandbox)
    wait_for_end(inside.sandbox)
    assert inside.sandbox.poll() is not None
    assert inside.sandbox.memory_used() is None
    inside.sandbox.kill()


def test_end_and_stderr_tail_are_reported(start: Start) -> None:
    inside = start()
    inside.tell("os.write(2, b'\\x1b[31mlast\\0 words\\n' * 1000) and os._exit(7)")
    assert isinstance(inside.sandbox, RunscSandbox)
    wait_for_end(inside.sandbox)
    assert inside.sandbox.poll() is not None
    tail = inside.sandbox.stderr_tail()
    assert tail.endswith("[31mlast words\n")
    assert len(tail) <= 4096
    assert "\x1b" not in tail
    assert b"last" in inside.sandbox.log_path.with_name(STDERR).read_bytes()


def test_close_leaves_nothing(start: Start) -> None:
    before, held = find_traces(), lifeline._held
    inside = start()
    inside.ask("1")
    pids = [find_process(inside.sandbox, name) for name in (SANDBOX_NAME, GOFER_NAME)]
    groups = find_traces() - before
    assert groups
    inside.sandbox.close()
    assert find_traces() == before
    assert not any(processes.read_start_time(pid) for pid in pids)
    assert lifeline._held == held
    inside.sandbox.close()
    inside.sandbox.kill()
    assert inside.sandbox.memory_used() is None


def test_close_during_start_leaves_nothing(start: Start) -> None:
    before = find_traces()
    start().sandbox.close()
    assert find_traces() == before


def test_close_leaves_no_descriptor_open(start: Start) -> None:
    start().sandbox.close()  # the first start opens descriptors that the process keeps
    before = descriptors()
    start().sandbox.close()
    assert descriptors() == before


def test_kill_ends_the_sandbox_without_waiting(start: Start) -> None:
    inside = start()
    inside.ask("1")
    inside.sandbox.kill()
    assert isinstance(inside.sandbox, RunscSandbox)
    wait_for_end(inside.sandbox, 5)


@pytest.mark.parametrize("name", [SANDBOX_NAME, GOFER_NAME])
def test_killed_sandbox_process_leaves_nothing(name: str, start: Start) -> None:
    """Whichever process it is: the end is noticed, and other sandboxes continue."""
    before = find_traces()
    other, inside = start(), start()
    inside.ask("1")
    other.ask("1")
    assert isinstance(inside.sandbox, RunscSandbox)
    pids = {n: find_process(inside.sandbox, n) for n in (SANDBOX_NAME, GOFER_NAME)}
    os.kill(pids[name], 9)
    wait_for_end(inside.sandbox)
    inside.sandbox.close()
    assert not any(processes.read_start_time(pid) for pid in pids.values())
    assert other.ask("1") == 1
    other.sandbox.close()
    assert find_traces() == before


def test_missing_program_is_an_error_that_names_it(folder: Path) -> None:
    before = find_traces()
    runtime = RunscRuntime(init_argv=["/no/such/program"])
    with pytest.raises(LaunchError, match="could not be started") as caught:
        runtime.start(SandboxSpec(), make_request(folder))
    assert "/no/such/program" in caught.value.detail
    assert "interpreter" in caught.value.hint
    assert find_traces() == before
    assert list(folder.iterdir()) == []


def test_missing_interpreter_is_an_error_that_names_it(runtime: RunscRuntime, folder: Path) -> None:
    before = find_traces()
    with pytest.raises(LaunchError, match="/no/such/python"):
        runtime.start(SandboxSpec(), make_request(folder, python="/no/such/python"))
    assert find_traces() == before


def test_start_that_takes_too_long_leaves_nothing(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = find_traces()
    start().sandbox.close()
    opened = descriptors()
    monkeypatch.setattr(
        "gvisor_kernel.runtimes.runsc.starting._wait", lambda process, seconds: False
    )
    with pytest.raises(LaunchError, match=r"(?s)within 60 s.*start_timeout"):
        start()
    assert find_traces() == before
    assert descriptors() == opened


@pytest.mark.parametrize(
    "step",
    ["launch_plan.write_rootfs", "runtime.make_cgroup", "runtime.spawn", "launch_plan.plan_mounts"],
)
def test_start_that_fails_half_way_leaves_nothing(
    step: str, runtime: RunscRuntime, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = find_traces()

    def fail(*arguments: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    runtime.start(SandboxSpec(), make_request(folder)).close()
    opened, held = descriptors(), lifeline._held
    monkeypatch.setattr(f"gvisor_kernel.runtimes.runsc.{step}", fail)
    with pytest.raises(LaunchError, match="No space left"):
        runtime.start(SandboxSpec(), make_request(folder))
    assert find_traces() == before
    assert list(folder.iterdir()) == []
    assert descriptors() == opened
    assert lifeline._held == held


def test_registry_has_no_unsandboxed_runtime() -> None:
    assert get_runtime("runsc") is get_runtime("runsc")
    for name in ("", "fake", "local"):
        with pytest.raises(RuntimeMissing, match="is not installed"):
            get_runtime(name)


def test_host_limits_hold_without_the_bridge(start: Start) -> None:
    """A sandbox that takes all memory it can stays near its limit even if no bridge watches it."""
    spec = SandboxSpec(memory_limit=128 * MIB, pids_limit=16)
    inside = start(memory_limit=spec.memory_limit, pids_limit=spec.pids_limit)
    inside.ask("1")
    used: list[int | None] = [0]
    inside.tell("[bytearray(b'x' * (16 << 20)) for _ in range(300)] and 1")
    assert isinstance(inside.sandbox, RunscSandbox)
    while not select.select([inside.sandbox.exit_fd, inside.sandbox.link_out], [], [], 0.01)[0]:
        used.append(inside.sandbox.memory_used())
    bound = memory_file_limit(spec) + 64 * MIB  # the memory file, and the sentry's memory
    assert max(filter(None, used)) <= bound
    wait_for_end(inside.sandbox)
    record = records.read_record(inside.sandbox.directory)
    assert record is not None
    if record.cgroups:
        assert max(filter(None, used)) <= 320 * MIB
        assert inside.sandbox.memory_kills() > 0
