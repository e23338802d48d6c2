"""The identity of a kernel, and that of a snapshot from which a kernel is restored."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SnapshotRun:
    """The kernel in a snapshot.

    ``run`` is the run in which it was taken, and ``key`` signed that kernel's messages inside the
    sandbox. A restored kernel runs ``code`` before any message of a client; a kernel that adopted
    a new key by itself runs it only with ``always``. ``told`` means that the kernel still has to
    receive environment variables, which is impossible behind the relay.
    """

    run: int
    key: str
    code: str = ""
    always: bool = False
    told: bool = False

    def __repr__(self) -> str:
        return f"SnapshotRun(run={self.run}, key=…)"


@dataclass(frozen=True)
class KernelIdentity:
    """The kernel as its clients know it.

    ``key`` is the host key, which only clients know. ``memory_limit`` is in bytes.
    """

    name: str
    key: bytes
    signature_scheme: str
    memory_limit: int
    idle_stop: bool = False
    """True if the sandbox may be stopped while the kernel is idle."""
