"""Settings, from Jupyter's configuration and a kernelspec, become one frozen SandboxSpec.

This is the only module that reads settings. What a client sends (``KERNEL_*``) is not read.
"""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024 * 1024
GIB = 1024 * MIB


@dataclass(frozen=True)
class ExtraMount:
    """A folder or file of the host that a kernel sees at ``target``."""

    source: str
    target: str
    read_only: bool = True


@dataclass(frozen=True)
class SandboxSpec:
    """What was asked of a sandbox: validated, without any state of the host.

    ``uploads``, ``outputs``: an absolute path, a path relative to the notebook's folder, or
    None for "nothing of the host". ``skills``: a directory with ``public`` and ``examples``.
    ``command``: the kernel's argv with ``{connection_file}``, empty for ipykernel.
    """

    runtime: str = "runsc"
    image: str = "host"
    memory_limit: int = 4 * GIB
    cpu_shares: int = 1024
    pids_limit: int = 512
    disk_limit: int = 2 * GIB
    uploads: str | None = "."
    outputs: str | None = "outputs"
    skills: str | None = None
    transcripts: bool = True
    mounts: tuple[ExtraMount, ...] = ()
    environment: tuple[str, ...] = ()
    start_timeout: float = 60.0
    restart: str = "kernel"
    transport: str = "auto"
    command: tuple[str, ...] = ()
