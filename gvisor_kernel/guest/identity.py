"""Who PID 1 is, and who the kernel: two uids where the sandbox has them, as those of root.

PID 1 is uid 0, as whom a kernel can neither open its descriptors nor signal it. Its effective uid
is the kernel's until it serves, so that it can read code which only its owner may; and for moments
afterwards, to make what a kernel is to own and to reach what only a kernel may.
"""

from __future__ import annotations

import contextlib
import os
from typing import Iterator

from gvisor_kernel.guest import linux

INIT_ID = 0
"""PID 1's uid and gid."""

kernel_id = INIT_ID
"""The uid and gid of a kernel, as the sandbox counts them; PID 1's own where there is one alone."""


def learn() -> None:
    """Take ``kernel_id`` from the effective uid, before it is changed. See ``spec.oci``."""
    global kernel_id
    kernel_id = os.geteuid()


def be_init() -> None:
    """Be INIT_ID from here on, with all capabilities that are permitted."""
    if kernel_id != INIT_ID:
        _take(INIT_ID)
        linux.set_dumpable(False)  # else what /proc tells of it were the kernel's for moments


@contextlib.contextmanager
def as_kernel() -> Iterator[None]:
    """With the kernel's rights to files, and without capabilities."""
    with _for_now(kernel_id, INIT_ID):
        yield


@contextlib.contextmanager
def as_init() -> Iterator[None]:
    """With PID 1's rights, before ``be_init``."""
    with _for_now(INIT_ID, kernel_id):
        yield


@contextlib.contextmanager
def _for_now(number: int, afterwards: int) -> Iterator[None]:
    if number == afterwards:
        yield
        return
    _take(number)
    try:
        yield
    finally:
        _take(afterwards)


def _take(number: int) -> None:
    os.seteuid(INIT_ID)  # only as root of the sandbox may it change its gid
    os.setegid(number)
    os.seteuid(number)
