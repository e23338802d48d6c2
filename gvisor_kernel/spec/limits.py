"""The limits of a sandbox, in the units of cgroups, rlimits and gVisor."""

from __future__ import annotations

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.config.validators import GIB, MIB
from gvisor_kernel.host.cgroups import HostLimits

MEMORY_BACKSTOP = 192 * MIB
"""Bytes by which the cgroup's limit is above the limit of the memory watch: for the runtime's own
memory, and for what a fast program allocates between two checks of the watch."""

PIDS_RUNTIME = 256
"""Host tasks for the runtime's own threads."""

TASKS_OF_PROCESS = 5
"""Host tasks that a process inside may need: its stub, threads of that, and a thread of the runtime
that waits for it. If the host refuses a task, the runtime panics and the sandbox ends."""

FILE_CHUNK = GIB
"""The runtime enlarges its memory file by this many bytes, so a limit for it is a multiple."""

CONTEXTS_OF_PROCESS = 18 * MIB
"""Address range that the runtime takes from its memory file for the threads of each process
inside: 4,096 contexts of 4 KiB, mapped on a boundary of 2 MiB. Nearly all of it stays a hole in the
file. Where the range cannot be had the runtime panics, and the sandbox is gone. Source: gVisor,
pkg/sentry/platform/systrap/subprocess.go, ``mapSharedRegions``."""

MAX_PIDS = 4194304
"""The largest number of tasks that a 64-bit Linux accepts as a limit."""

OPEN_FILES = 65536
"""Open files of a process inside (RLIMIT_NOFILE)."""


def host_limits(spec: SandboxSpec) -> HostLimits:
    """Return the limits for the cgroup of a sandbox."""
    return HostLimits(
        memory=spec.memory_limit + MEMORY_BACKSTOP,
        cpu_shares=spec.cpu_shares,
        pids=min(TASKS_OF_PROCESS * spec.pids_limit + PIDS_RUNTIME, MAX_PIDS),
    )


def file_size_limit(spec: SandboxSpec) -> int:
    """Return the largest file in bytes that a kernel without a cgroup can write.

    It is one chunk more than the memory needs: the runtime leaves holes in its memory file, and a
    program that reaches the end of the file gets SIGBUS before its memory is used up.
    """
    chunks = 1 - (-(spec.memory_limit + MEMORY_BACKSTOP) // FILE_CHUNK)
    return chunks * FILE_CHUNK


def memory_file_limit(spec: SandboxSpec) -> int:
    """RLIMIT_FSIZE of the runtime where there is no cgroup: it bounds the memory file, in bytes.

    Above ``file_size_limit``, by the holes that ``pids_limit`` processes make in that file.
    """
    contexts = -(-CONTEXTS_OF_PROCESS * spec.pids_limit // FILE_CHUNK)
    return file_size_limit(spec) + contexts * FILE_CHUNK


def guest_rlimits(spec: SandboxSpec, file_size: int | None) -> list[dict[str, int | str]]:
    """Return the ``rlimits`` of PID 1, which its children inherit.

    ``file_size``: the runtime's own RLIMIT_FSIZE, if it has one. With the same limit inside, a
    program that exceeds it gets an error; without it, the runtime itself would be killed.
    """
    values = {
        "RLIMIT_NPROC": spec.pids_limit,
        "RLIMIT_NOFILE": OPEN_FILES,
        "RLIMIT_CORE": 0,
    }
    if file_size is not None:
        values["RLIMIT_FSIZE"] = file_size
    return [{"type": name, "soft": value, "hard": value} for name, value in values.items()]


def meminfo(spec: SandboxSpec) -> str:
    """Return the /proc/meminfo that the runtime reads; it shows this MemTotal inside."""
    return f"MemTotal: {spec.memory_limit // 1024} kB\n"
