"""The facts of this host that decide whether a snapshot fits a sandbox, and what kernels
have there: their uid and environment. Makes no sandbox."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.config.validators import is_within
from gvisor_kernel.host.cgroups import can_bound_memory
from gvisor_kernel.runtimes.base import LaunchRequest
from gvisor_kernel.runtimes.mounts.host_python import PythonTree, find_python_tree
from gvisor_kernel.runtimes.mounts.outputs import keeps_outputs
from gvisor_kernel.runtimes.mounts.plan import Places, plan_mounts
from gvisor_kernel.runtimes.mounts.written_folders import read_written
from gvisor_kernel.runtimes.runsc.command_line import find_runsc, sandbox_flags
from gvisor_kernel.runtimes.runsc.features import init_capabilities
from gvisor_kernel.spec import etc
from gvisor_kernel.spec.environment import image_paths, kernel_environment
from gvisor_kernel.spec.layout import Bind, Mount
from gvisor_kernel.spec.limits import file_size_limit
from gvisor_kernel.spec.oci import KERNEL_ID, guest_argv, make_config


def find_environment(
    spec: SandboxSpec, request: LaunchRequest, python_tree: PythonTree, mounts: Sequence[Mount]
) -> dict[str, str]:
    """Return the whole environment of a kernel in a sandbox with ``mounts``."""
    if python_tree.tree is not None:
        return kernel_environment(
            bin_directories=[python_tree.bin_directory, *python_tree.path],
            present=python_tree.present,
            user_base=None,
            names=spec.environment,
            server=request.environment,
            image=dict(python_tree.environment),
        )
    shown = [mount.target for mount in mounts if isinstance(mount, Bind)]
    present = {
        path
        for path in image_paths()
        if Path(path).exists() and any(is_within(path, target) for target in shown)
    }
    return kernel_environment(
        bin_directories=[python_tree.bin_directory],
        present=present,
        user_base=python_tree.user_base,
        names=spec.environment,
        server=request.environment,
    )


def find_init_environment(
    spec: SandboxSpec, request: LaunchRequest, python_tree: PythonTree, mounts: Sequence[Mount]
) -> dict[str, str] | None:
    """Return PID 1's environment if PID 1 itself becomes a kernel by a fork, otherwise None.

    The kernel can read PID 1's environment, and a snapshot holds it. So it has no variable of the
    server.
    """
    if not request.ahead:
        return None
    return find_environment(spec, replace(request, environment={}), python_tree, mounts)


def choose_kernel_id(user: int, python_tree: PythonTree) -> int:
    """Return the uid and gid of a kernel inside the sandbox: KERNEL_ID, or 0, which is also PID
    1's.

    0 for an ordinary user, whose sandbox has no other uid. 0 also where only its owner may read the
    interpreter or the files that it reads first: a file has one owner inside, and both PID 1 and
    the kernel must read it. 0 in a root image, whose files belong to PID 1, as a kernel with
    another uid could not read all of them. ``user``: who makes the sandbox.
    """
    if user != 0 or python_tree.tree is not None:
        return 0
    return KERNEL_ID if all(map(_is_public, _find_first_files(python_tree))) else 0


def _find_first_files(python_tree: PythonTree) -> Iterator[str]:
    """Yield what an interpreter reads before it runs code, and the shown folders above it."""
    paths = [python_tree.python, os.path.realpath(python_tree.python), *python_tree.roots]
    for prefix in python_tree.prefixes:
        paths += [f"{prefix}/pyvenv.cfg", f"{prefix}/lib"]
        paths += map(str, Path(prefix).glob("lib/python*/*-packages/*.pth"))
    for path in dict.fromkeys(paths):
        for place in (path, *map(str, Path(path).parents)):
            if any(is_within(place, root) for root in python_tree.roots):
                yield place


def _is_public(path: str) -> bool:
    """Return whether everybody may read ``path`` (and enter or run it), or it does not exist."""
    try:
        status = Path(path).stat()
    except OSError:
        return True
    runs = stat.S_ISDIR(status.st_mode) or status.st_mode & stat.S_IXUSR
    needed = stat.S_IROTH | (stat.S_IXOTH if runs else 0)
    return status.st_mode & needed == needed


NOWHERE = Places(Path("/nonexistent"))
"""Stands for the state directory, which differs for each sandbox and decides nothing."""


def describe_sandbox(
    spec: SandboxSpec, request: LaunchRequest, init_argv: Sequence[str] | None
) -> dict[str, Any]:
    """Implement ``Runtime.describe``."""
    runsc = find_runsc(spec.runsc)
    python_tree = find_python_tree(spec, request, read_written(spec).has)
    kernel_id = choose_kernel_id(os.geteuid(), python_tree) if init_argv is None else 0
    outputs = str(NOWHERE.directory) if keeps_outputs(spec, request) else None
    mounts = plan_mounts(spec, python_tree, NOWHERE, {}, outputs)
    config = make_config(
        spec,
        args=init_argv or guest_argv(python_tree.python, request.ahead, kernel_id),
        environment=find_init_environment(spec, request, python_tree, mounts),
        rootfs=str(NOWHERE.rootfs),
        mounts=mounts,
        map_users=os.geteuid() == 0,
        file_size=None if can_bound_memory() else file_size_limit(spec),
        capabilities=init_capabilities(runsc, kernel_id),
    )
    return {
        **describe_host(spec.runsc),
        "config": config,
        "flags": list(sandbox_flags()),
        "world": [
            dataclasses.asdict(python_tree),
            *stat_files([python_tree.tree or os.path.realpath(python_tree.python)]),
        ],
    }


def describe_host(choice: str) -> dict[str, Any]:
    """Implement ``SnapshotRuntime.describe_host``."""
    runsc = find_runsc(choice)
    return {
        "runtime": [runsc.program, runsc.version],
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
