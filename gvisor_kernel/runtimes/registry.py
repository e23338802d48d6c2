"""The runtimes by name. The unsandboxed fake of the tests is not among them, and never will be."""

from __future__ import annotations

import threading

from gvisor_kernel.errors import SettingError
from gvisor_kernel.runtimes.base import Runtime

_runtimes: dict[str, Runtime] = {}
_lock = threading.Lock()


def get_runtime(name: str) -> Runtime:
    """The runtime called ``name``; one object for the whole process. Raises SettingError."""
    if name != "runsc":
        raise SettingError("runtime", name, '"runsc"')
    with _lock:
        if name not in _runtimes:
            from gvisor_kernel.runtimes.runsc import RunscRuntime

            _runtimes[name] = RunscRuntime()
        return _runtimes[name]
