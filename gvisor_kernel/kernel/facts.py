"""Frozen facts about one kernel and its sandbox, as seen from outside, for whoever shows them.

Starts and ends nothing, and reads nothing from inside a sandbox.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from gvisor_kernel.bridge.deaths import Death
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.egress.kinds import Route
from gvisor_kernel.host.locks import PerProcess, ThreadLock
from gvisor_kernel.runtimes.base import MountView

State: TypeAlias = Literal["starting", "waiting", "idle", "busy", "ended"]
"""The words of Jupyter for a kernel. ``waiting``: its start waits for resources, such as those of a
cluster. ``idle``: also while its sandbox is paused until the next message, and while it
hibernates."""
StartKind: TypeAlias = Literal["cold", "snapshot", "spare", "restart"]
"""The way in which a kernel was started: in a new sandbox, in one restored from a snapshot, in one
that was restored ahead, or again in the sandbox of the kernel before it."""


@dataclass(frozen=True)
class Start:
    """The kind of a sandbox's first start, and the seconds that it took; while a kernel starts, the
    kind that is tried, and the seconds so far."""

    kind: StartKind
    seconds: float


@dataclass(frozen=True)
class Saved:
    """A kernel on the disk, since a Unix time, with a size in bytes."""

    since: float
    size: int


@dataclass(frozen=True)
class KernelFacts:
    """A kernel and its sandbox. Without a sandbox (it starts, or has ended) ``identity`` and
    ``directory`` are None.

    ``memory_used``: bytes at the last measurement, at most 0.1 s old. ``processes``: as the guest
    said last. ``received``, ``sent``: bytes on the links of this kernel so far.
    """

    state: State
    kernel_name: str
    folder: Path
    spec: SandboxSpec
    routes: tuple[Route, ...] = ()
    identity: str | None = None
    directory: Path | None = None
    mounts: tuple[MountView, ...] = ()
    transcripts: bool = False
    memory_used: int | None = None
    processes: int | None = None
    start: Start | None = None
    last_death: Death | None = None
    received: int = 0
    sent: int = 0
    waits_for: str = ""
    """The resource that its start waits for, such as one of a cluster."""
    node: str | None = None
    """The machine on which its sandbox runs, if that is another one."""
    saved: Saved | None = None
    """It hibernates, and goes on at the next request. Its ``state`` is idle."""


@dataclass(frozen=True)
class Left:
    """Files that a kernel has made or changed in /workspace, and that end with its sandbox.

    ``paths``: some of them; code of the sandbox has chosen the names. ``more``: there may be more
    than ``total``.
    """

    total: int
    more: bool
    paths: tuple[str, ...]


@dataclass(frozen=True)
class KernelEvent:
    """Something that has happened to a kernel of this process."""

    kernel_id: str
    kernel_name: str


@dataclass(frozen=True)
class Started(KernelEvent):
    """A kernel of this process was started."""

    start: Start


@dataclass(frozen=True)
class Hibernated(KernelEvent):
    """A kernel of this process was saved, and its sandbox ended."""

    saved: Saved
    seconds: float


@dataclass(frozen=True)
class Waking(KernelEvent):
    """A kernel of this process that hibernates was asked for something, and is to go on."""


@dataclass(frozen=True)
class Resumed(KernelEvent):
    """A kernel that hibernated goes on."""

    seconds: float


@dataclass(frozen=True)
class Rewound(KernelEvent):
    """A kernel of this process went back to a checkpoint, and goes on from there."""

    checkpoint: str
    seconds: float


@dataclass(frozen=True)
class Died(KernelEvent):
    """A kernel of this process ended, and nobody had asked for that."""

    death: Death


@dataclass(frozen=True)
class Ended(KernelEvent):
    """The sandbox of a kernel of this process has ended; its directory is still there.

    ``facts.last_death`` is None if the kernel's end was asked for. ``left``: None if the sandbox
    could not say.
    """

    facts: KernelFacts
    left: Left | None


Watcher: TypeAlias = Callable[[KernelEvent], None]
EndWatcher: TypeAlias = Callable[[Ended], None]


class KernelEvents(PerProcess):
    """Tells watchers what happens to the kernels of this process. Use ``instance()``. Any thread.

    A watcher is called on the bridge's loop, so it only passes the event on, and raises nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self._watchers: tuple[Watcher, ...] = ()
        self._end_watchers: tuple[EndWatcher, ...] = ()
        self._changing = ThreadLock()

    def watch(self, watcher: Watcher) -> None:
        """Call ``watcher`` for each event from now on."""
        with self._changing:
            self._watchers = (*self._watchers, watcher)

    def unwatch(self, watcher: Watcher) -> None:
        """Call ``watcher`` no more. Idempotent."""
        with self._changing:
            self._watchers = tuple(other for other in self._watchers if other != watcher)

    def watch_ends(self, watcher: EndWatcher) -> None:
        """Call ``watcher`` for each sandbox that ends, before its directory is removed.

        It is called in a worker thread, and waited for up to a second. It raises nothing.
        """
        with self._changing:
            self._end_watchers = (*self._end_watchers, watcher)

    def unwatch_ends(self, watcher: EndWatcher) -> None:
        """Call ``watcher`` no more. Idempotent."""
        with self._changing:
            self._end_watchers = tuple(one for one in self._end_watchers if one != watcher)

    def tell(self, event: KernelEvent) -> None:
        """Call all watchers."""
        for watcher in self._watchers:
            watcher(event)

    def tell_end(self, ended: Ended) -> None:
        """Call all watchers of ends."""
        for watcher in self._end_watchers:
            watcher(ended)

    def end(self) -> None:
        """Tell nobody any more. Called when the process exits."""
        self._watchers = ()
        self._end_watchers = ()
