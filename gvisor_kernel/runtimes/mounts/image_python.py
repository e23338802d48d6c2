"""Finds what a sandbox of a root image consists of. Reads the image's files, runs none of them."""

from __future__ import annotations

from pathlib import Path

from gvisor_kernel.config.spec import HOST_IMAGE, SandboxSpec
from gvisor_kernel.errors import LaunchError, RootImageError
from gvisor_kernel.host.folders import Writable
from gvisor_kernel.images import RootImage, Store
from gvisor_kernel.runtimes.base import LaunchRequest
from gvisor_kernel.runtimes.mounts.host_python import World, find_host_python
from gvisor_kernel.spec.environment import image_paths


def find_python_tree(spec: SandboxSpec, request: LaunchRequest, writable: Writable) -> World:
    """Return the world of ``spec``'s image. ``writable``: see ``find_host_python``.

    :raises LaunchError: when the image or its Python cannot be used
    """
    if spec.image == HOST_IMAGE:
        return find_host_python(request.python, writable)
    try:
        return _make_world(Store.open().find(spec.image))
    except RootImageError as error:
        raise LaunchError(error.fact, error.hint) from error


def _make_world(image: RootImage) -> World:
    """Return the world of a root image.

    :raises LaunchError: when the image has no Python that can run a sandbox
    """
    python = image.require_python()
    return World(
        python=python,
        version=image.inside.version if image.inside is not None else "",
        bin_directory=str(Path(python).parent),
        roots=(),
        links=(),
        aliases=(),
        user_base=None,
        image=image.digest,
        tree=str(image.tree),
        path=image.path,
        environment=tuple(sorted(image.environment.items())),
        present=tuple(sorted(image.find_existing(image_paths()))),
    )


def check_image_exists(world: World) -> None:
    """Check that the root image was not removed since it was looked at.

    :raises LaunchError: when it was
    """
    if world.tree is not None and not Path(world.tree).is_dir():
        raise LaunchError(
            "The image was removed while a kernel was being started in it.",
            "import it again, or choose another one: gvisor-kernel image list",
        )
