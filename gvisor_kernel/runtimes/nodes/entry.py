"""The entries of the runtimes "slurm" and "ssh", and their settings."""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gvisor_kernel.config.settings import RuntimeEntry, Setting
from gvisor_kernel.runtimes.nodes.settings import (
    DEFAULT_SLURM,
    DEFAULT_SSH,
    Slurm,
    Ssh,
    accept_slurm,
    accept_ssh,
    check_hosts,
    check_node,
)
from gvisor_kernel.runtimes.nodes.variables import VARIABLES

if TYPE_CHECKING:
    from gvisor_kernel.runtimes.nodes.runtime import NodeRuntime
    from gvisor_kernel.runtimes.state.records import Record


def _make(name: str) -> NodeRuntime:
    from gvisor_kernel.runtimes.nodes.runtime import NodeRuntime

    return NodeRuntime(name)


def _remove(directory: Path, record: Record, seconds: float | None) -> bool:
    from gvisor_kernel.runtimes.nodes.removal import remove_from_node

    return remove_from_node(directory, record, seconds)


SLURM = RuntimeEntry(
    make=partial(_make, "slurm"),
    setting=Setting(
        DEFAULT_SLURM,
        accept_slurm,
        inspect.cleandoc(
            """For the runtime "slurm", a mapping: "partition", "account", "qos", "time", "gres",
            "arguments" (more arguments of srun), "wait" (seconds that a kernel may wait for
            resources, by default 300), "python" (the Python on the nodes that has this package; by
            default the server's), "state" (a folder of each node for what runs there), "files"
            ("shared": by a file system that the nodes share with the server, the default; "copy":
            copied to the node and back). Jupyter's configuration may also set "allowed_arguments":
            patterns of the arguments that kernelspecs may name."""
        ),
        kind=Slurm,
    ),
    check=check_node,
    variables=VARIABLES["slurm"],
    remove=_remove,
)
SSH = RuntimeEntry(
    make=partial(_make, "ssh"),
    setting=Setting(
        DEFAULT_SSH,
        accept_ssh,
        inspect.cleandoc(
            """For the runtime "ssh", a mapping: "hosts" (a list, as OpenSSH knows them), "config"
            (a configuration file of OpenSSH in place of the user's), "python", "state" and "files"
            as in the setting "slurm"."""
        ),
        kind=Ssh,
    ),
    check=check_hosts,
    variables=VARIABLES["ssh"],
    remove=_remove,
)
