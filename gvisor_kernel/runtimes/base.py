"""The interfaces of a runtime: a ``Runtime`` starts a ``Sandbox``, which is one byte stream.

Interfaces only. The modules beside this one implement them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from gvisor_kernel.config.settings import DEFAULT_RUNTIME, SandboxSpec
from gvisor_kernel.environments.environment import Base
from gvisor_kernel.errors import SnapshotError
from gvisor_kernel.host.folders import Identity
from gvisor_kernel.images import PythonReport, RootImage
from gvisor_kernel.runtimes.checks import RuntimeCheck
from gvisor_kernel.runtimes.state.records import Keeper, Record


@dataclass(frozen=True)
class LaunchRequest:
    """The facts of a start that are not settings: which kernel, where, with which interpreter."""

    kernel_name: str
    """The name of the kernelspec."""
    kernel_id: str
    folder: Path
    """The notebook's folder, as an absolute path."""
    python: str
    """The host path of the interpreter that the kernel runs with (image ``host`` only)."""
    environment: dict[str, str]
    """The server's environment. Only the variables that the spec names are taken from it."""
    ahead: tuple[str, ...] = ()
    """Modules that PID 1 imports before it is asked for a kernel. PID 1 then has a kernel's
    environment, without the variables that the spec names, and can fork into a kernel."""
    spare: bool = False
    """The sandbox belongs to no kernel yet; see ``CheckpointedSandbox.assign``."""
    saved: Mapping[str, Any] | None = None
    """Facts that a snapshot of this kernel depends on beside its sandbox, as JSON. For a runtime
    that ``finds_snapshots``; None: the start must be cold."""
    branch: str = ""
    """Of a branch the value of ``branch_outputs`` that it was made with."""
    saved_in: Path | None = None
    """The directory of the sandbox that this one goes on from, which becomes its own."""
    kept: Mapping[str, str] = field(default_factory=dict)
    """Paths of copies that such a sandbox is shown in place of what is at a path of the host, by
    that path."""
    unfit: str = ""
    """The key of a snapshot from which this kernel could not be restored: such a runtime removes
    it."""


@dataclass(frozen=True)
class FoundSnapshot:
    """The snapshot that a sandbox was restored from, where its runtime has found that itself.

    ``run`` and ``sandbox_key`` are those of the kernel in it, ``language`` is what that reported.
    ``preloaded``: what it has imported ahead, unchecked, as the runtime was told.
    """

    key: str
    run: int
    sandbox_key: str
    language: str
    preloaded: object = None


@dataclass(frozen=True)
class Builder:
    """A command that makes a snapshot: it reads ``order`` from stdin, and ends when that ends.

    ``place``: where it makes the snapshot, as a word for a person.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    order: bytes
    place: str


@dataclass(frozen=True)
class MountView:
    """A host path (``source``) and the path inside the sandbox (``target``) where it is seen."""

    source: str
    target: str
    read_only: bool
    identity: Identity | None = field(default=None, compare=False)
    """Device and inode of what was mounted: the name may lead to another file later."""


@dataclass(frozen=True)
class KernelView:
    """The sandbox as a kernel process finds it."""

    mounts: tuple[MountView, ...]
    """The host paths that the sandbox shows."""
    environment: Mapping[str, str]
    """The whole environment of the kernel process."""
    python: str
    """The interpreter's path inside the sandbox."""
    workdir: str
    """The kernel's working directory inside the sandbox."""
    transcripts: Path | None
    """The directory where the bridge records, seen inside as /mnt/transcripts (read-only). None:
    nothing is recorded."""

    def moved(self, old: str, new: str) -> KernelView:
        """Return the view after a folder of the host was moved."""
        mounts = (replace(m, source=new) if m.source == old else m for m in self.mounts)
        return replace(self, mounts=tuple(mounts))


class Sandbox(ABC):
    """A running sandbox. What only some can do is in the protocols below, and asked for by type.

    All methods may be called on a sandbox that has ended; only those that list an exception raise
    then. Those that do not block may be called on the bridge's loop.
    """

    identity: str
    """``container_<ULID>--<name>--<hash>``."""
    directory: Path
    """The private state directory of this sandbox (mode 0700)."""
    log_path: Path
    """The log that ``gvisor-kernel logs`` shows."""
    view: KernelView
    link_in: int
    """File descriptor, non-blocking: the host writes here, PID 1 reads it as stdin."""
    link_out: int
    """File descriptor, non-blocking: PID 1 writes to it as stdout, the host reads here."""
    exit_fd: int
    """File descriptor that becomes readable when the sandbox's process on the host has ended."""
    gofer_fd: int = -1
    """The same for a process that the sandbox needs but whose end it does not notice (the gofer).
    -1: there is none."""
    node: str | None = None
    """The machine on which it runs, if that is another one."""

    @abstractmethod
    def poll(self) -> int | None:
        """Return None while the sandbox's process runs, otherwise a number without a meaning.

        Does not block. Any thread.
        """

    @abstractmethod
    def memory_used(self) -> int | None:
        """Return how many bytes of memory the sandbox holds, or None when it has ended.

        0 while it starts and nothing is known. Takes microseconds, does not block. Any thread.
        """

    def memory_kills(self) -> int:
        """Return how many processes of the sandbox the host's OOM killer has ended.

        0 where the host does not tell. Does not block.
        """
        return 0

    def note_given_back(self, size: int) -> None:  # noqa: B027  # where there is a record
        """Note how many bytes its kernel has given back when it rested, for ``list``.

        Blocks while a record is written, never raises.
        """

    @abstractmethod
    def stderr_tail(self) -> str:
        """Return the last lines that the runtime and PID 1 wrote to stderr.

        At most 4 KiB of printable text. Has the last lines of a sandbox that has ended: it waits
        until they were read, which takes milliseconds, and at most 2 s on a busy machine.
        """

    def find_panic(self) -> str:
        """Return the runtime's message if it ended by an error of its own: printable, at most 200
        characters; else empty. Does not block, never raises."""
        return ""

    def find_cause(self) -> str:
        """Return the engine's reason for the end of this sandbox, as a clause without a full stop;
        empty where it gives none. Does not block, never raises."""
        return ""

    @abstractmethod
    def kill(self) -> None:
        """Kill every process of the sandbox, without waiting for their end.

        Does not remove anything; see ``close``. Never raises. Any thread.
        """

    @abstractmethod
    def verify(self, said: Mapping[str, str] | None = None) -> None:
        """Check from outside that this is a gVisor sandbox with the isolation that was demanded.

        Blocks. Called after the guest's HELLO and before a kernel runs.

        ``said`` is what the guest reported of its system before any kernel ran. None: there is no
        such report, as of a restored sandbox.

        :raises IsolationError: when a check fails; the sandbox has been killed by then, and is
            still to be closed
        """

    @abstractmethod
    def close(self) -> None:
        """Kill the sandbox, wait for its end, and remove its processes, cgroup, mounts and files.

        Also closes the file descriptors above. Blocks for seconds, and as long as outputs are
        copied out of an engine. Idempotent, never raises: what could not be removed is logged and
        left to the next sweep. Any thread.
        """


@runtime_checkable
class PausableSandbox(Protocol):
    """A sandbox that can be stopped for a while."""

    def pause(self) -> None:
        """Stop the sandbox, so that it uses no CPU time. It can still be killed and closed.

        Does nothing to a sandbox that is stopped already. Does not block, never raises.
        """

    def resume(self) -> None:
        """Let a paused sandbox continue. Only its clocks show that time has passed.

        Does nothing to a sandbox that runs. Does not block, never raises.
        """

    def is_busy(self) -> bool:
        """Return whether code of the sandbox still runs although it was paused: code that polls
        memory runs for ever, and the caller then resumes the sandbox. Takes milliseconds."""


@runtime_checkable
class MeasuredSandbox(Protocol):
    """A sandbox of which the host sees whether code runs in it."""

    def find_code_processes(self) -> list[int]:
        """Return the host's processes in which code of the sandbox runs. Takes milliseconds."""

    def measure_code(self, pids: list[int]) -> int | None:
        """Return the CPU time in ns that ``pids`` of ``find_code_processes`` have used so far.

        None if one of them has ended, or there are none. Takes microseconds, never raises. It is
        the same after a while if no code has run: a new process begins with code of another.
        """


@runtime_checkable
class CheckpointedSandbox(Protocol):
    """A sandbox of a ``SnapshotRuntime``: it can be saved, and restored for nobody yet."""

    def checkpoint(self, directory: Path, seconds: float) -> None:
        """Save this sandbox, which goes on, as a snapshot into ``directory``, which is empty.

        Blocks for at most ``seconds`` and a few seconds more. The snapshot holds the sandbox's
        memory, so whoever can read the snapshot can read that. Bytes that wait unread in the link
        towards the guest become part of it.

        :raises SnapshotError: when the snapshot could not be written within ``seconds``, or not at
            all
        """

    def assign(self, kernel_id: str) -> None:
        """Record that this spare sandbox belongs to the kernel ``kernel_id`` from now on, and put
        its folder of outputs in its place, if that was missing.

        The caller is the pool that hands the sandbox to a start. A record that cannot be written
        stays as it is.

        :raises OSError: when something else is in that place now; the caller closes the sandbox
        """


@runtime_checkable
class SavedSandbox(Protocol):
    """A ``CheckpointedSandbox`` whose kernel can hibernate in the sandbox's directory."""

    identity: str
    directory: Path
    view: KernelView

    def find_shown_files(self) -> dict[str, tuple[int, int, int]]:
        """Return size, time of change (ns) and inode of the programs and libraries of the host that
        it has open, by path. Blocks for milliseconds.

        :raises SnapshotError: when one was replaced since it was opened
        """

    def find_held(self) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        """Return names of some files and folders of the outputs that it has open, and of those that
        it writes; and paths of others of the host without which it does not go on. Only right after
        ``checkpoint``. Blocks for milliseconds.

        :raises OSError: when it has ended
        """

    def memory_used(self) -> int | None:
        """As of ``Sandbox``."""

    def checkpoint(self, directory: Path, seconds: float) -> None:
        """As of ``CheckpointedSandbox``."""

    def note_saved(self, saved: float, keeper: Keeper = "server") -> None:
        """Note when it was saved, and for whom, which ``close`` keeps (or raise StateError); 0: it
        goes on."""


@runtime_checkable
class FoundSandbox(Protocol):
    """A sandbox of a runtime that ``finds_snapshots``. Its class names this as a base: an object is
    asked for its attributes, and one that has not set them yet would count as another sandbox."""

    found: FoundSnapshot | None
    """The snapshot that it was restored from; None: it was started cold."""
    lacks: str
    """The reason why no snapshot was found."""

    def make_builder(self, plan: Mapping[str, Any]) -> Builder | None:
        """Return the command that makes a snapshot for kernels of ``plan`` where this sandbox is.

        ``plan`` is JSON of ``kernel/plan.py``. None: there is none.
        """


class Runtime(ABC):
    """Starts sandboxes, and removes those whose owner has died."""

    name: str
    """The value of the setting ``runtime``, and of the entry point."""
    finds_snapshots: bool = False
    """True if ``start`` itself looks for a snapshot, where the sandbox is to be. Then the caller
    names none; the sandbox says what was found."""
    shows_host_python: bool = False
    """True if a kernel with the image "host" imports the packages of this very machine."""

    def find_checks(self) -> Sequence[RuntimeCheck]:
        """Return the checks of ``gvisor-kernel doctor``. Imports what no start needs."""
        return ()

    def fix_program(self, spec: SandboxSpec) -> SandboxSpec:
        """Return ``spec`` with the very program that makes sandboxes now: what starts with it later
        has the same one. ``spec`` itself where that is not known here. Takes milliseconds.

        :raises RuntimeMissing: when there is none
        """
        return spec

    def find_version(self, choice: str = "") -> str:
        """Return the version of the program that makes sandboxes with the setting ``runsc`` at
        ``choice``; empty if it is not on this machine. Takes milliseconds.

        :raises RuntimeMissing: when it should be here, and is not
        """
        return ""

    def find_own_folders(self, spec: SandboxSpec) -> Collection[str]:
        """Return which of the places UPLOADS and OUTPUTS show folders of the engine, in place of
        this machine's."""
        return ()

    def may_have_left(self) -> bool:
        """Return whether to look for sandboxes of which no record is left. Takes milliseconds."""
        return True

    @abstractmethod
    def start(self, spec: SandboxSpec, request: LaunchRequest) -> Sandbox:
        """Start a sandbox whose PID 1 is the guest (``spec.oci.guest_argv``).

        The sandbox shows the guest's code at ``spec.layout.GUEST`` and the places of ``LAYOUT``,
        and has no network. Blocks; called in a worker thread. Returns as soon as both ends of the
        link exist and the runtime's process runs. Waiting for the guest's HELLO is up to the
        bridge. Nothing is left behind after an error.

        :raises RuntimeMissing: when the program or engine that makes sandboxes is absent, does not
            answer or is too old
        :raises LaunchError: when the sandbox did not start
        :raises IsolationError: when the sandbox started, but is not isolated as demanded
        :raises SettingError: when a setting names something that cannot be used
        :raises StateError: when the state directory cannot be used
        """

    def explain_no_snapshots(self) -> SnapshotError:
        """Return the error for whoever wants a snapshot of a runtime that is no
        ``SnapshotRuntime``."""
        return SnapshotError(
            f"A kernel of the runtime {self.name} cannot be saved as a snapshot.",
            f"set snapshot=off, or runtime={DEFAULT_RUNTIME}.",
        )

    @abstractmethod
    def find_base(self, spec: SandboxSpec, request: LaunchRequest) -> Base:
        """Return what the packages of a sandbox would lie on: its image and its Python.

        Called before packages are installed. Takes milliseconds and makes nothing.

        :raises RuntimeMissing, LaunchError: as ``start`` does
        """

    @abstractmethod
    def end(self, directory: Path, record: Record) -> bool:
        """End the sandbox in ``directory``, whose owner lives and removes the rest.

        Blocks for seconds. Called by ``gvisor-kernel kill``. Returns whether nothing of it runs.

        :raises SandboxError: when what runs the sandbox does not answer
        """

    def sync_outputs(
        self, directory: Path, record: Record, folder: str | None
    ) -> tuple[int, int] | None:
        """Copy a sandbox's outputs now; into ``folder`` from now on, if that is given.

        Blocks. Called by ``gvisor-kernel sync``. Returns how many files were copied, and how many
        could not be; None where the kernel writes directly into its outputs folder.

        :raises SandboxError: when outputs cannot be copied, or not to ``folder``
        :raises StateError: when the record cannot be written
        """
        return None

    @abstractmethod
    def sweep(self) -> list[str]:
        """Remove this user's sandboxes of this runtime whose owner has died.

        Blocks. Called by the first start of a process, and by ``gvisor-kernel prune``. Returns the
        identities of what was removed, for a log.

        :raises StateError: when the state directory cannot be used
        """


class SavingRuntime(Runtime):
    """Lets kernels go on that were saved; see ``SavedSandbox``."""

    @abstractmethod
    def start(
        self, spec: SandboxSpec, request: LaunchRequest, snapshot: Path | None = None
    ) -> Sandbox:
        """Start a sandbox as any runtime does, or continue one.

        ``snapshot`` is a directory that ``checkpoint`` has filled. The sandbox then continues from
        there, with the mounts, limits and state directory of this ``spec`` and ``request``. The
        guest has to correct what a restored process still has of the time before.

        :raises SnapshotError: when ``snapshot`` cannot be restored; a start without it may succeed
        """


class SnapshotRuntime(SavingRuntime):
    """Saves its sandboxes as snapshots, and starts from them, on this machine."""

    @abstractmethod
    def describe(self, spec: SandboxSpec, request: LaunchRequest) -> dict[str, Any]:
        """Return the facts of this host that ``start`` would make a sandbox of, by name.

        The values can be written as JSON; ``config`` is the OCI runtime specification. A snapshot
        can be restored where all of them are as they were when it was made, except the sources of
        the mounts of one session and the memory limit. Takes milliseconds and makes nothing.

        :raises RuntimeMissing, LaunchError, SettingError, StateError: as ``start`` does
        """

    @abstractmethod
    def describe_host(self, choice: str = "") -> dict[str, Any]:
        """Return those of the facts that are the same for all sandboxes of this user with the
        setting ``runsc`` at ``choice``.

        :raises RuntimeMissing: as ``start`` does
        """

    @abstractmethod
    def has_current_mounts(
        self, sandbox: Sandbox, spec: SandboxSpec, request: LaunchRequest
    ) -> bool:
        """Return whether ``sandbox`` shows exactly the folders that ``start`` would show now.

        A path may lead to another folder than when the sandbox was made. Takes milliseconds and
        makes nothing.

        :raises LaunchError, SettingError, StateError: as ``start`` does
        """


@runtime_checkable
class ImageProber(Protocol):
    """A runtime that asks the Python of an image of this user's store for its packages."""

    def probe_image(self, image: RootImage) -> PythonReport:
        """Ask an image's Python for its version, modules and packages, in a sandbox.

        :raises LaunchError: when the image has no Python, or that does not answer
        """
