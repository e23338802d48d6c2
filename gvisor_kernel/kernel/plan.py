"""The plan of one kernel: all that decides what is started, and the kernel's command line.

Starts nothing. A plan can be serialized for another process of the same user.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gvisor_kernel.bridge import Address, KernelIdentity
from gvisor_kernel.config.settings import SandboxSpec, read_spec, write_spec
from gvisor_kernel.egress.environment import JUPYTER, PACKAGES_HOME, Door, egress_environment
from gvisor_kernel.egress.kinds import Route
from gvisor_kernel.runtimes import get_runtime
from gvisor_kernel.runtimes.base import LaunchRequest
from gvisor_kernel.runtimes.state.records import Keeper
from gvisor_kernel.spec.layout import ENVIRONMENT
from gvisor_kernel.typed_json import read_value

IPYKERNEL = (
    *("-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", "{connection_file}"),
    "--HistoryManager.hist_file=:memory:",
)
"""The argv of ipykernel's own kernelspec: frozen modules would hide lines from the debugger. The
input history is in memory, as it ends with the sandbox anyway: a thread that writes it to a file
after each cell costs a tenth of a short cell's time inside gVisor."""

IMPORTED_AHEAD = ("ipykernel.kernelapp", "ipykernel.ipkernel", "ipykernel.zmqshell")
"""Modules that PID 1 imports before it is asked to start an ipykernel."""

PYTHON_KERNEL = "/opt/gvisor-kernel/gvisor_kernel/guest/python_kernel.py"
"""Runs a module as ``python -m`` does, but up to a hundred times faster, and lets the kernel speak
the link's frames itself; see its docstring."""
LINK = ("--link", "{link}")
PACKAGES_VARIABLES = {
    "GVISOR_KERNEL_PACKAGES": PACKAGES_HOME,
    "GVISOR_KERNEL_ENVIRONMENT": ENVIRONMENT,
}
"""Paths of the kernel's own environment and of the one below it, for ``guest/installed.py``."""
FILE, TCP_FILE = "{connection_file}", "{tcp_connection_file}"
"""Placeholders that PID 1 fills: the path of a connection file with Unix sockets or with ports."""


@dataclass(frozen=True)
class KernelPlan:
    """All that decides what is started: settings, folders, keys, addresses, program.

    An empty ``argv`` means ipykernel of the sandbox's interpreter. ``environment`` is added to the
    sandbox's own. ``substituted`` names the variables in it whose values contain a variable that
    the setting ``environment`` passes on. ``routes`` are those that ``spec.egress`` names; the plan
    of a snapshot or of a spare has none. ``learned``: for a snapshot that is to be made, what
    PRELOAD_LEARNED means now. ``door``: who starts the kernel. ``keeper``: who takes over what is
    saved of it; ``lasts``: it is also saved when this process ends without ending it.
    """

    spec: SandboxSpec
    request: LaunchRequest
    identity: KernelIdentity
    address: Address
    argv: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    substituted: tuple[str, ...] = ()
    routes: tuple[Route, ...] = ()
    learned: tuple[str, ...] = ()
    door: Door = JUPYTER
    keeper: Keeper = "nobody"
    lasts: bool = False


def fix_program(plan: KernelPlan) -> KernelPlan:
    """Return ``plan`` with the very runsc that it would start with now. Blocks for milliseconds.

    :raises RuntimeMissing: when there is none
    """
    return dataclasses.replace(plan, spec=get_runtime(plan.spec.runtime).fix_program(plan.spec))


def without_routes(plan: KernelPlan) -> KernelPlan:
    """Return ``plan`` for a sandbox that is nobody's yet: a snapshot, or a spare."""
    return dataclasses.replace(plan, spec=dataclasses.replace(plan.spec, egress=()), routes=())


def without_user(spec: SandboxSpec) -> SandboxSpec:
    """Return ``spec`` without anything of the user: for a sandbox that runs a stranger's code only.

    Image, runtime and limits stay.
    """
    return SandboxSpec(
        runtime=spec.runtime,
        runsc=spec.runsc,
        image=spec.image,
        memory_limit=spec.memory_limit,
        cpu_shares=spec.cpu_shares,
        pids_limit=spec.pids_limit,
        disk_limit=spec.disk_limit,
        start_timeout=spec.start_timeout,
        uploads=None,
        outputs=None,
        skills=None,
        transcripts=False,
        restart="sandbox",
        snapshot="off",
        spare=False,
    )


def prepare_argv(argv: list[str], kernel_mode: str) -> list[str]:
    """Replace ``-m`` by guest/python_kernel.py in ``argv`` if it runs a Python module.

    In ``kernel_mode`` "auto" the kernel is offered the link: PID 1 replaces "{link}" by its
    descriptor number.
    """
    if "python" not in Path(argv[0]).name:
        return argv
    for at in range(1, len(argv) - 1):
        if argv[at] == "-m":
            link = LINK if kernel_mode == "auto" else ()
            return [*argv[:at], PYTHON_KERNEL, *link, *argv[at + 1 :]]
        if not argv[at].startswith("-"):
            break
    return argv


def kernel_argv(plan: KernelPlan) -> tuple[str, ...]:
    """Return the kernel's command line inside the sandbox, with placeholders for PID 1."""
    argv = list(plan.argv) or [plan.request.python, *IPYKERNEL]
    if plan.spec.kernel_mode == "tcp":
        argv = [word.replace(FILE, TCP_FILE) for word in argv]
    return tuple(prepare_argv(argv, plan.spec.kernel_mode))


def kernel_variables(plan: KernelPlan, sandbox: Mapping[str, str]) -> dict[str, str]:
    """Return all variables of the kernel. ``sandbox``: those that its sandbox gives to any kernel.

    Those of the routes are never part of a snapshot: it is made by a plan without routes, and a
    kernel that is restored gets its own. Those of the packages are the same in a snapshot that
    fits, as the packages themselves are part of its key.
    """
    packages = PACKAGES_VARIABLES if plan.spec.packages is not None else {}
    return {**sandbox, **egress_environment(plan.routes, plan.door), **packages, **plan.environment}


def make_launch_request(plan: KernelPlan) -> LaunchRequest:
    """Return ``plan.request`` with the modules that PID 1 imports for this kernel."""
    forked = not plan.argv and plan.spec.kernel_mode == "auto" and plan.spec.restart == "kernel"
    ahead = IMPORTED_AHEAD if forked else ()
    return dataclasses.replace(plan.request, ahead=ahead)


def write_plan(plan: KernelPlan) -> dict[str, Any]:
    """Return ``plan`` as JSON, without its keys, addresses and routes, for the process that makes a
    snapshot."""
    plan = without_routes(plan)
    request = {**vars(plan.request), "folder": str(plan.request.folder)}
    return {
        "spec": write_spec(plan.spec),
        "request": {**request, "kernel_id": "", "ahead": []},
        "argv": list(plan.argv),
        "environment": dict(plan.environment),
        "substituted": list(plan.substituted),
        "learned": list(plan.learned),
    }


def read_plan(content: dict[str, Any], key: bytes) -> KernelPlan:
    """Return the plan that ``write_plan`` wrote, with ``key`` for clients and an ipc address."""
    spec = read_spec(content["spec"])
    request = read_value(content["request"], LaunchRequest)
    identity = KernelIdentity(request.kernel_name, key, "hmac-sha256", spec.memory_limit)
    return KernelPlan(
        spec=spec,
        request=request,
        identity=identity,
        address=Address("ipc", ""),
        argv=tuple(content["argv"]),
        environment=content["environment"],
        substituted=tuple(content["substituted"]),
        learned=tuple(content["learned"]),
    )
