"""A running sandbox of runsc: its link, its processes, their isolation, its snapshot, its end."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from gvisor_kernel.errors import IsolationError, SnapshotError
from gvisor_kernel.host import commands, processes
from gvisor_kernel.host.cgroups import count_oom_kills
from gvisor_kernel.host.descriptors import is_ready
from gvisor_kernel.host.processes import GOFER_NAME, SANDBOX_NAME, Posture, read_posture
from gvisor_kernel.runtimes.base import KernelView
from gvisor_kernel.runtimes.mounts.outputs import place_outputs
from gvisor_kernel.runtimes.mounts.plan import Outputs, Places
from gvisor_kernel.runtimes.runsc.command_line import checkpoint_argv, find_runsc
from gvisor_kernel.runtimes.runsc.kept_programs import find_files
from gvisor_kernel.runtimes.runsc.memory import HostMemory
from gvisor_kernel.runtimes.runsc.starting import Sentry, read_panic
from gvisor_kernel.runtimes.state import lifeline, records
from gvisor_kernel.runtimes.state.beginning import Beginning
from gvisor_kernel.runtimes.state.recorded_sandbox import RecordedSandbox
from gvisor_kernel.runtimes.state.shown_files import (
    Held,
    Stamps,
    find_held,
    find_shown_files,
    find_sources,
)
from gvisor_kernel.runtimes.state.sweep import (
    END_SECONDS,
    kill_sandbox,
    root_argument,
)
from gvisor_kernel.runtimes.stdio import Ends, StderrLog
from gvisor_kernel.spec.layout import OUTPUTS

# by path: below a private store of this user

WORDS_BYTES = 2000
"""Bytes of runsc's output that are kept for an error."""


def can_write_directly(directory: Path) -> bool:
    """Return whether the file system of ``directory`` supports O_DIRECT."""
    probe = directory / "probe"
    try:
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_DIRECT | os.O_CLOEXEC, 0o600))
    except OSError:
        return False
    finally:
        with suppress(OSError):
            probe.unlink()
    return True


def save_sandbox(
    program: str,
    directory: Path,
    image: Path,
    seconds: float,
    within: Sequence[str] = (),
) -> None:
    """Have runsc write the sandbox in ``directory``, which goes on, as the folder ``image``.

    ``program``: of its record. ``within``: the command that runs the command line which is added to
    it.

    :raises SnapshotError: when that fails
    """
    argv = checkpoint_argv(
        find_runsc(program),
        root=str(Places(directory).runsc),
        container_id=directory.name,
        snapshot=str(image),
        direct=can_write_directly(image),
    )
    argv = [*within, *argv]
    try:
        (done,) = commands.run(
            argv, seconds=seconds, max_bytes=WORDS_BYTES, cwd=directory, umask=0o077
        )
    except OSError as error:
        raise SnapshotError(f"Could not run {argv[0]}: {error.strerror}.") from error
    if done.status is None:
        raise SnapshotError(f"The snapshot was not written within {seconds:g} s.")
    if done.status != 0:
        raise SnapshotError(
            f"The snapshot could not be written: runsc ended with status {done.status}.",
            "check whether the disk is full.",
            done.output,
        )
    if not any(path.stat().st_size for path in image.iterdir()):
        raise SnapshotError("runsc has reported success, and has written no snapshot.")


SECCOMP_FILTER = 2
NAMESPACES = ("user", "mnt", "net", "ipc", "uts")


def check_posture(
    find_process: Callable[[str], int | None], stderr_tail: Callable[[], str]
) -> None:
    """Check that the sentry and the gofer run, and are isolated from the host.

    ``find_process(name)`` returns the pid of the sandbox's process of that name.

    :raises IsolationError: when one of them is missing or lacks isolation
    """
    own = read_posture(os.getpid())
    assert own is not None
    for name in (SANDBOX_NAME, GOFER_NAME):
        pid = find_process(name)
        posture = None if pid is None else read_posture(pid)
        if posture is None:
            raise IsolationError(
                f"The sandbox has no process {name}, so gVisor does not run the kernel.",
                "check that `runsc` on PATH is gVisor's: `gvisor-kernel doctor`.",
                stderr_tail(),
            )
        faults = find_faults(posture, own)
        if faults:
            raise IsolationError(
                f"The sandbox's process {name} is not isolated: {', '.join(faults)}.",
                "this runsc ignores flags that it was given; install another release.",
                stderr_tail(),
            )


def find_faults(posture: Posture, own: Posture) -> list[str]:
    """Return which isolation a process of the sandbox lacks, compared with ``own``, one outside."""
    faults = []
    if 0 in posture.uids:
        faults.append("it is root on the host")
    if posture.seccomp != SECCOMP_FILTER:
        faults.append("it has no seccomp filter")
    faults += [
        f"it shares the host's {name} namespace"
        for name in NAMESPACES
        if posture.namespaces[name] == own.namespaces[name]
    ]
    return faults


class RunscSandbox(RecordedSandbox):
    """Returned by ``RunscRuntime.start``. Its process is the sentry, which ends with PID 1."""

    def __init__(
        self, begun: Beginning, ends: Ends, view: KernelView, sentry: Sentry, stderr: StderrLog
    ) -> None:
        """Take over the pipes and the sentry."""
        super().__init__(begun, ends, view)
        record, places, outputs = begun.record, begun.places, begun.outputs
        self._program = record.program
        self.exit_fd = sentry.fd
        self._sentry = sentry.pid
        self._descriptors = threading.Lock()  # no timeout: held for a few steps that do not wait
        self._stderr = stderr
        self.container_id = record.container_id
        self.hidden = begun.inputs.hidden
        """What of its project is hidden in it."""
        self._panic_log = places.panic_log
        self._groups = tuple(map(Path, record.cgroups))
        self._memory: HostMemory | None = None
        self._gofer: processes.ProcessId | None = None
        is_lent = outputs.folder is not None and outputs.lent_by is not None
        self._lent = outputs.folder.duplicate() if outputs.folder and is_lent else None
        """The folder of outputs if it was lent and must be given back."""
        self._aside = outputs
        """The outputs, until they are in their place."""

    def assign(self, kernel_id: str) -> None:
        aside, place = self._aside.path, self._aside.place
        if aside is not None and place is not None:
            with records.locked():
                place_outputs(aside, *place)
                record = records.read_record(self.directory) or self._record
                self._record = replace(record, outputs=place[0], outputs_parent=place[1])
                records.write_record(self.directory, self._record)
            self._aside = Outputs(None)
            self.view = self.view.moved(aside, place[0])
        self._update_record(kernel_id=kernel_id, spare=False)

    def poll(self) -> int | None:
        with self._descriptors:
            self._ended = self._ended or is_ready(self.exit_fd)
        return 0 if self._ended else None

    def memory_used(self) -> int | None:
        if self._closed:
            return None
        memory = self._memory
        if memory is None:
            if self.poll() is not None:
                return None
            memory = self._find_memory()
            if memory is None:
                return 0  # still starting: it holds nothing yet
            self._memory = memory
        memory.gofer = self._gofer
        return memory.read()

    def memory_kills(self) -> int:
        return count_oom_kills(self._groups)

    def stderr_tail(self) -> str:
        if self.poll() is not None:
            self._stderr.catch_up()  # the last lines may still be in the pipe
        return self._stderr.tail()

    def find_panic(self) -> str:
        return read_panic(self._panic_log)

    def kill(self) -> None:
        if not self._closed:
            kill_sandbox(self.directory, self._groups)

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def is_busy(self) -> bool:
        # Code inside runs in children of the sentry, which a SIGSTOP to the sentry does not stop.
        return any(map(processes.has_running_thread, processes.read_descendants(self._sentry)))

    def find_code_processes(self) -> list[int]:
        return processes.read_descendants(self._sentry)

    def measure_code(self, pids: list[int]) -> int | None:
        return processes.read_cpu_time(pids) if pids else None

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, signum: signal.Signals) -> None:
        """Signal the sentry only. Code inside waits for the sentry with its next system call."""
        with self._descriptors, suppress(OSError):
            if not self._ended:
                signal.pidfd_send_signal(self.exit_fd, signum)

    def verify(self, said: Mapping[str, str] | None = None) -> None:
        try:
            check_posture(self.find_process, self.stderr_tail)
            if not self.hold_gofer():
                raise IsolationError("The sandbox's gofer has ended.")
            self.record_processes()
        except IsolationError:
            self.kill()  # not close(): the bridge's loop still watches the descriptors
            raise

    def checkpoint(self, directory: Path, seconds: float) -> None:
        save_sandbox(self._program, self.directory, directory, seconds)

    def find_shown_files(self) -> Stamps:
        sources = find_sources(self.view.mounts, self.directory)
        return find_shown_files(self._sentry, sources) | find_files(self._program)

    def find_held(self) -> Held:
        return find_held(self._sentry, OUTPUTS, find_sources(self.view.mounts, self.directory))

    def close(self) -> None:
        with self._closing:
            if self._closed:
                return
            gofer = self.find_process(GOFER_NAME)
            self._remove(self._lent)
            self._stderr.wait(END_SECONDS)
            self._closed = True
            with self._descriptors:
                self._ended = True
                for fd in (self.link_in, self.link_out, self.exit_fd, self.gofer_fd):
                    with suppress(OSError):
                        os.close(fd)
            for pid in (self._sentry, gofer):
                if pid is not None:
                    processes.reap(pid)
            if self._lent is not None:
                self._lent.close()
            memory, self._memory = self._memory, None
            if memory is not None:
                memory.close()
            lifeline.release()

    # -- for the runtime -------------------------------------------------------------------------

    def find_process(self, name: str) -> int | None:
        """Return the pid of the sandbox's process called ``name`` (sentry or gofer), or None."""
        argument = root_argument(self.directory)
        pids: Iterable[int] = [self._sentry]
        if name == GOFER_NAME:
            known = self._gofer
            if known is not None and processes.is_alive(known):
                pids = [known.pid]
            else:  # looks at every process of the host, so it is done once
                pids = processes.find_with_argument(argument)
        for pid in pids:
            argv = processes.read_argv(pid)
            if argv[:1] == [name] and argument in argv:
                if name == GOFER_NAME:
                    self._gofer = processes.identify(pid)
                return pid
        return None

    def hold_gofer(self) -> bool:
        """Open ``gofer_fd`` as a pidfd of the gofer; return False if there is no gofer.

        A restored sentry does not notice the gofer's end: a program that opens a file then waits
        for ever.
        """
        if self.gofer_fd >= 0:
            return not is_ready(self.gofer_fd)
        pid = self.find_process(GOFER_NAME)
        with suppress(OSError):
            fd = -1 if pid is None else os.pidfd_open(pid)
            if pid is not None and self.find_process(GOFER_NAME) == pid:
                self.gofer_fd = fd
                return True
            if fd >= 0:
                os.close(fd)
        return False

    def record_processes(self) -> None:
        """Write into the record which processes on the host belong to the sandbox."""
        found = {
            "sentry": self._identify(SANDBOX_NAME),
            "gofer": self._identify(GOFER_NAME),
        }
        known = {name: process for name, process in found.items() if process is not None}
        self._update_record(processes=known)

    def _identify(self, name: str) -> processes.ProcessId | None:
        pid = self.find_process(name)
        return None if pid is None else processes.identify(pid)

    def _find_memory(self) -> HostMemory | None:
        pid = self.find_process(SANDBOX_NAME)
        return None if pid is None else HostMemory.find(pid)
