"""Makes threads of numerical libraries sleep sooner when they have no work.

OpenBLAS's threads look for 2**28 cycles, some 100 ms, after each call, and numpy and scipy have
such threads each; libgomp's look 300,000 times. Meanwhile they hold the cores that the code and
gVisor's kernel need. libgomp itself looks 1,000 times where threads outnumber the cores, as they do
in a sandbox, whose kernel has threads of its own.

Both read a variable when they are loaded, and nothing later. So the variables are there while an
extension module is loaded, and for C alone: ``os.environ`` never has them, and a program that a
cell starts gets them only if another thread starts it in that moment.
"""

from __future__ import annotations

import functools
import importlib
import os
from types import FunctionType
from typing import Any

from gvisor_kernel.guest.interpreter import is_plain

PLAIN_NAME = "threads"
SPINS = {"OPENBLAS_THREAD_TIMEOUT": "25", "GOMP_SPINCOUNT": "1000"}
"""Binary logarithm of cycles (some 13 ms), and a number of looks. In times of a local kernel (quiet
machine, medians of nine rounds): a grid search took 0.7 with 24, 0.98 with 25, 1.44 with 26 and 3.4
unchanged; eigenvalues of one matrix 1.46, 1.2, 1.1 and 1.1, as a thread that sleeps must be woken.
With 16 and less, calls of two threads took up to 40 times as long."""
POLICY = "OMP_WAIT_POLICY"
"""A variable of the user with which libgomp chooses another count."""


def shorten_spins() -> None:
    """Let libraries of extension modules be loaded with SPINS, but for variables that are set.

    Does nothing if this CPython's importlib has no such loader, or if it was done.
    """
    external: Any = importlib._bootstrap_external
    create = getattr(getattr(external, "ExtensionFileLoader", None), "create_module", None)
    if not isinstance(create, FunctionType) or hasattr(create, "__wrapped__"):
        return

    def create_module(self: Any, spec: Any) -> Any:
        names = find_unset()
        for name in names:
            os.putenv(name, SPINS[name])
        try:
            return create(self, spec)
        finally:
            for name in names:
                if name not in os.environ:  # the module may have set it
                    os.unsetenv(name)

    # A traceback leaves out what is named like importlib's own.
    code = create_module.__code__.replace(co_filename=create.__code__.co_filename)
    create_module.__code__ = code
    functools.update_wrapper(create_module, create)
    external.ExtensionFileLoader.create_module = create_module


def find_unset() -> list[str]:
    """Return the names of SPINS that are to be set, by what ``os.environ`` says."""
    if is_plain(PLAIN_NAME, os.environ):
        return []
    left = ("GOMP_SPINCOUNT",) if POLICY in os.environ else ()
    return [name for name in SPINS if name not in os.environ and name not in left]
