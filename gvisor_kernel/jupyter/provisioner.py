"""The kernel provisioner: implements the hooks of KernelProvisionerBase with a SandboxedKernel.

The docstring of each method says when Jupyter calls it. Two rules hold for all of them: none
raises because the kernel is dead already, and ``cleanup`` alone releases everything and may be
called twice.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from string import Template
from typing import Any, ClassVar

import zmq
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase

from gvisor_kernel.bridge import Address, Bridge, KernelIdentity
from gvisor_kernel.changes.compare import find_unkept
from gvisor_kernel.changes.control import Branching, ControlSocket
from gvisor_kernel.changes.new_files import apply_new_files
from gvisor_kernel.config.jupyter_config import GVisorEgress, SandboxSettings
from gvisor_kernel.config.settings import DEFAULTS, SandboxSpec
from gvisor_kernel.config.validators import PROJECT
from gvisor_kernel.egress.environment import JUPYTER, PROGRAM, name_door
from gvisor_kernel.egress.kinds import Route
from gvisor_kernel.egress.routes import check_exposure, choose_routes, parse_routes
from gvisor_kernel.errors import (
    GvisorKernelError,
    LaunchError,
    SettingError,
    StartStopped,
)
from gvisor_kernel.host.workers import in_thread
from gvisor_kernel.jupyter.asleep import RESUMES_ONLY, Resumes, find_keeper, start_branches
from gvisor_kernel.jupyter.project_choices import may_choose, with_choice
from gvisor_kernel.kernel.branches import Branch, take_saved
from gvisor_kernel.kernel.client import CHANNELS, describe_address, new_key
from gvisor_kernel.kernel.command import choose_program
from gvisor_kernel.kernel.facts import KernelFacts
from gvisor_kernel.kernel.moves import follow, move
from gvisor_kernel.kernel.plan import KernelPlan
from gvisor_kernel.kernel.session import SandboxedKernel
from gvisor_kernel.runtimes.base import LaunchRequest
from gvisor_kernel.runtimes.mounts.folders import find_project_path
from gvisor_kernel.runtimes.state import lifeline
from gvisor_kernel.runtimes.state.records import this_process

SETTLE_SECONDS = 5.0
"""Seconds that a call of the manager that does nothing here any more may take to end."""
LOCAL_ADDRESSES = ("", "127.0.0.1", "localhost")


class GVisorProvisioner(SandboxSettings, KernelProvisionerBase):  # type: ignore[metaclass]
    """Starts each kernel in a gVisor sandbox. Entry point ``gvisor-provisioner``."""

    starting: ClassVar[set[GVisorProvisioner]] = set()
    """Those of this process whose kernel is being launched. Managers list a kernel only after
    that."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.connection_info: KernelConnectionInfo = {}
        self._kernel: SandboxedKernel | None = None
        self._launched = False
        self._control: ControlSocket | None = None
        self._plan: KernelPlan | None = None
        self._taken: KernelPlan | None = None
        """That of a saved kernel that was taken over. A branch keeps its outputs at a restart."""
        self._calls = self._ended_calls = 0
        self._holds = 0
        """The process whose end, if it is killed, removes what is saved of the kernel; 0: none."""

    # -- start -----------------------------------------------------------------------------------

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Make the plan. Called first at each start and restart.

        ``kwargs`` may have ``env`` (the server's whole environment, of which only the variables in
        the setting ``environment`` are used; by default this process's), ``cwd`` and
        ``extra_arguments``. The result must have ``cmd``.

        :raises SettingError: when a setting is wrong; nothing was created then
        :raises GvisorKernelError: when the kernel's program or folder cannot be used
        """
        only = self._find_only()
        if only is not None and only.starts is not None:
            await only.starts  # no timeout: a server's TakingBack
        environment = dict(kwargs.pop("env", os.environ))
        extra_arguments = list(kwargs.pop("extra_arguments", []))
        try:
            folder = choose_folder(kwargs.get("cwd"), self.parent)
            name = getattr(self.parent, "kernel_name", "") or self.kernel_spec.display_name
            self._plan = self._make_plan(name, folder, environment, extra_arguments)
        except GvisorKernelError as error:
            self.log.error("%s", error)
            raise
        argv = list(self._plan.argv) or ["ipykernel", "(of the sandbox)"]
        return {**kwargs, "cmd": argv, "env": {}}

    def plan_ahead(self, kernel_name: str, folder: Path) -> KernelPlan:
        """Return the plan of a kernel that a server may start in ``folder``; make nothing.

        Its key and address are no kernel's: it is for snapshots and spares.

        :raises GvisorKernelError: when a setting is wrong, or the kernel's program cannot be used
        """
        return self._make_plan(kernel_name, folder, dict(os.environ), [])

    def _make_plan(
        self, name: str, folder: Path, environment: dict[str, str], extra: list[str]
    ) -> KernelPlan:
        manager = self.parent
        spec = self.sandbox_spec(strict=getattr(manager, "door", JUPYTER) is PROGRAM)
        if self._is_closed() and spec.uploads == PROJECT:
            spec = replace(spec, uploads=DEFAULTS.uploads)
        if self.may_choose_project(spec):
            if self._plan is None:
                spec = with_choice(spec, folder)
            else:  # a restart, which would take the sandbox with all that was not applied
                spec = replace(spec, uploads=self._plan.spec.uploads)
        keeper, lasts = find_keeper(manager, self.config, spec)
        taken = self._taken
        if taken is not None:
            spec = replace(spec, outputs=taken.spec.outputs)
        python, argv = choose_program(spec, list(self.kernel_spec.argv), extra)
        passed = {key: environment[key] for key in spec.environment if key in environment}
        templates = {key: Template(value) for key, value in self.kernel_spec.env.items()}
        return KernelPlan(
            spec=spec,
            request=LaunchRequest(
                kernel_name=name,
                kernel_id=self.kernel_id or "",
                folder=folder,
                python=python,
                environment=passed,
                branch="" if taken is None else taken.request.branch,
            ),
            identity=KernelIdentity(
                name=name,
                key=manager.session.key if manager else self._own_key(),
                signature_scheme=manager.session.signature_scheme if manager else "hmac-sha256",
                memory_limit=spec.memory_limit,
                idle_stop=spec.idle_stop,
                holds_replies=getattr(manager, "holds_replies", True),
                kernelspec=self._find_file(),
            ),
            address=self._choose_address(spec),
            argv=argv,
            environment={key: text.safe_substitute(passed) for key, text in templates.items()},
            substituted=tuple(
                key for key, text in templates.items() if passed.keys() & text.get_identifiers()
            ),
            routes=self.find_routes(spec, folder),
            door=name_door(getattr(manager, "door", JUPYTER), name),
            keeper=keeper,
            lasts=lasts,
        )

    def may_choose_project(self, spec: SandboxSpec) -> bool:
        """Return whether a person may choose what is shown (``project_choices``): not against
        Jupyter's configuration."""
        return not (_is_configured(self, "uploads") or self._is_closed()) and may_choose(spec)

    def _is_closed(self) -> bool:
        """Return whether this is a server for what strangers wrote: it shows no folder above."""
        return bool(self.config.get("GVisorServer", {}).get("closed"))

    def find_routes(self, spec: SandboxSpec, folder: Path) -> tuple[Route, ...]:
        """Return the routes that ``spec`` names, as Jupyter's configuration describes them now.

        A kernelspec's stanza never gets into ``self.config``. ``folder``: the notebook's.

        :raises SettingError: when the configuration of routes is wrong, a name is none of them, or
            the kernel would see the secret of one
        """
        try:
            routes = parse_routes(GVisorEgress(self.config).configured_routes())
        except SettingError as error:
            if spec.egress:
                raise
            self.log.warning("%s", error)  # kernels without routes start nevertheless
            routes = {}
        project = find_project_path(str(folder)) if spec.uploads == PROJECT else None
        shown = spec if project is None else replace(spec, uploads=project)
        check_exposure(routes.values(), shown, folder)
        return choose_routes(spec.egress, routes)

    def _find_file(self) -> str:
        """Return the path of the kernel.json that decides the memory limit; empty if none does."""
        folder = getattr(self.kernel_spec, "resource_dir", "")
        if not folder or "memory_limit" in self.config.get("GVisorProvisioner", {}):
            return ""
        return str(Path(folder, "kernel.json"))

    def _own_key(self) -> bytes:
        """Return the key of a kernel without a manager. It stays the same across restarts."""
        if self._plan is not None:
            return self._plan.identity.key
        return new_key()

    def _choose_address(self, spec: SandboxSpec) -> Address:
        """Choose ipc in a private directory, unless the setting or the manager says otherwise.

        A manager's default is tcp. Its transport counts only if someone chose it: if it is
        configured, or if an ip or ports are set.
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
        # With ipc the ip is a path. It is kept only if ports show that someone chose it.
        own = manager.transport == "ipc" and all(ports.values())
        return Address("ipc", manager.ip if own else "", ports if own else {}, *curve)

    @staticmethod
    def _choose_curve(manager: Any) -> tuple[bytes | None, bytes | None]:
        """Return CURVE keys if the manager wants them (jupyter_client 8.9 and newer).

        CURVE ends at the bridge, so each kernel supports it.
        """
        policy = getattr(manager, "transport_encryption", "disabled")
        if policy not in ("auto", "required"):
            return None, None
        if manager.curve_publickey is None:
            manager.curve_publickey, manager.curve_secretkey = zmq.curve_keypair()
        return manager.curve_publickey, manager.curve_secretkey

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Start the kernel; return the connection info with the key as bytes.

        Called after ``pre_launch``. A failure leaves nothing behind, as Jupyter does not call
        ``cleanup`` then.

        :raises StartStopped: when another call has ended this start; after that call, so that it
            gets its own result
        :raises GvisorKernelError: when the kernel cannot be started
        """
        plan = self._plan
        if plan is None:
            raise LaunchError("launch_kernel was called before pre_launch.")
        if self._kernel is None:
            logs_death = getattr(self.parent, "logs_death", True)
            self._kernel = SandboxedKernel(
                logs_death=logs_death, judge_left=find_unkept, apply_new=apply_new_files
            )
        ready = getattr(self.parent, "ready", None)
        try:
            with self._calling():
                self.starting.add(self)
                address = await self._launch_or_adopt(self._kernel, plan)
        except GvisorKernelError as error:
            self.log.error("%s", error)
            if isinstance(error, StartStopped):
                await self._let_others_end(ready)
            raise
        self._launched = True
        if plan.keeper == "nobody" and not self._holds:
            await in_thread(lifeline.hold, this_process(), plan.spec.runtime)
            self._holds = os.getpid()
        await self._open_control(self._kernel)
        self.connection_info = describe_address(address, plan.identity)
        return self.connection_info

    async def _launch_or_adopt(self, kernel: SandboxedKernel, plan: KernelPlan) -> Address:
        """Start the kernel; or take it over, if an earlier process has saved one of this id."""
        if kernel.address is None and plan.request.kernel_id:
            only = self._find_only()
            place = only.directory if only is not None else None
            saved = await in_thread(take_saved, plan.request.kernel_id, plan.keeper, place)
            if saved is not None:
                plan = replace(plan, spec=follow(plan.spec, saved, self._find_named))
                self._plan = saved.adapt(plan)
                self._taken = self._plan
                return await kernel.adopt(self._plan, saved.compare(plan))
            if only is not None:
                raise LaunchError("What was saved of this kernel cannot be read, or is used.")
        return await kernel.launch(plan)

    def _find_only(self) -> Resumes | None:
        only = RESUMES_ONLY.get()  # no timeout: a variable of this task
        return only if only is not None and only.kernel_id == self.kernel_id else None

    @contextmanager
    def _calling(self) -> Iterator[None]:
        """Count a call that starts or ends a kernel. Another one may come meanwhile."""
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1
            self._ended_calls += 1
            if not self._calls:
                self.starting.discard(self)

    async def _let_others_end(self, own: object) -> None:
        """Wait until the call is over that has ended this start, whose own future is ``own``.

        jupyter_client has one future for all calls of a manager, which each call makes anew: an
        error of this start would become the other call's, and an interrupt that waits for this
        start would never end.
        """
        loop = asyncio.get_running_loop()
        while True:
            ready = getattr(self.parent, "ready", None)
            if not isinstance(ready, asyncio.Future) or ready.get_loop() is not loop:
                return
            if isinstance(own, asyncio.Future) and own is not ready and not own.done():
                own.set_result(None)
            if ready.done():
                return
            ended = self._ended_calls
            done, _ = await asyncio.wait({ready}, timeout=SETTLE_SECONDS)
            if not done and not self._calls and ended == self._ended_calls:
                return  # whoever has made that call was cancelled

    async def _open_control(self, kernel: SandboxedKernel) -> None:
        """Let ``gvisor-kernel changes`` ask this kernel. A kernel works without it."""
        try:
            if self._control is None:
                self._control = ControlSocket(kernel, self._find_branching(kernel), self._find_own)
            await self._control.open()
        except OSError as error:
            self.log.warning("gvisor-kernel changes cannot ask this kernel: %s", error)

    def _find_branching(self, kernel: SandboxedKernel) -> Branching | None:
        """Return what starts branches, from any loop, as kernels of this one's server."""
        loop, manager = asyncio.get_running_loop(), getattr(self.parent, "parent", None)
        if not hasattr(manager, "root_dir"):
            return None

        async def branch(wanted: Sequence[Branch]) -> None:
            starting = start_branches(manager, self.kernel_id or "", kernel, wanted)
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(starting, loop))

        return branch

    # -- life ------------------------------------------------------------------------------------

    @property
    def has_process(self) -> bool:
        """True from a launch until ``wait`` or ``cleanup`` returns."""
        return self._launched

    async def poll(self) -> int | None:
        """Return None while the kernel lives, else its exit status. Called every few seconds."""
        return self._kernel.exit_status if self._kernel is not None and self._launched else 0

    def describe(self) -> KernelFacts | None:
        """Return what is known of the kernel and its sandbox; None before the first launch."""
        return self._kernel.describe() if self._kernel is not None else None

    async def wait(self) -> int | None:
        """Wait until the kernel has ended. Jupyter sets a timeout."""
        # no timeout: polls the kernel's life; Jupyter sets the timeout
        while (status := await self.poll()) is None:
            await asyncio.sleep(0.02)
        self._launched = False
        return status

    async def send_signal(self, signum: int) -> None:
        """Signal the kernel's process group. Jupyter interrupts by SIGINT (mode ``signal``)."""
        if self._kernel is None:
            return
        if signum == signal.SIGKILL:
            await self._kernel.kill()
        elif signum:
            await self._kernel.signal(signum)

    async def kill(self, restart: bool = False) -> None:
        """Send SIGKILL. Called by ``shutdown_kernel(now=True)``, with ``restart`` always False."""
        if self._kernel is not None:
            await self._kernel.kill()

    async def terminate(self, restart: bool = False) -> None:
        """Send SIGTERM. Called when a kernel ignores its shutdown request."""
        await self.send_signal(signal.SIGTERM)

    async def shutdown_requested(self, restart: bool = False) -> None:
        """Expect the kernel's end. The request itself goes to the kernel on control."""
        if self._kernel is not None:
            await self._kernel.expect_end(restart)

    async def cleanup(self, restart: bool = False) -> None:
        """End the sandbox; on a restart keep it if the setting ``restart`` says so.

        The last call of a shutdown.
        """
        if self._kernel is None:
            return
        self._launched = False
        if self._control is not None and not restart:
            await self._control.close()
            self._control = None
        with self._calling():
            if not restart:
                await self._kernel.close()
                if self._holds == os.getpid():  # not in a forked child
                    self._holds = 0
                    await in_thread(lifeline.release)
                return
            await self._kernel.end_launch()
            if self._plan is not None and self._plan.spec.restart != "kernel":
                await self._kernel.end_sandbox()

    async def move(self, to: str) -> None:
        """Let the idle kernel go on at ``to``, which a setting names; see ``kernel/moves``.

        :raises NotIdle: when it has something to do
        :raises GvisorKernelError: when it does not go on there; it goes on as it was
        """
        if self._kernel is None:
            raise LaunchError("There is no kernel.")
        work = move(self._kernel, to, self._find_named)
        # no timeout: a save and a wake, which have some; half a move would be a surprise
        await asyncio.shield(Bridge.instance().run(work))

    def _find_named(self, runtime: str) -> Any:
        """Return the value of the setting that ``runtime`` has.

        :raises LaunchError: when it is not set, or names no host
        """
        own = self._find_own(runtime)
        is_set = getattr(self, runtime) or self._asked.get(runtime)
        if not is_set or getattr(own, "hosts", None) == ():
            raise LaunchError(
                f"The setting {runtime} does not say that kernels may be moved there.",
                'set it, as slurm to {"wait": 300}, or ssh to {"hosts": ["node1"]}.',
            )
        return own

    # -- facts -----------------------------------------------------------------------------------

    @property
    def sandboxed_kernel(self) -> SandboxedKernel | None:
        """The kernel in its sandbox; None before the first launch and after ``cleanup``."""
        return self._kernel

    async def get_provisioner_info(self) -> dict[str, Any]:
        """Return facts for managers that persist their kernels, and the sandbox's identity."""
        info: dict[str, Any] = await super().get_provisioner_info()
        sandbox = self._kernel.sandbox if self._kernel is not None else None
        info["sandbox"] = sandbox.identity if sandbox is not None else None
        return info

    def resolve_path(self, path: str) -> str | None:
        """Return the host's path of a mounted file that the kernel knows as ``path``, or None."""
        found = self._kernel.host_path(path) if self._kernel is not None else None
        return str(found) if found is not None else None


def choose_folder(cwd: Any, manager: Any) -> Path:
    """Return the notebook's folder, which must be below the root of a server.

    Without this check, ``../..`` in a client's request would show the kernel any folder that the
    server's user can read.

    :raises LaunchError: when the folder is not below the server's root
    """
    root = getattr(getattr(manager, "parent", None), "root_dir", "")
    folder = Path(os.path.abspath(cwd or root or Path.cwd()))  # noqa: PTH100 - also drops ".."
    if root and not folder.is_relative_to(os.path.abspath(root)):  # noqa: PTH100
        raise LaunchError(
            f"The kernel's folder {folder} is not below the server's root, {root}.",
            "start the kernel from a notebook of this server, or set root_dir to a folder above.",
        )
    return folder


def _default_ip(transport: str) -> str:
    return "127.0.0.1" if transport == "tcp" else ""


def _is_configured(manager: Any, name: str) -> bool:
    """Return whether Jupyter's configuration sets ``name`` for the manager's class or a base."""
    with suppress(AttributeError):
        return any(name in manager.config.get(cls.__name__, {}) for cls in type(manager).__mro__)
    return False
