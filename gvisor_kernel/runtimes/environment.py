"""The environments of a kernel and of PID 1, computed from the mounts. Makes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gvisor_kernel.config.spec import SandboxSpec
from gvisor_kernel.config.validators import is_within
from gvisor_kernel.runtimes.base import LaunchRequest
from gvisor_kernel.runtimes.mounts.host_python import World
from gvisor_kernel.spec.environment import image_paths, kernel_environment
from gvisor_kernel.spec.layout import Bind, Mount


def find_environment(
    spec: SandboxSpec, request: LaunchRequest, world: World, mounts: Sequence[Mount]
) -> dict[str, str]:
    """Return the whole environment of a kernel in a sandbox with ``mounts``."""
    if world.tree is not None:
        return kernel_environment(
            bin_directories=[world.bin_directory, *world.path],
            present=world.present,
            user_base=None,
            names=spec.environment,
            server=request.environment,
            image=dict(world.environment),
        )
    shown = [mount.target for mount in mounts if isinstance(mount, Bind)]
    present = {
        path
        for path in image_paths()
        if Path(path).exists() and any(is_within(path, target) for target in shown)
    }
    return kernel_environment(
        bin_directories=[world.bin_directory],
        present=present,
        user_base=world.user_base,
        names=spec.environment,
        server=request.environment,
    )


def find_init_environment(
    spec: SandboxSpec, request: LaunchRequest, world: World, mounts: Sequence[Mount]
) -> dict[str, str] | None:
    """Return PID 1's environment if PID 1 itself becomes a kernel by a fork, otherwise None.

    The kernel can read PID 1's environment, and a snapshot holds it. So it has no variable of the
    server.
    """
    if not request.ahead:
        return None
    return find_environment(spec, replace(request, environment={}), world, mounts)
