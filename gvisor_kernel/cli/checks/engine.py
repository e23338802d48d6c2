"""The check of the Docker engine, if a gvisor-kernel kernelspec uses one."""

from __future__ import annotations

import os

from gvisor_kernel.cli.checks.base import Check, State
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.jupyter.kernelspecs import find_kernelspecs
from gvisor_kernel.jupyter.plan_factory import make_provisioner, read_configuration
from gvisor_kernel.runtimes.docker.engine import check_engine, connect, find_image


def find_images() -> list[str]:
    """Return the images that kernelspecs with ``runtime = "docker"`` name."""
    images: list[str] = []
    config = read_configuration()
    for kernelspec in find_kernelspecs():
        try:
            spec = make_provisioner(kernelspec.settings, config).sandbox_spec()
        except GvisorKernelError:
            continue  # check_kernelspecs reports it
        if spec.runtime == "docker":
            images.append(spec.image)
    return list(dict.fromkeys(images))


def check_engines() -> list[Check]:
    """Check that the engine answers, has the runtime runsc, and has the images of all kernelspecs.

    Returns no results if no kernelspec uses an engine and DOCKER_HOST is not set.
    """
    images = find_images()
    if not images and not os.environ.get("DOCKER_HOST"):
        return []
    wanted: State = "failed" if images else "warning"
    try:
        engine = connect()
    except GvisorKernelError as error:
        return [Check("docker", wanted, error.fact.rstrip("."), error.hint)]
    try:
        check_engine(engine)
        checks = [Check("docker", "ok", f"{engine.address} has the runtime runsc")]
    except GvisorKernelError as error:
        return [Check("docker", wanted, error.fact.rstrip("."), error.hint)]
    else:
        for image in images:
            try:
                find_image(engine, image)
                checks.append(Check(f"image {image}", "ok", "the engine has it"))
            except GvisorKernelError as error:
                checks.append(Check(f"image {image}", "failed", error.fact.rstrip("."), error.hint))
        return checks
    finally:
        engine.close()
