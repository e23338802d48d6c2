"""The runtimes by name. The unsandboxed fake of the tests is not among them, and never will be."""

from __future__ import annotations

import threading

from gvisor_kernel.config import RUNTIMES
from gvisor_kernel.errors import SettingError
from gvisor_kernel.runtimes.base import Runtime

_runtimes: dict[str, Runtime] = {}
_lock = threading.Lock()


def get_runtime(name: str) -> Runtime:
    """The runtime called ``name``; one object for the whole process. Raises SettingError."""
    if name not in RUNTIMES:
        raise SettingError("runtime", name, " or ".join(f'"{known}"' for known in RUNTIMES))
    with _lock:
        if name not in _runtimes:
            _runtimes[name] = _make(name)
        return _runtimes[name]


def _make(name: str) -> Runtime:
    if name == "docker":
        from gvisor_kernel.runtimes.docker import DockerRuntime

        return DockerRuntime()
    from gvisor_kernel.runtimes.runsc import RunscRuntime

    return RunscRuntime()
