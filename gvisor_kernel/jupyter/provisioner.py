"""Jupyter's provisioner: each hook of KernelProvisionerBase, in terms of a SandboxedKernel.

What Jupyter means by each call, and when it comes, stands at each method. Two rules hold for all:
nothing raises because a kernel is dead already, and ``cleanup`` alone is enough, and may come
twice.
"""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path
from string import Template
from typing import Any

import zmq
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase

from gvisor_kernel.bridge import Address, KernelIdentity
from gvisor_kernel.config.settings import SandboxSettings, SandboxSpec
from gvisor_kernel.errors import GvisorKernelError, LaunchError
from gvisor_kernel.kernel.command import choose_program
from gvisor_kernel.kernel.connection_info import CHANNELS, describe_address, new_key
from gvisor_kernel.kernel.plan import KernelPlan
from gvisor_kernel.kernel.session import SandboxedKernel
from gvisor_kernel.runtimes.base import LaunchRequest

LOCAL_ADDRESSES = ("", "127.0.0.1", "localhost")


class GVisorProvisioner(SandboxSettings, KernelProvisionerBase):  # type: ignore[metaclass]
    """Starts each kernel in a gVisor sandbox. Entry point ``gvisor-provisioner``."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.connection_info: KernelConnectionInfo = {}
        self._kernel: SandboxedKernel | None = None
        self._launched = False
        self._plan: KernelPlan | None = None

    # -- start -----------------------------------------------------------------------------------

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Called first at each start and restart; raises SettingError before anything is made.

        ``kwargs`` has ``env`` (the server's whole environment, or this process's where a manager
        passes none; only what the setting ``environment`` names is used), ``cwd``,
        ``extra_arguments``. The result must have ``cmd``.
        """
        environment = dict(kwargs.pop("env", os.environ))
        extra_arguments = list(kwargs.pop("extra_arguments", []))
        try:
            self._plan = self._make_plan(
                self.sandbox_spec(), environment, kwargs.get("cwd"), extra_arguments
            )
        except GvisorKernelError as error:
            self.log.error("%s", error)
            raise
        argv = list(self._plan.argv) or ["ipykernel", "(of the sandbox)"]
        return {**kwargs, "cmd": argv, "env": {}}

    def _make_plan(
        self, spec: SandboxSpec, environment: dict[str, str], cwd: Any, extra: list[str]
    ) -> KernelPlan:
        manager = self.parent
        python, argv = choose_program(spec, list(self.kernel_spec.argv), extra)
        name = getattr(manager, "kernel_name", "") or self.kernel_spec.display_name
        passed = {key: environment[key] for key in spec.environment if key in environment}
        templates = {key: Template(value) for key, value in self.kernel_spec.env.items()}
        return KernelPlan(
            spec=spec,
            request=LaunchRequest(
                kernel_name=name,
                kernel_id=self.kernel_id or "",
                folder=choose_folder(cwd, manager),
                python=python,
                environment=passed,
            ),
            identity=KernelIdentity(
                name=name,
                key=manager.session.key if manager else self._own_key(),
                signature_scheme=manager.session.signature_scheme if manager else "hmac-sha256",
                memory_limit=spec.memory_limit,
                idle_stop=spec.idle_stop,
            ),
            address=self._choose_address(spec),
            argv=argv,
            environment={key: text.safe_substitute(passed) for key, text in templates.items()},
            substituted=tuple(
                key for key, text in templates.items() if passed.keys() & text.get_identifiers()
            ),
        )

    def _own_key(self) -> bytes:
        """Without a manager nobody has made a key yet; it stays the same across restarts."""
        if self._plan is not None:
            return self._plan.identity.key
        return new_key()

    def _choose_address(self, spec: SandboxSpec) -> Address:
        """ipc in a private directory, unless the setting or the manager demands otherwise.

        A manager's default is tcp, so only what shows that someone chose it counts: its
        configuration, another ip, ports that are set.
        """
        manager = self.parent
        if manager is None:
            return Address("tcp" if spec.transport == "tcp" else "ipc", _default_ip(spec.transport))
        ports = {channel: getattr(manager, name) for name, channel in CHANNELS.items()}
        curve = self._choose_curve(manager)
        transport = spec.transport
        if transport == "auto":
            chosen = (
                _is_configured(manager, "transport")
                or manager.ip not in LOCAL_ADDRESSES
                or any(ports.values())
            )
            transport = manager.transport if chosen else "ipc"
        if transport == "tcp":
            ip = manager.ip if manager.transport == "tcp" and manager.ip else "127.0.0.1"
            return Address("tcp", ip, ports, *curve)
        # An ip of ipc is a path; it is kept where ports say that somebody has chosen it.
        own = manager.transport == "ipc" and all(ports.values())
        return Address("ipc", manager.ip if own else "", ports if own else {}, *curve)

    @staticmethod
    def _choose_curve(manager: Any) -> tuple[bytes | None, bytes | None]:
        """CURVE ends at the bridge, so every kernel supports it (jupyter_client 8.9 and newer)."""
        policy = getattr(manager, "transport_encryption", "disabled")
        if policy not in ("auto", "required"):
            return None, None
        if manager.curve_publickey is None:
            manager.curve_publickey, manager.curve_secretkey = zmq.curve_keypair()
        return manager.curve_publickey, manager.curve_secretkey

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Called after ``pre_launch``; returns the connection info, its key as bytes.

        A failure leaves nothing behind: Jupyter calls no ``cleanup`` then.
        """
        plan = self._plan
        if plan is None:
            raise LaunchError("launch_kernel was called before pre_launch.")
        self._kernel = self._kernel or SandboxedKernel()
        try:
            address = await self._kernel.launch(plan)
        except GvisorKernelError as error:
            self.log.error("%s", error)
            raise
        self._launched = True
        self.connection_info = describe_address(address, plan.identity)
        return self.connection_info

    # -- life ------------------------------------------------------------------------------------

    @property
    def has_process(self) -> bool:
        """True from a launch until ``wait`` or ``cleanup`` has seen the end."""
        return self._launched

    async def poll(self) -> int | None:
        """None while the kernel lives, else its exit status. Every 3 s by the restarter."""
        return self._kernel.exit_status if self._kernel is not None and self._launched else 0

    async def wait(self) -> int | None:
        """Until the kernel has ended. Jupyter bounds it with a timeout."""
        while (status := await self.poll()) is None:
            await asyncio.sleep(0.02)
        self._launched = False
        return status

    async def send_signal(self, signum: int) -> None:
        """To the kernel's process group. SIGINT is how Jupyter interrupts (mode ``signal``)."""
        if self._kernel is None:
            return
        if signum == signal.SIGKILL:
            await self._kernel.kill()
        elif signum:
            await self._kernel.signal(signum)

    async def kill(self, restart: bool = False) -> None:
        """SIGKILL, at ``shutdown_kernel(now=True)``. ``restart`` is False even on a restart."""
        if self._kernel is not None:
            await self._kernel.kill()

    async def terminate(self, restart: bool = False) -> None:
        """SIGTERM, when a kernel did not follow its shutdown request."""
        await self.send_signal(signal.SIGTERM)

    async def shutdown_requested(self, restart: bool = False) -> None:
        """The request itself went to the kernel on control."""
        if self._kernel is not None:
            await self._kernel.expect_end(restart)

    async def cleanup(self, restart: bool = False) -> None:
        """The last call of a shutdown; on a restart the sandbox stays, if the setting says so."""
        if self._kernel is None:
            return
        self._launched = False
        if not restart:
            await self._kernel.close()
        elif self._plan is not None and self._plan.spec.restart != "kernel":
            await self._kernel.end_sandbox()

    # -- facts -----------------------------------------------------------------------------------

    async def get_provisioner_info(self) -> dict[str, Any]:
        """For managers that persist their kernels; adds ``sandbox``, its identity."""
        info: dict[str, Any] = await super().get_provisioner_info()
        sandbox = self._kernel.sandbox if self._kernel is not None else None
        info["sandbox"] = sandbox.identity if sandbox is not None else None
        return info

    async def load_provisioner_info(self, provisioner_info: dict[str, Any]) -> None:
        """Takes the facts back. The kernel itself cannot be: it ended with its process."""
        await super().load_provisioner_info(provisioner_info)

    def resolve_path(self, path: str) -> str | None:
        """The host's path of what the kernel calls ``path``: for mounted files alone."""
        found = self._kernel.host_path(path) if self._kernel is not None else None
        return str(found) if found is not None else None


def choose_folder(cwd: Any, manager: Any) -> Path:
    """The notebook's folder. Where a server's client names it, it is below the server's root.

    ``../..`` in a request would else show the kernel any folder that the server's user can read.
    Raises LaunchError.
    """
    root = getattr(getattr(manager, "parent", None), "root_dir", "")
    folder = Path(os.path.abspath(cwd or root or Path.cwd()))  # noqa: PTH100 - also drops ".."
    if root and not folder.is_relative_to(os.path.abspath(root)):  # noqa: PTH100
        raise LaunchError(
            f"The kernel's folder {folder} is not below the server's root, {root}.",
            "start it from a notebook of this server; or let root_dir hold that folder.",
        )
    return folder


def _default_ip(transport: str) -> str:
    return "127.0.0.1" if transport == "tcp" else ""


def _is_configured(manager: Any, name: str) -> bool:
    """Whether Jupyter's configuration sets ``name`` for this manager's class or one above it."""
    with suppress(AttributeError):
        return any(name in manager.config.get(cls.__name__, {}) for cls in type(manager).__mro__)
    return False
