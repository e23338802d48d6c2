"""How much memory a container holds: by its cgroup on this machine, else as its engine reports.

Counted is what cannot be freed: not the files that it has written or read, which the host keeps in
memory as long as there is room.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from gvisor_kernel.errors import SandboxError
from gvisor_kernel.host.cgroups import count_oom_kills
from gvisor_kernel.runtimes.docker.engine import Engine

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


class MemoryGauge:
    """Counts the memory of one container, from its start until the container has ended."""

    def __init__(self, engine: Engine, container: str, pid: int) -> None:
        self._engine = engine
        self._container = container
        self._reported: int | None = 0
        self._kills = 0
        self._group: Path | None = None
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
            self._group = find_group(lines, container)
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
            for sample in self._engine.stats(self._container):
                memory = sample.get("memory_stats")
                stat = memory.get("stats") if isinstance(memory, dict) else None
                if isinstance(stat, dict):
                    numbers = {str(k): v for k, v in stat.items() if isinstance(v, int)}
                    self._reported = sum_held(numbers)
        except (SandboxError, AttributeError) as error:
            log.debug("The engine reports no more of %s: %s", self._container, error)
        self._reported = None
