"""A SandboxSpec as JSON, for another process of the same user: here, or on another machine."""

from __future__ import annotations

import dataclasses
from typing import Any

from gvisor_kernel.config.kubernetes import Kubernetes
from gvisor_kernel.config.nodes import Slurm, Ssh
from gvisor_kernel.config.packages import Packages
from gvisor_kernel.config.spec import ExtraMount, SandboxSpec


def write_spec(spec: SandboxSpec) -> dict[str, Any]:
    """Return ``spec`` as values that JSON has."""
    return dataclasses.asdict(spec)


def read_spec(content: dict[str, Any]) -> SandboxSpec:
    """Return the spec that ``write_spec`` wrote.

    :raises TypeError, KeyError: when something else has written it, such as another release
    """
    values = _tuples(content)
    values["mounts"] = tuple(ExtraMount(**mount) for mount in values["mounts"])
    if values["packages"] is not None:
        values["packages"] = Packages(**_tuples(values["packages"]))
    values["slurm"] = Slurm(**_tuples(values["slurm"]))
    values["ssh"] = Ssh(**_tuples(values["ssh"]))
    cluster = _tuples(values["kubernetes"])
    for name in ("labels", "node_selector"):
        cluster[name] = tuple((str(key), str(value)) for key, value in cluster[name])
    values["kubernetes"] = Kubernetes(**cluster)
    return SandboxSpec(**values)


def _tuples(content: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
