"""Why a kernel ended by itself, in words for the person who sees it in a cell."""

from __future__ import annotations

import signal
from contextlib import suppress

from gvisor_kernel.bridge.memory import MemoryWatch, describe_excess, format_size
from gvisor_kernel.bridge.wire import WireMessage, new_message
from gvisor_kernel.link.frames import Part


def explain_death(status: int, memory: MemoryWatch | None) -> str:
    """For an exit that nobody asked for. ``status`` as in ``subprocess``."""
    if memory is not None and memory.explains(status):
        return describe_excess(memory.used, memory.limit)
    reason = f"The kernel ended by itself, {describe_status(status)}."
    if status == -signal.SIGBUS and memory is not None:
        reason += (
            " So ends, among others, a program that maps more shared memory than "
            f"memory_limit, {format_size(memory.limit)}, has room for."
        )
    return reason


def explain_loss(reason: str, memory: MemoryWatch | None, panic: str = "") -> str:
    """For a sandbox that is gone with its kernel, because of ``reason`` as the link has it.

    ``panic``: what its runtime said as it failed.
    """
    if memory is not None and memory.has_killed():
        return describe_excess(memory.used, memory.limit)
    words = f' gVisor failed with "{panic}".' if panic else ""
    return f"The kernel's sandbox is gone: {reason.removesuffix('.')}.{words}"


def describe_status(status: int) -> str:
    """``with exit status 1``, ``by signal SIGKILL``."""
    if status >= 0:
        return f"with exit status {status}"
    with suppress(ValueError):
        return f"by signal {signal.Signals(-status).name}"
    return f"by signal {-status}"


def tell_death(reason: str, parent: Part) -> list[WireMessage]:
    """What a cell gets in the place of its end. ``parent``: the raw header of its request."""
    content = {
        "ename": "KernelDied",
        "evalue": reason,
        "traceback": [f"\x1b[0;31mKernelDied\x1b[0m: {reason}"],
    }
    idle = {"execution_state": "idle"}
    return [
        new_message("error", content, parent, b"error"),
        new_message("status", idle, parent, b"status"),
    ]
