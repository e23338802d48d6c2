"""Jupyter kernels that run inside gVisor sandboxes.

The names of the Python API (``gvisor_kernel/api``) are imported when they are first used: the guest
imports this package inside a sandbox, where only the standard library is available.
"""

__version__ = "0.1.0"

__all__ = [
    "Applied",
    "AsyncSandbox",
    "AsyncSandboxPool",
    "Change",
    "Changes",
    "ChangesError",
    "Checkpoint",
    "CodeFailed",
    "Entry",
    "Execution",
    "ExecutionError",
    "FileFailed",
    "GvisorKernelError",
    "LastingSandbox",
    "Logs",
    "MapResult",
    "NoCheckpoint",
    "NotIdle",
    "OutputChanges",
    "OutputsError",
    "Printed",
    "Result",
    "RewindChanges",
    "Sandbox",
    "SandboxError",
    "SandboxPool",
    "SettingError",
    "ShellResult",
    "Undone",
    "__version__",
    "open_output",
]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gvisor_kernel.api.async_sandbox import AsyncSandbox
    from gvisor_kernel.api.execution import (
        CodeFailed,
        Execution,
        ExecutionError,
        Logs,
        Printed,
        Result,
    )
    from gvisor_kernel.api.files import Entry, FileFailed, open_output
    from gvisor_kernel.api.lasting import Checkpoint, LastingSandbox, OutputChanges, RewindChanges
    from gvisor_kernel.api.mapping import MapResult
    from gvisor_kernel.api.pool import AsyncSandboxPool, SandboxPool
    from gvisor_kernel.api.sandbox import Sandbox
    from gvisor_kernel.api.shell import ShellResult
    from gvisor_kernel.changes.change import Applied, Change, Changes, ChangesError, Undone
    from gvisor_kernel.errors import (
        GvisorKernelError,
        NoCheckpoint,
        NotIdle,
        OutputsError,
        SandboxError,
        SettingError,
    )

_MODULES = {
    "Applied": "changes.change",
    "AsyncSandbox": "api.async_sandbox",
    "AsyncSandboxPool": "api.pool",
    "Change": "changes.change",
    "Changes": "changes.change",
    "ChangesError": "changes.change",
    "Checkpoint": "api.lasting",
    "CodeFailed": "api.execution",
    "Entry": "api.files",
    "Execution": "api.execution",
    "ExecutionError": "api.execution",
    "FileFailed": "api.files",
    "GvisorKernelError": "errors",
    "LastingSandbox": "api.lasting",
    "Logs": "api.execution",
    "MapResult": "api.mapping",
    "NoCheckpoint": "errors",
    "NotIdle": "errors",
    "OutputChanges": "api.lasting",
    "OutputsError": "errors",
    "Printed": "api.execution",
    "Result": "api.execution",
    "RewindChanges": "api.lasting",
    "Sandbox": "api.sandbox",
    "SandboxError": "errors",
    "SandboxPool": "api.pool",
    "SettingError": "errors",
    "ShellResult": "api.shell",
    "Undone": "changes.change",
    "open_output": "api.files",
}


def __getattr__(name: str) -> object:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
