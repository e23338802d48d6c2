"""What every runtime offers: a Runtime starts a Sandbox, and a Sandbox is one byte stream.

Interfaces only. How a sandbox is made stands in the modules beside this one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.host.folders import Identity


@dataclass(frozen=True)
class LaunchRequest:
    """Who wants a sandbox, and where: the facts that are not settings.

    ``kernel_name`` is the kernelspec's name, ``folder`` the notebook's folder (absolute),
    ``python`` the host's path of the interpreter that the kernel runs with (image ``host``),
    ``environment`` the server's environment: only the names that the spec lists are taken.
    ``ahead``: modules of that interpreter that PID 1 imports before it is asked for a kernel. It
    then has a kernel's environment itself, but for those names, and can become one by a fork.
    ``spare``: the sandbox is nobody's yet; see ``Sandbox.assign``.
    """

    kernel_name: str
    kernel_id: str
    folder: Path
    python: str
    environment: dict[str, str]
    ahead: tuple[str, ...] = ()
    spare: bool = False


@dataclass(frozen=True)
class MountView:
    """A host path and where a kernel sees it. ``identity``: which file of the host was mounted."""

    source: str
    target: str
    read_only: bool
    identity: Identity | None = field(default=None, compare=False)


class Sandbox(ABC):
    """A running sandbox. Its methods never raise on one that is dead already."""

    identity: str
    """``container_<ULID>--<name>--<hash>``."""
    directory: Path
    """This sandbox's private state directory (0700)."""
    log_path: Path
    """The log that ``gvisor-kernel logs`` shows."""
    transcripts: Path | None
    """Where the bridge records; seen read-only at /mnt/transcripts. None: not recorded."""
    link_in: int
    """File descriptor, non-blocking: the host writes, PID 1 reads on stdin."""
    link_out: int
    """File descriptor, non-blocking: PID 1 writes on stdout, the host reads."""
    exit_fd: int
    """Becomes readable when the sandbox's own process on the host has ended (a pidfd)."""
    helper_fd: int = -1
    """Likewise for a process that it cannot do without, where it does not notice that itself."""
    mounts: tuple[MountView, ...]
    kernel_environment: dict[str, str]
    """The whole environment of the kernel process."""
    python: str
    """The interpreter's path inside."""
    workdir: str
    """The kernel's working directory inside."""
    pauses: bool = True
    """Whether ``pause`` stops it."""

    @abstractmethod
    def poll(self) -> int | None:
        """None while the sandbox's process runs, else a number without meaning. Does not block."""

    @abstractmethod
    def memory_used(self) -> int | None:
        """Bytes of memory that the sandbox holds now; None when it is gone. Microseconds."""

    def memory_kills(self) -> int:
        """How often the host's kernel ended a process in here for want of memory, if it tells."""
        return 0

    @abstractmethod
    def stderr_tail(self) -> str:
        """The last lines (at most 4 KiB, printable) that runtime and PID 1 wrote to stderr."""

    def find_panic(self) -> str:
        """What the runtime said as it ended by an error of its own: printable, at most 200
        characters; empty where it did not. Does not block, never raises."""
        return ""

    @abstractmethod
    def kill(self) -> None:
        """End every process of the sandbox at once. Does not wait, thread-safe, never raises."""

    @abstractmethod
    def assign(self, kernel_id: str) -> None:
        """Write down that a spare sandbox is the one of ``kernel_id`` from here on. Quiet."""

    @abstractmethod
    def pause(self) -> None:
        """Stop the sandbox: it uses no CPU from here on, and can be killed and closed as ever.

        Does not block. Pausing a paused one changes nothing.
        """

    def is_busy(self) -> bool:
        """Whether code of the sandbox runs at this moment, though it is paused. Milliseconds.

        Does so for ever, where it was stopped while its code waits for it without a system call.
        """
        return False

    @abstractmethod
    def resume(self) -> None:
        """Let a paused sandbox go on, as if no time had passed but on its clocks."""

    @abstractmethod
    def verify(self, said: Mapping[str, str] | None = None) -> None:
        """Check from outside that this is a gVisor sandbox as demanded (after hello). Blocks.

        ``said``: what its guest said of itself, before any kernel ran. None: it was restored.

        :raises IsolationError: it is not; it has been ended.
        """

    @abstractmethod
    def checkpoint(self, directory: Path, seconds: float) -> None:
        """Write the image of this sandbox into ``directory``, which is empty, and end it. Blocks.

        The image holds the sandbox's memory: whoever reads it reads that. What waits unread in
        the link towards the guest becomes part of it. The sandbox is still to be closed, also
        after an error.

        :raises SnapshotError: it could not be written, or not within ``seconds``.
        """

    @abstractmethod
    def close(self) -> None:
        """Kill, wait, and remove all that the sandbox had: processes, cgroup, mounts, files.

        Blocks (bounded: seconds), idempotent, thread-safe, never raises: what could not be removed
        is logged and left to the sweep. Also closes the file descriptors above.
        """


class Runtime(ABC):
    """Starts sandboxes and finds those that a dead owner left."""

    name: str
    restores: bool = True
    """Whether it makes images of its sandboxes, and starts from them."""

    @abstractmethod
    def start(
        self, spec: SandboxSpec, request: LaunchRequest, image: Path | None = None
    ) -> Sandbox:
        """Start a sandbox whose PID 1 is the guest. Blocks; called in a worker thread.

        Returns as soon as the link's two ends exist and the runtime's process lives; whether
        the guest answers is the bridge's to wait for. Raises RuntimeMissing, LaunchError,
        IsolationError, SettingError or StateError, with nothing left behind.

        ``image``: a directory that ``checkpoint`` has filled. The sandbox goes on from there,
        with the mounts, limits and place of ``spec`` and ``request``; what a restored process
        sees of the time between is the guest's to put right. Raises SnapshotError where the
        image cannot be restored.
        """

    @abstractmethod
    def describe(self, spec: SandboxSpec, request: LaunchRequest) -> dict[str, Any]:
        """What of this host ``start`` would make a sandbox of, by name; values are JSON's.

        ``config`` is the OCI runtime specification. An image restores where all of it is as it
        was, but for the places of a session's own mounts, and the memory limit. Milliseconds,
        makes nothing, raises as ``start`` does.
        """

    def shows_now(self, sandbox: Sandbox, spec: SandboxSpec, request: LaunchRequest) -> bool:
        """Whether ``sandbox`` was made of the very folders that ``start`` would show now.

        A folder may have another's name by now. Milliseconds, makes nothing. Raises as ``start``
        does. For runtimes that restore.
        """
        return False

    def advise(self, words: str) -> str:
        """What a person can do about a sandbox that ended while it started, writing ``words``."""
        return ""

    @abstractmethod
    def sweep(self) -> list[str]:
        """Remove what dead owners left of this user's sandboxes; the identities, for a log."""
