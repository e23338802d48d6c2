"""The validated settings of a sandbox, without what reads and validates them.

So this module needs no traitlets: the helper on a node, and the process that removes what a killed
server has left, start without them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from gvisor_kernel.config.kubernetes import NO_CHOICE, Kubernetes
from gvisor_kernel.config.nodes import DEFAULT_SLURM, DEFAULT_SSH, Slurm, Ssh
from gvisor_kernel.config.packages import Packages
from gvisor_kernel.config.validators import GIB, HOST_IMAGE, INSTALLED_SKILLS, MIB

__all__ = [
    "DEFAULTS",
    "GIB",
    "HOST_IMAGE",
    "INSTALLED_SKILLS",
    "KERNEL_MODES",
    "MIB",
    "PRELOAD_LEARNED",
    "RESTARTS",
    "RUNTIMES",
    "SETTINGS",
    "SNAPSHOTS",
    "TRANSPORTS",
    "ExtraMount",
    "SandboxSpec",
]

RUNTIMES = ("runsc", "docker", "slurm", "ssh", "kubernetes")
RESTARTS = ("kernel", "sandbox")
TRANSPORTS = ("auto", "ipc", "tcp")
KERNEL_MODES = ("auto", "relay", "tcp")
SNAPSHOTS = ("auto", "off")
PRELOAD_LEARNED = "auto"
"""The value of ``preload`` for modules that kernels were seen to import."""


@dataclass(frozen=True)
class ExtraMount:
    """A folder or file of the host that the kernel sees at ``target``."""

    source: str
    target: str
    read_only: bool = True


@dataclass(frozen=True)
class SandboxSpec:
    """The validated settings of a sandbox. It depends on nothing of the host.

    Sizes are in bytes, ``start_timeout`` in seconds.
    ``uploads``, ``outputs``: an absolute path, a path relative to the notebook's folder, or None
    for no folder of the host. ``skills``: a directory with ``public`` and ``examples``, None, or
    INSTALLED_SKILLS for the skills of this user.
    ``command``: the kernel's argv with ``{connection_file}``; empty for ipykernel.
    ``preload``: modules that are imported before a snapshot of the kernel is made, or
    PRELOAD_LEARNED.
    ``egress``: names of routes to the network; whether they exist is checked when a plan is made.
    ``packages``: what was installed for this kernelspec, or None.
    """

    runtime: str = "runsc"
    image: str = HOST_IMAGE
    memory_limit: int = 4 * GIB
    cpu_shares: int = 1024
    pids_limit: int = 512
    disk_limit: int = 2 * GIB
    uploads: str | None = "."
    outputs: str | None = "outputs"
    skills: str | None = INSTALLED_SKILLS
    transcripts: bool = True
    mounts: tuple[ExtraMount, ...] = ()
    environment: tuple[str, ...] = ()
    start_timeout: float = 60.0
    restart: str = "kernel"
    transport: str = "auto"
    command: tuple[str, ...] = ()
    kernel_mode: str = "auto"
    snapshot: str = "auto"
    preload: tuple[str, ...] | str = PRELOAD_LEARNED
    idle_stop: bool = True
    spare: bool = True
    egress: tuple[str, ...] = ()
    packages: Packages | None = None
    slurm: Slurm = DEFAULT_SLURM
    ssh: Ssh = DEFAULT_SSH
    kubernetes: Kubernetes = NO_CHOICE


DEFAULTS = SandboxSpec()
SETTINGS = tuple(field.name for field in fields(SandboxSpec))
