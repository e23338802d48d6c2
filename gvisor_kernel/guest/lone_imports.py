"""Imports of PID 1 before it runs anybody's code: without locks, and with each path looked at once.

CPython takes some five locks for each module that it imports, so that two threads do not import it
at once, and reads the clock for each. For about a second after a sandbox has booted, a reading is a
system call: 4,193 of them while ipykernel is imported, and 320 without the locks. It also asks for
the status of each module's file twice, and of its directory for each module.

That is right in a kernel, where threads import, and where packages are installed beside those that
are imported. PID 1 has one thread, and its packages are read-only.
"""

from __future__ import annotations

import _thread
import contextlib
import importlib
import os
from typing import Any, Dict, Iterator

LOCKS, STATUS = "_ModuleLockManager", "_path_stat"
"""The names in importlib's two modules that are replaced."""


@contextlib.contextmanager
def lone_imports() -> Iterator[None]:
    """Import like that inside the block, until a second thread has been started.

    Does nothing if there is one already, or if this CPython's importlib lacks one of the names.
    """
    bootstrap: Any = importlib._bootstrap
    external: Any = importlib._bootstrap_external
    if not hasattr(bootstrap, LOCKS) or not hasattr(external, STATUS) or not _is_alone():
        yield
        return
    locks: Any = getattr(bootstrap, LOCKS)
    status: Any = getattr(external, STATUS)
    seen: Dict[str, os.stat_result] = {}

    class Manager:
        """The context of one import."""

        def __init__(self, name: str) -> None:
            self._lock = None if _is_alone() else locks(name)

        def __enter__(self) -> None:
            if self._lock is not None:
                self._lock.__enter__()

        def __exit__(self, *args: Any) -> None:
            if self._lock is not None:
                self._lock.__exit__(*args)

    def path_status(path: str) -> os.stat_result:
        if not _is_alone():
            return status(path)  # type: ignore[no-any-return]
        if path not in seen:
            seen[path] = status(path)
        return seen[path]

    setattr(bootstrap, LOCKS, Manager)
    setattr(external, STATUS, path_status)
    try:
        yield
    finally:
        setattr(bootstrap, LOCKS, locks)
        setattr(external, STATUS, status)


def _is_alone() -> bool:
    """Return whether Python has started no thread that lives."""
    return not _thread._count()
