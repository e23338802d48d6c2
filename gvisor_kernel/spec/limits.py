"""What a sandbox may use, in the units of those who enforce it."""

from __future__ import annotations

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.config.validators import GIB, MIB
from gvisor_kernel.host.cgroups import HostLimits

MEMORY_BACKSTOP = 192 * MIB
"""The kernel's hard limit lies this far above the one that the memory watch holds: room for the
runtime's own memory, and for what a fast program takes between two looks."""

PIDS_RUNTIME = 256
"""Host tasks beside the sandbox's own: the runtime's threads."""

TASKS_OF_PROCESS = 5
"""Host tasks that a process inside may cost: its stub, threads of that, and one of the runtime
that waits for it. Where the host refuses one, the runtime panics, and the sandbox is gone."""

FILE_CHUNK = GIB
"""The runtime grows its memory file by this much, so a bound on it is a multiple of this."""

CONTEXTS_OF_PROCESS = 18 * MIB
"""Address range that the runtime takes from its memory file for the threads of each process
inside: 4,096 contexts of 4 KiB, mapped on a boundary of 2 MiB. Nearly all of it stays a hole in the
file. Where the range cannot be had the runtime panics, and the sandbox is gone. Source: gVisor,
pkg/sentry/platform/systrap/subprocess.go, ``mapSharedRegions``."""

MAX_PIDS = 4194304
"""More than this the kernel of a 64-bit host does not take, nor has."""

OPEN_FILES = 65536


def host_limits(spec: SandboxSpec) -> HostLimits:
    """The cgroup of a sandbox."""
    return HostLimits(
        memory=spec.memory_limit + MEMORY_BACKSTOP,
        cpu_shares=spec.cpu_shares,
        pids=min(TASKS_OF_PROCESS * spec.pids_limit + PIDS_RUNTIME, MAX_PIDS),
    )


def file_size_limit(spec: SandboxSpec) -> int:
    """The largest file in bytes that a kernel can write where there is no cgroup.

    One chunk more than the memory needs: the runtime leaves holes in its memory file, and a program
    that meets the end of it dies by SIGBUS, long before its memory is used up.
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
    """The ``rlimits`` of PID 1, which its children inherit.

    ``file_size`` is the runtime's own bound, if it has one: a program that meets it inside gets
    an error, where the runtime itself would die.
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
    """What the runtime reads as the machine's memory, and shows inside as MemTotal."""
    return f"MemTotal: {spec.memory_limit // 1024} kB\n"
