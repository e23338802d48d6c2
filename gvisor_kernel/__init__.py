"""Jupyter kernels that run inside gVisor sandboxes.

The names of the Python API (``gvisor_kernel/api``) are imported when they are first used: the guest
imports this package inside a sandbox, where only the standard library is available.
"""

__version__ = "0.1.0"

__all__ = [
    "AsyncSandbox",
    "AsyncSandboxPool",
    "CodeFailed",
    "Execution",
    "Result",
    "Sandbox",
    "SandboxPool",
    "__version__",
]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gvisor_kernel.api.async_sandbox import AsyncSandbox
    from gvisor_kernel.api.execution import CodeFailed, Execution, Result
    from gvisor_kernel.api.pool import AsyncSandboxPool, SandboxPool
    from gvisor_kernel.api.sandbox import Sandbox

_API = {
    "AsyncSandbox": "async_sandbox",
    "AsyncSandboxPool": "pool",
    "CodeFailed": "execution",
    "Execution": "execution",
    "Result": "execution",
    "Sandbox": "sandbox",
    "SandboxPool": "pool",
}


def __getattr__(name: str) -> object:
    module = _API.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.api.{module}"), name)
