"""A running sandbox in a Docker engine: its stdio as a link, a check of it, and its removal."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gvisor_kernel.errors import SandboxError
from gvisor_kernel.host.cgroups import count_oom_kills
from gvisor_kernel.host.processes import SANDBOX_NAME, read_argv
from gvisor_kernel.runtimes.base import KernelView
from gvisor_kernel.runtimes.docker.container import RUNTIME, find_faults, is_gvisor
from gvisor_kernel.runtimes.docker.engine import Engine
from gvisor_kernel.runtimes.docker.stream import Pumps
from gvisor_kernel.runtimes.engine_sandbox import THREAD_SECONDS, EngineSandbox
from gvisor_kernel.runtimes.state.beginning import Beginning
from gvisor_kernel.runtimes.stdio import StderrLog, make_pipes

log = logging.getLogger(__name__)

CGROUPS = Path("/sys/fs/cgroup")
_HELD = ("active_anon", "inactive_anon", "unevictable")


def sum_held(stat: Mapping[str, int]) -> int:
    """Return the bytes held by a group and those below it, by its ``memory.stat``; 0 if empty."""
    return sum(stat.get(f"total_{name}", stat.get(name, 0)) for name in _HELD)


def read_stat(text: str) -> dict[str, int]:
    """Parse ``memory.stat`` of a cgroup: the numbers by name. Other lines are ignored."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if value.isdecimal():
            found[name] = int(value)
    return found


def find_group(lines: Iterable[str], container: str, root: Path = CGROUPS) -> Path | None:
    """Return the memory cgroup of a process of ``container``, by the lines of its /proc/PID/cgroup.

    None where they do not name the container: then the pid is another machine's.
    """
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if container not in path or ".." in path:
            continue
        if "memory" in controllers.split(","):
            group = root / "memory" / path.lstrip("/")
        elif controllers == "":
            group = root / path.lstrip("/")
        else:
            continue
        if (group / "memory.stat").is_file():
            return group
    return None


@dataclass(frozen=True)
class Container:
    """A container that an engine has made, as it was ``asked`` for."""

    engine: Engine
    id: str
    asked: Mapping[str, Any]


class MemoryGauge:
    """Counts the memory of one container, from its start until the container has ended."""

    def __init__(self, container: Container, pid: int) -> None:
        self._container = container
        self._reported: int | None = 0
        self._kills = 0
        self._group: Path | None = None
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
            self._group = find_group(lines, container.id)
        if self._group is None:
            threading.Thread(
                target=self._listen, name="gvisor-kernel-docker-memory", daemon=True
            ).start()

    def read(self) -> int | None:
        """Return the bytes that the container holds: None when it has ended, 0 while unknown."""
        if self._group is None:
            return self._reported
        try:
            return sum_held(read_stat((self._group / "memory.stat").read_text()))
        except OSError:
            return None

    def kills(self) -> int:
        """Return how many of its processes the host's OOM killer has ended, as far as known."""
        if self._group is not None:
            self._kills = max(self._kills, count_oom_kills([self._group]))
        return self._kills

    def note_end(self, oom_killed: bool) -> None:
        """Record what the engine reports of a container that has ended."""
        self.kills()
        if oom_killed:
            self._kills += 1

    def _listen(self) -> None:
        try:
            for sample in self._container.engine.stats(self._container.id):
                memory = sample.get("memory_stats")
                stat = memory.get("stats") if isinstance(memory, dict) else None
                if isinstance(stat, dict):
                    numbers = {str(k): v for k, v in stat.items() if isinstance(v, int)}
                    self._reported = sum_held(numbers)
        except (SandboxError, AttributeError) as error:
            log.debug("The engine reports no more of %s: %s", self._container.id, error)
        self._reported = None


def find_outside_faults(container: Container) -> list[str]:
    """Return how a container differs from what was asked for; empty if it does not."""
    try:
        made = container.engine.inspect(container.id)
        runtimes = container.engine.info().get("Runtimes") or {}
    except SandboxError as error:
        return [error.fact.rstrip(".")]
    faults = find_faults(container.asked, made)
    if not is_gvisor(runtimes.get(RUNTIME) or {}):
        faults.append(f"the engine's runtime {RUNTIME} is another program")
    state = made.get("State") or {}
    if not state.get("Running"):
        faults.append("it is not running")
    pid = state.get("Pid")
    if isinstance(pid, int) and _is_here(pid, container.id):
        argv = read_argv(pid)
        if argv and argv[0] != SANDBOX_NAME:
            faults.append(f"its process on this host is not {SANDBOX_NAME}")
    return faults


def _is_here(pid: int, container: str) -> bool:
    """Return whether ``pid`` is a process of this machine, and the container's."""
    with suppress(OSError):
        return container in Path(f"/proc/{pid}/cgroup").read_text()
    return False


class DockerSandbox(EngineSandbox):
    """Returned by ``DockerRuntime.start``. It ends when its container or its link does."""

    kind = "container"
    advice = "check the engine's runtime runsc: `docker info`, `gvisor-kernel doctor`."

    def __init__(self, begun: Beginning, view: KernelView, container: Container) -> None:
        """Connect to ``container``, which is about to start, and take over its engine."""
        engine = container.engine
        sockets = [engine.attach(container.id, stdin=is_stdin) for is_stdin in (True, False)]
        ends = make_pipes()
        super().__init__(begun, ends, view, StderrLog(ends.stderr, begun.places.stderr_log))
        self.container = container
        self._gauge: MemoryGauge | None = None
        guest_in, guest_out, guest_stderr = ends.guest
        self._pumps = Pumps(
            stdin=sockets[0],
            output=sockets[1],
            link_in=guest_in,
            link_out=guest_out,
            stderr=guest_stderr,
            ended=self._on_stream_end,
        )

    def _on_stream_end(self) -> None:
        """Kill the container, whose stream has ended, and report its end. Runs in a thread."""
        engine, container = self.container.engine, self.container.id
        try:
            engine.kill(container)
            if self._gauge is not None:
                ended = engine.inspect(container).get("State") or {}
                self._gauge.note_end(bool(ended.get("OOMKilled")))
        except SandboxError as error:
            log.debug("%s", error)
        finally:
            self.tell_end()

    def measure(self) -> int | None:
        return 0 if self._gauge is None else self._gauge.read()

    def memory_kills(self) -> int:
        return 0 if self._gauge is None else self._gauge.kills()

    def kill(self) -> None:
        self._pumps.stop()

    def find_faults(self) -> list[str]:
        return find_outside_faults(self.container)

    def _stop(self) -> None:
        self._pumps.close(THREAD_SECONDS)

    def _release(self) -> None:
        super()._release()
        self.container.engine.close()

    # -- for the runtime -------------------------------------------------------------------------

    def close_link(self) -> None:
        """Close what belongs to this object after a failed start; the runtime removes the rest."""
        self._pumps.close(THREAD_SECONDS)
        self._closed = self._ended = True
        self._close_descriptors()

    def begin(self) -> None:
        """Start to count memory: the container runs.

        :raises SandboxError: when the engine does not describe it
        """
        container = self.container
        pid = (container.engine.inspect(container.id).get("State") or {}).get("Pid")
        self._gauge = MemoryGauge(container, pid if isinstance(pid, int) else 0)
