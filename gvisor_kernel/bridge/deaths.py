"""Explains to the user, in the cell that runs, why a kernel died, or what its start waits for."""

from __future__ import annotations

import signal
from contextlib import suppress
from typing import Literal

from gvisor_kernel.bridge.memory import MemoryWatch
from gvisor_kernel.bridge.wire import WireMessage, new_message
from gvisor_kernel.link.frames import Part
from gvisor_kernel.shown_text import describe_size

UNEXPECTED = "The kernel ended unexpectedly "
"""The beginning of the reason for an exit that was not requested."""
EXCESS = "The kernel used "
MORE_MEMORY = " To allow more, raise the setting memory_limit"
"""What follows it in a reason is advice for whoever has the settings."""
LOSS = "The kernel's sandbox is gone: "
LAST_OUTPUT = " Its last output was: "
"""Text before the kernel's own words, which end a reason."""


def classify(reason: str) -> Literal["memory", "sandbox", "signal", "exit"]:
    """Return the class of a reason that this module made, for counts."""
    if reason.startswith(EXCESS):
        return "memory"
    if reason.startswith(LOSS):
        return "sandbox"
    return "signal" if reason.startswith(f"{UNEXPECTED}by signal") else "exit"


def explain_death(status: int, memory: MemoryWatch | None, last_line: str = "") -> str:
    """Return the reason for an exit that was not requested. ``status`` is as in ``subprocess``.

    ``last_line``: what the kernel wrote last to stderr, if that may explain it.
    """
    if memory is not None and memory.explains(status):
        return describe_excess(memory.used, memory.limit)
    reason = f"{UNEXPECTED}{describe_status(status)}."
    if last_line:
        last_line = f"{LAST_OUTPUT}{last_line}"
    if status == -signal.SIGBUS and memory is not None:
        reason += (
            " One possible cause is a program that uses more shared memory than memory_limit "
            f"({describe_size(memory.limit)}) allows."
        )
    return reason + last_line


def explain_loss(reason: str, memory: MemoryWatch | None, panic: str = "") -> str:
    """Return the reason for a sandbox that ended with its kernel; ``reason`` is the link's.

    ``panic``: what the runtime said as it failed, if it did.
    """
    if memory is not None and memory.has_killed():
        return describe_excess(memory.used, memory.limit)
    words = f' gVisor failed with "{panic}".' if panic else ""
    return f"{LOSS}{reason.removesuffix('.')}.{words}"


def describe_excess(used: int, limit: int) -> str:
    """Return the reason for a kill over the memory limit, for the user who sees it in a cell."""
    return (
        f"{EXCESS}{describe_size(used)} of memory; its limit is {describe_size(limit)}. "
        f"It was ended.{MORE_MEMORY} (for example "
        f'c.GVisorProvisioner.memory_limit = "{describe_size(2 * limit)}" in Jupyter\'s '
        "configuration, memory_limit in the kernelspec, or memory= of a Sandbox), and restart the "
        "kernel."
    )


def describe_status(status: int) -> str:
    """Return a phrase such as ``with exit status 1`` or ``by signal SIGKILL``."""
    if status >= 0:
        return f"with exit status {status}"
    with suppress(ValueError):
        return f"by signal {signal.Signals(-status).name}"
    return f"by signal {-status}"


def make_death_messages(reason: str, parent: Part) -> list[WireMessage]:
    """Return the messages that end a cell whose kernel died: an error, then idle.

    ``parent`` is the raw header of the cell's request.
    """
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


def make_note(text: str, parent: Part) -> WireMessage:
    """Return the message that shows a line of ours in a cell."""
    content = {"name": "stderr", "text": f"{text[:1].upper()}{text[1:]}.\n"}
    return new_message("stream", content, parent, b"stream.stderr")
