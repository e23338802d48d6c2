"""What the bridge is told of a kernel, and of an image that one is restored from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SnapshotRun:
    """What the bridge has to know of an image: the run that it was taken in, and the key that
    signed that kernel's messages inside.

    ``code``: what a kernel restored from it runs before anything of a client's; ``always``: also
    one that has become another by itself. ``told``: the kernel lacks variables that it has to be
    told, which one behind the relay cannot be.
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
    """What the bridge has to know of a kernel. ``key`` is the host key, for clients alone."""

    name: str
    key: bytes
    signature_scheme: str
    memory_limit: int
    idle_stop: bool = False
    """Whether its sandbox may be stopped while it is idle."""
