"""What is to be started: one frozen plan, and the kernel's command line in it.

Decides and starts nothing. A plan can be written down for another process of the same user.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gvisor_kernel.bridge import Address, KernelIdentity
from gvisor_kernel.config.settings import ExtraMount, SandboxSpec
from gvisor_kernel.runtimes.base import LaunchRequest

IPYKERNEL = (
    *("-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", "{connection_file}"),
    "--HistoryManager.hist_file=:memory:",
)
"""As ipykernel's own kernelspec has it: frozen modules would hide lines from the debugger. And the
history of inputs, which ends with the sandbox, in memory: a thread that writes it to a file after
each cell costs a tenth of a short cell's time inside gVisor."""

AHEAD = ("ipykernel.kernelapp", "ipykernel.ipkernel", "ipykernel.zmqshell")
"""What PID 1 imports while it waits to be asked for a kernel of ipykernel."""

PYTHON_KERNEL = "/opt/gvisor-kernel/gvisor_kernel/guest/python_kernel.py"
"""Does what ``python -m`` does, a hundred times faster at unlucky moments, and lets the kernel
speak frames itself; see there."""
LINK = ("--link", "{link}")
FILE, TCP_FILE = "{connection_file}", "{tcp_connection_file}"
"""Words for PID 1: the paths of a connection file with Unix sockets, and of one with ports."""


@dataclass(frozen=True)
class KernelPlan:
    """All that decides what is started: settings, place, keys, addresses, program.

    ``argv`` empty: ipykernel of the sandbox's interpreter. ``environment`` is added to the
    sandbox's own; ``substituted``: the names in it whose values hold those of variables that a
    setting passes on.
    """

    spec: SandboxSpec
    request: LaunchRequest
    identity: KernelIdentity
    address: Address
    argv: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    substituted: tuple[str, ...] = ()


def prepare_argv(argv: list[str], kernel_mode: str) -> list[str]:
    """``argv`` with guest/python_kernel.py in the place of ``-m``, if it runs a Python module.

    In ``kernel_mode`` "auto" the kernel is offered the link; PID 1 puts its number for "{link}".
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
    """The kernel's command line inside, as PID 1 is told it."""
    argv = list(plan.argv) or [plan.request.python, *IPYKERNEL]
    if plan.spec.kernel_mode == "tcp":
        argv = [word.replace(FILE, TCP_FILE) for word in argv]
    return tuple(prepare_argv(argv, plan.spec.kernel_mode))


def full_request(plan: KernelPlan) -> LaunchRequest:
    """``plan.request``, with what PID 1 is to import for this kernel."""
    ahead = AHEAD if not plan.argv and plan.spec.kernel_mode == "auto" else ()
    return dataclasses.replace(plan.request, ahead=ahead)


def write_plan(plan: KernelPlan) -> dict[str, Any]:
    """``plan`` as JSON takes it, without its keys and addresses: for a kernel of one's own."""
    request = {**vars(plan.request), "folder": str(plan.request.folder)}
    return {
        "spec": dataclasses.asdict(plan.spec),
        "request": {**request, "kernel_id": "", "ahead": []},
        "argv": list(plan.argv),
        "environment": dict(plan.environment),
        "substituted": list(plan.substituted),
    }


def read_plan(content: dict[str, Any], key: bytes) -> KernelPlan:
    """What ``write_plan`` wrote, with a ``key`` for its clients, who find it by ipc."""
    settings: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in content["spec"].items()
    }
    settings["mounts"] = tuple(ExtraMount(**mount) for mount in settings["mounts"])
    spec = SandboxSpec(**settings)
    request = content["request"]
    request = LaunchRequest(**{**request, "folder": Path(request["folder"]), "ahead": ()})
    identity = KernelIdentity(request.kernel_name, key, "hmac-sha256", spec.memory_limit)
    return KernelPlan(
        spec=spec,
        request=request,
        identity=identity,
        address=Address("ipc", ""),
        argv=tuple(content["argv"]),
        environment=content["environment"],
        substituted=tuple(content["substituted"]),
    )
