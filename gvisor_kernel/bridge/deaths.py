"""The death of a kernel as data, and the words for it: an end that nobody asked for.

``Death`` goes from where it is noticed to where it is shown; no sentence is read again. Each edge
calls ``describe_death`` once, with its own advice for a kernel that needs more memory.
"""

from __future__ import annotations

import shlex
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from gvisor_kernel.bridge.addresses import KernelIdentity
from gvisor_kernel.bridge.limits import MemoryWatch
from gvisor_kernel.bridge.wire import WireMessage, new_message
from gvisor_kernel.link.frames import Part
from gvisor_kernel.shown_text import describe_size

DeathKind: TypeAlias = Literal["memory", "sandbox", "signal", "exit"]
"""The cause of a kernel's death: over its memory limit, with its sandbox, by a signal, by an exit
of its own."""
COMMAND = "gvisor-kernel install --update --name NAME --set memory_limit={more}"
RAISE_SETTING = (
    "To allow more, raise the setting memory_limit in Jupyter's configuration, if that sets it, or"
    f" type: {COMMAND} (NAME: the kernelspec's), shut the kernel down and start it again."
)
"""Advice where a person has Jupyter's settings. ``{more}``: twice the limit."""


@dataclass(frozen=True)
class Death:
    """An end that nobody asked for. Beside ``when`` it has the facts of its kind.

    ``status``: of an exit or a signal, as in ``subprocess``. ``used`` and ``limit``: bytes of
    memory; an exit by SIGBUS has the limit, too, which may be its cause. ``loss``: why the sandbox
    is gone, as the link or the engine says. ``panic``: what the runtime said as it failed.
    ``last_line``: the kernel's last output, bounded, in its own words.
    """

    kind: DeathKind
    status: int = 0
    used: int = 0
    limit: int = 0
    loss: str = ""
    panic: str = ""
    last_line: str = ""
    when: float = field(default_factory=time.time)
    """Seconds since the epoch."""


End: TypeAlias = Death | str
"""Why there is no kernel: its death, or in words who ended it."""


def find_death(status: int, memory: MemoryWatch | None, last_line: str = "") -> Death:
    """Return the death of a kernel with that exit status. ``last_line``: if it may explain it."""
    if memory is not None and memory.explains(status):
        return Death("memory", used=memory.used, limit=memory.limit)
    limit = memory.limit if memory is not None and status == -signal.SIGBUS else 0
    kind: DeathKind = "signal" if status < 0 else "exit"
    return Death(kind, status=status, limit=limit, last_line=last_line)


def find_loss(reason: str, memory: MemoryWatch | None, panic: str = "") -> Death:
    """Return the death of a kernel with its sandbox; ``reason`` is the link's or the engine's."""
    if memory is not None and memory.has_killed():
        return Death("memory", used=memory.used, limit=memory.limit)
    return Death("sandbox", loss=reason, panic=panic)


def advise_more_memory(identity: KernelIdentity) -> str:
    """Return the advice to somebody whose kernel needs more memory, in the place of RAISE_SETTING.

    It names the command for the kernel's own kernelspec, and the file that it changes.
    """
    if not identity.kernelspec:
        return RAISE_SETTING
    name, file = (
        text.replace("{", "{{").replace("}", "}}")
        for text in (shlex.quote(identity.name), identity.kernelspec)
    )
    return (
        f"To allow more, type: {COMMAND.replace('NAME', name)} (it changes {file}), shut the kernel"
        " down and start it again; a restart keeps its limit."
    )


def describe_death(death: Death, more_memory: str = RAISE_SETTING) -> str:
    """Return why a kernel died, as sentences. ``more_memory``: the advice, as RAISE_SETTING."""
    if death.kind == "memory":
        fact = (
            f"The kernel used {describe_size(death.used)} of memory; its limit is"
            f" {describe_size(death.limit)}. It was ended. "
        )
        more = describe_size(2 * death.limit).replace(" ", "")  # one word of a command
        return (fact + more_memory.format(more=more)).rstrip()
    if death.kind == "sandbox":
        words = f' gVisor failed with "{death.panic}".' if death.panic else ""
        return f"The kernel's sandbox is gone: {death.loss.removesuffix('.')}.{words}"
    return f"The kernel ended unexpectedly {describe_exit(death)}"


def describe_exit(death: Death) -> str:
    """Return how the process of a kernel ended, from ``with exit status 1.`` on."""
    text = f"{describe_status(death.status)}."
    if death.limit:
        text += (
            " One possible cause is a program that uses more shared memory than memory_limit "
            f"({describe_size(death.limit)}) allows."
        )
    return text + (f" Its last output was: {death.last_line}" if death.last_line else "")


def describe_end(end: End, more_memory: str = RAISE_SETTING) -> str:
    """Return why there is no kernel, as sentences."""
    return end if isinstance(end, str) else describe_death(end, more_memory)


def describe_status(status: int) -> str:
    """Return a phrase such as ``with exit status 1`` or ``by signal SIGKILL``."""
    if status >= 0:
        return f"with exit status {status}"
    with suppress(ValueError):
        return f"by signal {signal.Signals(-status).name}"
    return f"by signal {-status}"


def make_death_messages(reason: str, parent: Part, name: str = "KernelDied") -> list[WireMessage]:
    """Return the messages that end a cell whose kernel died: an error, then idle.

    ``reason``: why, as sentences. ``parent`` is the raw header of the cell's request.
    """
    content = {
        "ename": name,
        "evalue": reason,
        "traceback": [f"\x1b[0;31m{name}\x1b[0m: {reason}"],
    }
    idle = {"execution_state": "idle"}
    return [
        new_message("error", content, parent, b"error"),
        new_message("status", idle, parent, b"status"),
    ]


def make_refusal(reason: str, request: WireMessage) -> list[WireMessage]:
    """Return the messages that answer ``request`` by an error: what is shown, then the reply."""
    content = {"status": "error", "ename": "NotResumed", "evalue": reason, "traceback": []}
    kind = request.kind.replace("_request", "_reply")
    reply = new_message(kind, {**content, "execution_count": 0}, request.header, b"")
    shown = make_death_messages(reason, request.header, "NotResumed")
    return [
        *(shown if request.kind == "execute_request" else []),
        replace(reply, identities=request.identities),
    ]


def make_note(text: str, parent: Part) -> WireMessage:
    """Return the message that shows a line of ours in a cell."""
    content = {"name": "stderr", "text": f"{text[:1].upper()}{text[1:]}.\n"}
    return new_message("stream", content, parent, b"stream.stderr")
