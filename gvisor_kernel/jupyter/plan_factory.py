"""The plan of a kernel that no manager of Jupyter's starts: for the launcher and the commands."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from jupyter_core.application import JupyterApp

from gvisor_kernel.bridge import KernelIdentity
from gvisor_kernel.errors import KernelspecError
from gvisor_kernel.jupyter.provisioner import GVisorProvisioner
from gvisor_kernel.kernel.command import choose_program
from gvisor_kernel.kernel.connection_info import read_address
from gvisor_kernel.kernel.plan import KernelPlan
from gvisor_kernel.runtimes.base import LaunchRequest


class _Configuration(JupyterApp):
    """Jupyter's configuration files, as a server reads them: the same limits hold here."""

    name = "jupyter-server"
    config_file_name = "jupyter_server_config"


def find_plan(kernel_name: str, info: dict[str, Any], kernel_id: str) -> KernelPlan:
    """A kernelspec's settings, as Jupyter's configuration has them, and the address in ``info``.

    Raises GvisorKernelError.
    """
    application = _Configuration()
    application.load_config_file()
    try:
        kernel_spec = KernelSpecManager(parent=application).get_kernel_spec(kernel_name)
    except NoSuchKernel as error:
        raise KernelspecError(
            f"There is no kernelspec named {kernel_name!r}.",
            "see which there are: jupyter kernelspec list",
        ) from error
    stanza = kernel_spec.metadata.get("kernel_provisioner", {}).get("config", {})
    settings = GVisorProvisioner(
        kernel_id="", kernel_spec=kernel_spec, parent=None, config=application.config, **stanza
    )
    spec = settings.sandbox_spec()
    python, argv = choose_program(spec, list(kernel_spec.argv), [])
    return KernelPlan(
        spec=spec,
        request=LaunchRequest(
            kernel_name=kernel_name,
            kernel_id=kernel_id,
            folder=Path.cwd(),
            python=python,
            environment={k: os.environ[k] for k in spec.environment if k in os.environ},
        ),
        identity=KernelIdentity(
            name=kernel_name,
            key=info["key"].encode(),
            signature_scheme=info.get("signature_scheme", "hmac-sha256"),
            memory_limit=spec.memory_limit,
            idle_stop=spec.idle_stop,
        ),
        address=read_address(info),
        argv=argv,
        environment=dict(kernel_spec.env),
    )
