"""The uids of PID 1 and of the kernel: two of them if the sandbox has two, as a sandbox of root.

PID 1 is uid 0, so that a kernel can neither open its descriptors nor signal it. Until PID 1 serves
the link, its effective uid is the kernel's, so that it can read code that only the owner may read.
Later it changes its effective uid for moments: to create what a kernel must own, and to reach what
only a kernel may reach.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from gvisor_kernel.guest import linux

INIT_ID = 0
"""The uid and gid of PID 1 inside the sandbox."""

kernel_id = INIT_ID
"""The uid and gid of a kernel inside the sandbox. PID 1's own if the sandbox has only one."""


def learn_kernel_id() -> None:
    """Set ``kernel_id`` to the effective uid. Call it before any change; see ``spec.oci``."""
    global kernel_id
    kernel_id = os.geteuid()


def become_init() -> None:
    """Change to INIT_ID for good, with all permitted capabilities."""
    if kernel_id != INIT_ID:
        _set_effective_ids(INIT_ID)
        linux.set_dumpable(False)  # otherwise /proc/1 would belong to the kernel's uid for moments


@contextlib.contextmanager
def as_kernel() -> Iterator[None]:
    """Use the kernel's rights to files and no capabilities inside the block."""
    with _switched(kernel_id, INIT_ID):
        yield


@contextlib.contextmanager
def as_init() -> Iterator[None]:
    """Use PID 1's rights inside the block. Only before ``become_init``."""
    with _switched(INIT_ID, kernel_id):
        yield


@contextlib.contextmanager
def _switched(number: int, afterwards: int) -> Iterator[None]:
    if number == afterwards:
        yield
        return
    _set_effective_ids(number)
    try:
        yield
    finally:
        _set_effective_ids(afterwards)


def _set_effective_ids(number: int) -> None:
    os.seteuid(INIT_ID)  # only root of the sandbox may change the gid
    os.setegid(number)
    os.seteuid(number)
