"""The runtimes by name. The unsandboxed fake of the tests is not among them, and never will be."""

from __future__ import annotations

import os

from gvisor_kernel.config.settings import RUNTIMES
from gvisor_kernel.errors import SettingError
from gvisor_kernel.host.locks import ThreadLock
from gvisor_kernel.runtimes.base import Runtime

_runtimes: dict[str, Runtime] = {}
_lock = ThreadLock()


def get_runtime(name: str) -> Runtime:
    """The runtime called ``name``; one object for the whole process. Raises SettingError."""
    if name not in RUNTIMES:
        raise SettingError("runtime", name, " or ".join(f'"{known}"' for known in RUNTIMES))
    with _lock:
        if name not in _runtimes:
            _runtimes[name] = _make(name)
        return _runtimes[name]


def _in_child() -> None:
    """A forked child's runtimes are its own: its parent's threads may be at work in theirs."""
    _runtimes.clear()


os.register_at_fork(after_in_child=_in_child)


def _make(name: str) -> Runtime:
    if name == "docker":
        from gvisor_kernel.runtimes.docker.runtime import DockerRuntime

        return DockerRuntime()
    from gvisor_kernel.runtimes.runsc.runtime import RunscRuntime

    return RunscRuntime()
