"""The check of ``doctor``: a Docker engine, if a kernelspec uses one or DOCKER_HOST names one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.config.validators import HOST_IMAGE
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.runtimes.checks import Check, State, failed, ok
from gvisor_kernel.runtimes.docker.engine import check_engine, connect, find_image


def check_engines(specs: Sequence[SandboxSpec]) -> list[Check]:
    """Check that the engine answers, has the runtime runsc, and has the images of ``specs``.

    Returns no results without any, if DOCKER_HOST is not set.
    """
    if not specs and not os.environ.get("DOCKER_HOST"):
        return []
    wanted: State = "failed" if specs else "warning"
    images = dict.fromkeys(spec.image for spec in specs if spec.image != HOST_IMAGE)
    try:
        with closing(connect()) as engine:
            check_engine(engine)
            checks = [ok(f"{engine.address} has the runtime runsc")]
            for image in images:
                try:
                    find_image(engine, image)
                    checks.append(ok("the engine has it", name=f"image {image}"))
                except GvisorKernelError as error:
                    checks.append(failed(error.fact.rstrip("."), error.hint, name=f"image {image}"))
            return checks
    except GvisorKernelError as error:
        return [Check("", wanted, error.fact.rstrip("."), error.hint)]
