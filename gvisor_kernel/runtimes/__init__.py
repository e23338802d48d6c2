"""The runtimes: how a sandbox is made on this host. ``get_runtime`` is the entry point."""

from __future__ import annotations

import os

from gvisor_kernel.config.settings import RUNTIMES
from gvisor_kernel.errors import SettingError
from gvisor_kernel.host.locks import ThreadLock
from gvisor_kernel.runtimes.base import Runtime

_runtimes: dict[str, Runtime] = {}
_lock = ThreadLock()


def get_runtime(name: str) -> Runtime:
    """Return the runtime called ``name``. There is one instance per process. Any thread.

    :raises SettingError: when there is no such runtime
    """
    if name not in RUNTIMES:
        raise SettingError("runtime", name, " or ".join(f'"{known}"' for known in RUNTIMES))
    with _lock:
        if name not in _runtimes:
            _runtimes[name] = _make_runtime(name)
        return _runtimes[name]


def _reset_after_fork() -> None:
    """Give a forked child runtimes of its own: threads of its parent may be using the old ones."""
    _runtimes.clear()


os.register_at_fork(after_in_child=_reset_after_fork)


def _make_runtime(name: str) -> Runtime:
    if name == "docker":
        from gvisor_kernel.runtimes.docker.runtime import DockerRuntime

        return DockerRuntime()
    if name == "kubernetes":
        from gvisor_kernel.runtimes.kubernetes.runtime import KubernetesRuntime

        return KubernetesRuntime()
    if name in ("slurm", "ssh"):
        from gvisor_kernel.runtimes.nodes.runtime import NodeRuntime

        return NodeRuntime(name)
    from gvisor_kernel.runtimes.runsc.runtime import RunscRuntime

    return RunscRuntime()


__all__ = ["get_runtime"]
