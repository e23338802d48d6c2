"""The facts of this host that decide whether a snapshot fits a sandbox. Makes no sandbox."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gvisor_kernel.config.spec import SandboxSpec
from gvisor_kernel.host.cgroups import can_bound_memory
from gvisor_kernel.runtimes.base import LaunchRequest
from gvisor_kernel.runtimes.environment import find_init_environment
from gvisor_kernel.runtimes.mounts.image_python import find_python_tree
from gvisor_kernel.runtimes.mounts.outputs import keeps_outputs
from gvisor_kernel.runtimes.mounts.plan import Places, plan_mounts
from gvisor_kernel.runtimes.mounts.written_folders import read_written
from gvisor_kernel.runtimes.runsc.command_line import find_runsc, sandbox_flags
from gvisor_kernel.runtimes.runsc.features import init_capabilities
from gvisor_kernel.runtimes.runsc.kernel_id import choose_kernel_id
from gvisor_kernel.spec import etc
from gvisor_kernel.spec.limits import file_size_limit
from gvisor_kernel.spec.oci import guest_argv, make_config

NOWHERE = Places(Path("/nonexistent"))
"""Stands for the state directory, which differs for each sandbox and decides nothing."""


def describe_sandbox(
    spec: SandboxSpec, request: LaunchRequest, init_argv: Sequence[str] | None
) -> dict[str, Any]:
    """Implement ``Runtime.describe``."""
    runsc = find_runsc()
    world = find_python_tree(spec, request, read_written(spec).has)
    kernel_id = choose_kernel_id(world) if init_argv is None else 0
    outputs = str(NOWHERE.directory) if keeps_outputs(spec, request) else None
    mounts = plan_mounts(spec, world, NOWHERE, {}, outputs)
    config = make_config(
        spec,
        args=init_argv or guest_argv(world.python, request.ahead, kernel_id),
        environment=find_init_environment(spec, request, world, mounts),
        rootfs=str(NOWHERE.rootfs),
        mounts=mounts,
        map_users=os.geteuid() == 0,
        file_size=None if can_bound_memory() else file_size_limit(spec),
        capabilities=init_capabilities(runsc, kernel_id),
    )
    return {
        **describe_host(),
        "config": config,
        "flags": list(sandbox_flags()),
        "world": [
            dataclasses.asdict(world),
            *stat_files([world.tree or os.path.realpath(world.python)]),
        ],
    }


def describe_host() -> dict[str, Any]:
    """Return the facts that are the same for all sandboxes of this user.

    :raises RuntimeMissing: when runsc is absent or does not answer
    """
    runsc = find_runsc()
    return {
        "runtime": [runsc.path, runsc.version, runsc.fingerprint],
        "etc": stat_files(f"/etc/{name}" for name in (*etc.COPIED, *etc.SINGLE_FILES)),
        "user": [os.geteuid(), os.getegid()],
    }


def stat_files(paths: Iterable[str]) -> list[tuple[str, int, int, int]]:
    """Return path, size, modification time (ns) and inode of each of ``paths`` that exists."""
    found = []
    for path in paths:
        try:
            status = os.stat(path)  # noqa: PTH116 - text in, text out
        except OSError:
            continue
        found.append((path, status.st_size, status.st_mtime_ns, status.st_ino))
    return found
