"""Objects of which each process has one: made when first needed, ended when the process exits."""

from __future__ import annotations

import atexit
import os
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

from gvisor_kernel.host.locks import ThreadLock


class PerProcess(ABC):
    """Base of such classes. A forked child gets an instance of its own: threads and child processes
    of the parent's are not in it."""

    _instance: ClassVar[Any] = None
    _lock: ClassVar[ThreadLock]

    def __init_subclass__(cls) -> None:
        cls._instance, cls._lock = None, ThreadLock()

    def __init__(self) -> None:
        self._pid = os.getpid()

    @classmethod
    def instance(cls) -> Self:
        """Return this process's instance. Any thread."""
        with cls._lock:
            instance = cls._instance
            if instance is None or instance.is_inherited:
                instance = cls._instance = cls()
                atexit.register(instance.end)
            return instance  # type: ignore[no-any-return]

    @property
    def is_inherited(self) -> bool:
        """Return whether this is a forked child's copy of its parent's instance."""
        return self._pid != os.getpid()

    @abstractmethod
    def end(self) -> None:
        """End what the instance has. Called when the process exits, also in a forked child with
        its parent's instance, which must do nothing there."""
