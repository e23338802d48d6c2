"""The runtimes: how a sandbox is made. ``get_runtime`` is the way to them."""

from __future__ import annotations

import os

from gvisor_kernel.config.settings import find_entry
from gvisor_kernel.errors import GvisorKernelError, RuntimeMissing
from gvisor_kernel.host.locks import ThreadLock
from gvisor_kernel.runtimes.base import Runtime, SnapshotRuntime
from gvisor_kernel.shown_text import printable_name

_runtimes: dict[str, Runtime] = {}
_lock = ThreadLock()


def get_runtime(name: str) -> Runtime:
    """Return the runtime called ``name``. There is one instance per process. Any thread.

    The first call imports the runtime: nobody who wants another one waits for that.

    :raises RuntimeMissing: when it is not installed, or cannot be imported
    """
    runtime = _runtimes.get(name)
    if runtime is None:
        made = make_runtime(name)
        with _lock:
            runtime = _runtimes.setdefault(name, made)
    return runtime


def get_snapshot_runtime(name: str) -> SnapshotRuntime:
    """Return the runtime called ``name``, as one that makes snapshots.

    :raises RuntimeMissing: as ``get_runtime``
    :raises SnapshotError: when it makes none
    """
    runtime = get_runtime(name)
    if not isinstance(runtime, SnapshotRuntime):
        raise runtime.explain_no_snapshots()
    return runtime


def make_runtime(name: str) -> Runtime:
    """Return another instance of the runtime ``name``.

    :raises RuntimeMissing: when it is not installed, or cannot be imported
    """
    try:
        made = find_entry(name).make()
    except GvisorKernelError:
        raise
    except (Exception, SystemExit) as error:  # whatever a stranger's package raises
        raise RuntimeMissing(
            f"The runtime {name} cannot be made: {type(error).__name__}:"
            f" {printable_name(str(error))}.",
            "install its package again.",
        ) from error
    if not isinstance(made, Runtime) or made.name != name:
        raise RuntimeMissing(
            f"The entry of the runtime {name} makes no such runtime, but {made!r:.100}.",
            "ask its author; see CONTRIBUTING, A runtime.",
        )
    return made


def _reset_after_fork() -> None:
    """Give a forked child runtimes of its own: threads of its parent may be using the old ones."""
    _runtimes.clear()


os.register_at_fork(after_in_child=_reset_after_fork)

__all__ = ["get_runtime", "get_snapshot_runtime", "make_runtime"]
