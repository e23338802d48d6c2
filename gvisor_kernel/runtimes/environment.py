"""The environments of a kernel and of PID 1, from what a sandbox is shown. Looks, makes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.runtimes.base import LaunchRequest
from gvisor_kernel.runtimes.mounts.host_python import World
from gvisor_kernel.spec.environment import image_paths, kernel_environment
from gvisor_kernel.spec.layout import Bind, Mount, is_within


def find_environment(
    spec: SandboxSpec, request: LaunchRequest, world: World, mounts: Sequence[Mount]
) -> dict[str, str]:
    """The whole environment of a kernel."""
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
    """PID 1's, where it is to become kernels itself; None where it needs none of theirs.

    The kernel can read it, and an image holds it: so nothing of the server's is in it.
    """
    if not request.ahead:
        return None
    return find_environment(spec, replace(request, environment={}), world, mounts)
