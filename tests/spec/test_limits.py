"""Limits in the units of cgroups, rlimits and gVisor."""

from __future__ import annotations

import pytest

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.config.validators import GIB, MIB
from gvisor_kernel.spec.limits import (
    HostLimits,
    file_size_limit,
    guest_rlimits,
    host_limits,
    meminfo,
    memory_file_limit,
)


@pytest.mark.parametrize(
    ("shares", "weight"), [(2, 1), (1024, 39), (262144, 10000), (0, 1), (10**9, 10000)]
)
def test_shares_are_converted_to_cgroup_v2_weight(shares: int, weight: int) -> None:
    assert HostLimits(memory=0, cpu_shares=shares, pids=0).cpu_weight == weight


def test_host_limits_leave_room_for_the_runtime() -> None:
    limits = host_limits(SandboxSpec(memory_limit=GIB, pids_limit=100, cpu_shares=7))
    assert limits.memory == GIB + 192 * MIB
    assert limits.cpu_shares == 7
    assert limits.pids > 3 * 100  # measured: 1404 tasks of 512 processes


@pytest.mark.parametrize(
    ("memory", "size"),
    [(128 * MIB, 2 * GIB), (GIB, 3 * GIB), (4 * GIB, 6 * GIB), (900 * MIB, 3 * GIB)],
)
def test_memory_file_limit_is_in_whole_chunks(memory: int, size: int) -> None:
    assert file_size_limit(SandboxSpec(memory_limit=memory)) == size


def test_memory_file_has_room_for_each_process() -> None:
    few = SandboxSpec(memory_limit=4 * GIB, pids_limit=1)
    many = SandboxSpec(memory_limit=4 * GIB, pids_limit=512)
    assert memory_file_limit(few) == file_size_limit(few) + GIB
    assert memory_file_limit(many) == file_size_limit(many) + 512 * 18 * MIB


def test_guest_rlimits_set_the_file_size_that_is_passed() -> None:
    by_type = {r["type"]: r for r in guest_rlimits(SandboxSpec(pids_limit=99), GIB)}
    assert by_type["RLIMIT_FSIZE"]["hard"] == GIB
    assert by_type["RLIMIT_NPROC"]["hard"] == 99
    assert "RLIMIT_FSIZE" not in {r["type"] for r in guest_rlimits(SandboxSpec(), None)}


def test_meminfo_shows_the_memory_limit() -> None:
    assert meminfo(SandboxSpec(memory_limit=4 * GIB)) == "MemTotal: 4194304 kB\n"
