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

import os
from typing import Any

from gvisor_kernel.guest.interpreter import is_plain, wrap_loader

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

    Once, in the kernel's process.
    """

    def wrap(create: Any) -> Any:
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

        return create_module

    wrap_loader("create_module", wrap)


def find_unset() -> list[str]:
    """Return the names of SPINS that are to be set, by what ``os.environ`` says."""
    if is_plain(PLAIN_NAME, os.environ):
        return []
    left = ("GOMP_SPINCOUNT",) if POLICY in os.environ else ()
    return [name for name in SPINS if name not in os.environ and name not in left]
