"""Finds the packages of the setting ``packages`` in the store, and checks that they fit."""

from __future__ import annotations

import os

from gvisor_kernel.config.spec import SandboxSpec
from gvisor_kernel.environments.environment import Base, Environment
from gvisor_kernel.environments.store import Store
from gvisor_kernel.errors import LaunchError, PackagesError
from gvisor_kernel.runtimes.mounts.host_python import World


def find_base(world: World) -> Base:
    """Return what packages for a sandbox of ``world`` lie on.

    A Python of the host is told by its ``sys.prefix``, which has its packages, not by its name:
    ``bin/python`` and ``bin/python3`` are one. The programs of all virtual environments, without
    their links, may be one, too.
    """
    image = world.image
    if image is None:
        image = f"host:{os.path.realpath(world.prefixes[0])}"
    return Base(image, ".".join(world.version.split(".")[:2]))


def open_packages(spec: SandboxSpec, base: Base) -> Environment | None:
    """Return the environment of the setting ``packages``; None without that setting.

    :raises LaunchError: when it is not in the store, or was made for another Python or image
    """
    if spec.packages is None:
        return None
    try:
        store = Store.open()
    except PackagesError as error:
        raise LaunchError(error.fact, error.hint) from error
    found = store.find(spec.packages.environment, spec.packages.requirements)
    found.check(base)
    return found
