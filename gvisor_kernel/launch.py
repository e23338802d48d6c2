"""A sandboxed kernel behind a plain argv, for front ends that know no provisioners.

Reads the connection file that the front end wrote, serves just those ports, and lives as long as
the kernel: SIGINT interrupts it, SIGTERM ends it, and should this process be killed, the sandbox
ends because its link does.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from jupyter_core.application import JupyterApp

from gvisor_kernel.bridge import Address, KernelIdentity
from gvisor_kernel.errors import KernelspecError, LaunchError
from gvisor_kernel.plans import KernelPlan
from gvisor_kernel.programs import choose_program
from gvisor_kernel.provisioner import CHANNELS, GVisorProvisioner
from gvisor_kernel.runtimes.base import LaunchRequest
from gvisor_kernel.sandboxed import SandboxedKernel

STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class _Configuration(JupyterApp):
    """Jupyter's configuration files, as a server reads them: the same limits hold here."""

    name = "jupyter-server"
    config_file_name = "jupyter_server_config"


def read_connection_file(path: str) -> dict[str, Any]:
    """The connection info of ``path``. Raises LaunchError."""
    try:
        info = json.loads(Path(path).read_text())
        if info["transport"] not in ("tcp", "ipc") or not isinstance(info["key"], str):
            raise ValueError("its transport or its key is not usable")
        for name in CHANNELS:
            info[name] = int(info[name])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LaunchError(
            f"The connection file {path} cannot be used: {error!r}.",
            "give the file that a Jupyter front end wrote (-f).",
        ) from error
    return dict(info)


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
        address=Address(
            info["transport"],
            info.get("ip", "127.0.0.1"),
            {channel: info[name] for name, channel in CHANNELS.items() if name in info},
            *(
                info[name].encode() if info.get(name) else None
                for name in ("curve_publickey", "curve_secretkey")
            ),
        ),
        argv=argv,
        environment=dict(kernel_spec.env),
    )


def run_launcher(connection_file: str, kernel_name: str) -> int:
    """Start a kernel and stay until it ends; its exit status, or 128 plus its signal.

    Called by ``gvisor-kernel launch``. Raises GvisorKernelError when it cannot be started.
    """
    info = read_connection_file(connection_file)
    plan = find_plan(kernel_name, info, Path(connection_file).stem)
    return asyncio.run(_serve(plan))


async def _serve(plan: KernelPlan) -> int:
    loop = asyncio.get_running_loop()
    kernel = SandboxedKernel()
    parent = os.getppid()
    stopping = asyncio.Event()
    interrupts: set[asyncio.Task[None]] = set()

    def interrupt() -> None:
        task = loop.create_task(kernel.signal(signal.SIGINT))
        interrupts.add(task)
        task.add_done_callback(interrupts.discard)

    loop.add_signal_handler(signal.SIGINT, interrupt)
    for signum in STOP_SIGNALS:
        loop.add_signal_handler(signum, stopping.set)
    try:
        launching = asyncio.ensure_future(kernel.launch(plan))
        stopped = asyncio.ensure_future(stopping.wait())
        await asyncio.wait({launching, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not launching.done():
            launching.cancel()
            return 128 + signal.SIGTERM
        launching.result()
        while (status := kernel.exit_status) is None and not stopping.is_set():
            await asyncio.wait({stopped}, timeout=0.1)
            if os.environ.get("JPY_PARENT_PID") and os.getppid() != parent:
                break  # as ipykernel does: a kernel ends with its front end
        if status is None:
            return 128 + signal.SIGTERM
        return status if status >= 0 else 128 - status
    finally:
        stopped.cancel()
        await kernel.close()
