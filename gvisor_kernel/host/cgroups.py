"""Makes and removes the cgroup of a sandbox, version 1 or 2, if this user may: root or delegated.

The directories are made here and the runtime is told to ignore cgroups, so that exactly the
directories that were made are removed. Without a cgroup, the memory watch still bounds a sandbox:
the end of this module has the pace at which it measures.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gvisor_kernel.host.processes import kill_if

# by path: the kernel's own file systems, /proc, /sys and /dev

ROOT = Path("/sys/fs/cgroup")
PARENT = "gvisor-kernel"
CONTROLLERS = ("memory", "cpu", "pids")
ATTEMPTS = 5
"""Attempts to make a cgroup while other sandboxes of this user remove the empty PARENT."""


@dataclass(frozen=True)
class HostLimits:
    """Limits in the units of a cgroup: memory in bytes, pids in tasks of the host."""

    memory: int
    cpu_shares: int
    pids: int

    @property
    def cpu_weight(self) -> int:
        """``cpu_shares`` on the scale of cgroup v2: 2…262144 becomes 1…10000."""
        shares = min(max(self.cpu_shares, 2), 262144)
        return 1 + ((shares - 2) * 9999) // 262142


@dataclass(frozen=True)
class Cgroup:
    """The directories of a sandbox: one in version 2, one for each controller in version 1."""

    directories: tuple[Path, ...] = ()
    controllers: frozenset[str] = frozenset()

    @property
    def bounds_memory(self) -> bool:
        """Return whether a limit of memory is in force in it."""
        return "memory" in self.controllers


def plan_cgroup(name: str, *, root: Path = ROOT) -> tuple[Path, ...]:
    """Return the directories that ``make_cgroup`` would make. Makes nothing.

    The caller records them first, so that they can be removed if it is killed while they are made.
    """
    if (root / "cgroup.controllers").exists():
        parent = root / PARENT if os.geteuid() == 0 else _find_parent_v2(root)
        return () if parent is None else (parent / name,)
    if os.geteuid() != 0:
        return ()
    known = (c for c in CONTROLLERS if (root / c / "cgroup.procs").exists())
    return tuple(root / controller / PARENT / name for controller in known)


def make_cgroup(name: str, limits: HostLimits, *, root: Path = ROOT) -> Cgroup:
    """Make a cgroup ``name`` with ``limits``. It has no directories if this user may not."""
    make = _make_v2 if (root / "cgroup.controllers").exists() else _make_v1
    for _ in range(ATTEMPTS):
        with contextlib.suppress(FileNotFoundError):  # another sandbox has removed PARENT
            return make(name, limits, root)
    return Cgroup()


def can_bound_memory(*, root: Path = ROOT) -> bool:
    """Return whether a cgroup that ``make_cgroup`` makes now would limit memory. Makes nothing."""
    if not (root / "cgroup.controllers").exists():
        return os.geteuid() == 0 and (root / "memory" / "cgroup.procs").exists()
    if os.geteuid() == 0:
        return "memory" in _read_words(root / "cgroup.controllers")
    parent = _find_parent_v2(root)
    return parent is not None and "memory" in _read_words(parent / "cgroup.subtree_control")


def _make_v1(name: str, limits: HostLimits, root: Path) -> Cgroup:
    settings = {
        "memory": {"memory.limit_in_bytes": limits.memory},
        "cpu": {"cpu.shares": limits.cpu_shares},
        "pids": {"pids.max": limits.pids},
    }
    if os.geteuid() != 0:
        return Cgroup()
    made: dict[str, Path] = {}
    for controller, values in settings.items():
        directory = root / controller / PARENT / name
        if not (root / controller / "cgroup.procs").exists():
            continue
        try:
            with contextlib.suppress(FileExistsError):
                directory.parent.mkdir()
            if _make_directory(directory, values):
                made[controller] = directory
        except FileNotFoundError:
            remove_cgroup(made.values(), 0)
            raise
    return Cgroup(tuple(made.values()), frozenset(made))


def _make_v2(name: str, limits: HostLimits, root: Path) -> Cgroup:
    values = {
        "memory": {"memory.max": limits.memory},
        "cpu": {"cpu.weight": limits.cpu_weight},
        "pids": {"pids.max": limits.pids},
    }
    parent = _find_parent_v2(root)
    if parent is None:
        return Cgroup()
    controllers = _read_words(parent / "cgroup.subtree_control") & set(CONTROLLERS)
    wanted = {file: value for name in controllers for file, value in values[name].items()}
    directory = parent / name
    if not controllers or not _make_directory(directory, wanted):
        if parent.name == PARENT:
            with contextlib.suppress(OSError):
                parent.rmdir()
        return Cgroup()
    return Cgroup((directory,), frozenset(controllers))


def _find_parent_v2(root: Path) -> Path | None:
    """Find the directory to make a cgroup in: PARENT for root, otherwise a delegated one.

    A user can only move a process between cgroups below a common ancestor that the user may write,
    so the search goes up from this process's own cgroup while the user may write there.
    """
    if os.geteuid() == 0:
        parent = root / PARENT
        try:
            parent.mkdir(exist_ok=True)
        except OSError:
            return None
        for directory in (root, parent):
            _enable_controllers(directory)
        return parent
    current = root / _own_path_v2().lstrip("/")
    while current != root and os.access(current / "cgroup.procs", os.W_OK):
        delegated = _read_words(current / "cgroup.subtree_control") & set(CONTROLLERS)
        if os.access(current, os.W_OK) and delegated:
            return current
        current = current.parent
    return None


def _own_path_v2() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                return line[3:]
    return "/"


def _enable_controllers(directory: Path) -> None:
    for controller in CONTROLLERS:
        with contextlib.suppress(OSError):  # not available, or processes are in this cgroup
            (directory / "cgroup.subtree_control").write_text(f"+{controller}")


def _read_words(path: Path) -> set[str]:
    try:
        return set(path.read_text().split())
    except OSError:
        return set()


def _make_directory(directory: Path, values: dict[str, int]) -> bool:
    """Make ``directory`` and write ``values`` to its files. False if that is not possible.

    :raises FileNotFoundError: when the parent does not exist
    """
    try:
        directory.mkdir()
    except FileNotFoundError:
        raise
    except OSError:
        return False
    try:
        for file, value in values.items():
            (directory / file).write_text(str(value))
    except OSError:
        with contextlib.suppress(OSError):
            directory.rmdir()
        return False
    return True


def kill_cgroup(directories: Iterable[Path]) -> list[int]:
    """Send SIGKILL to every process in ``directories``. Return their pids. Never raises."""
    killed: list[int] = []
    for directory in directories:
        with contextlib.suppress(OSError):
            (directory / "cgroup.kill").write_text("1")
        killed += [pid for pid in _read_pids(directory) if kill_if(pid, partial(_has, directory))]
    return killed


def _has(directory: Path, pid: int) -> bool:
    return pid in _read_pids(directory)


def _read_pids(directory: Path) -> list[int]:
    try:
        return [int(pid) for pid in (directory / "cgroup.procs").read_text().split()]
    except (OSError, ValueError):
        return []


def remove_cgroup(directories: Iterable[Path], deadline: float) -> bool:
    """Remove ``directories`` once they are empty, and PARENT once that is empty. Never raises.

    The kernel releases a dead process's cgroup a moment after the process can be waited for, and
    sends no event, so this retries until ``time.monotonic()`` is ``deadline``. Blocks.

    :return: whether all of them are gone
    """
    removed = True
    for directory in directories:
        while True:
            try:
                directory.rmdir()
            except FileNotFoundError:
                pass
            except OSError:
                if time.monotonic() < deadline:
                    time.sleep(0.005)
                    continue
                removed = False
            break
        if directory.parent.name == PARENT:
            with contextlib.suppress(OSError):  # other sandboxes still use it
                directory.parent.rmdir()
    return removed


def count_oom_kills(directories: Iterable[Path]) -> int:
    """Return how many processes of the sandbox the kernel's OOM killer has killed."""
    for directory in directories:
        for file in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(OSError, ValueError, LookupError):
                return _read_numbers(directory / file)["oom_kill"]
    return 0


def read_cpu_seconds(directories: Iterable[Path]) -> float | None:
    """Return the CPU time of all processes that were in the cgroup; None if it does not tell."""
    for directory in directories:
        with contextlib.suppress(OSError, ValueError, LookupError):
            return _read_numbers(directory / "cpu.stat")["usage_usec"] / 1e6
        with contextlib.suppress(OSError, ValueError):
            return int((directory / "cpuacct.usage").read_text()) / 1e9
    return None


# -- memory beside what a sandbox has --------------------------------------------------------------

FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
"""What a cgroup may have and has, in version 2 and 1."""


def find_room(directories: Iterable[Path]) -> int:
    """Return how many bytes this machine, ``directories`` and all cgroups above these have left.

    :raises OSError, ValueError, LookupError: when the machine does not say
    """
    room = _read_numbers(Path("/proc/meminfo"))["MemAvailable"] * 1024
    for place in {above for one in directories for above in (one, *one.parents)}:
        for most, used in FILES:
            with contextlib.suppress(OSError, ValueError, LookupError):
                stat = _read_numbers(place / "memory.stat")
                left = int((place / most).read_text()) - int((place / used).read_text())
                for name in ("active_file", "inactive_file"):  # given up when needed
                    left += stat.get(f"total_{name}", stat[name])
                room = min(room, left)
    return room


def own_groups() -> list[Path]:
    """Return the cgroups by which this process's memory is limited."""
    lines = (line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines())
    return [
        ROOT / ("memory" if names else "") / path.lstrip("/")
        for _, names, path in lines
        if not names or "memory" in names.split(",")
    ]


@contextlib.contextmanager
def raised_limit(directories: Iterable[Path], by: int) -> Iterator[None]:
    """Let the cgroups ``directories`` have more memory for a while."""
    before: dict[Path, int] = {}
    for path in (directory / most for directory in directories for most, _ in FILES):
        with contextlib.suppress(OSError, ValueError):
            limit = int(path.read_text())
            path.write_text(str(limit + by))
            before[path] = limit
    try:
        yield
    finally:
        for path, limit in before.items():
            with contextlib.suppress(OSError):  # it was ended meanwhile; or the watch ends it
                path.write_text(str(limit))


def _read_numbers(path: Path) -> dict[str, int]:
    words = (line.replace(":", "").split() for line in path.read_text().splitlines())
    return {name: int(number) for name, number, *_ in words}


# -- the memory watch, of the bridge and of the helper on a node -----------------------------------

MAX_INTERVAL_SECONDS = 0.1
"""The longest time between two measurements."""
MIN_INTERVAL_SECONDS = 0.005
MAX_GROWTH = max(4, os.cpu_count() or 1) * 1024**3
"""Bytes per second that a sandbox can touch (measured: about 2 GiB/s on two cores). The nearer the
limit, the sooner the next measurement, so that this rate exceeds the limit only a little."""
MAX_OVERRUN = 128 * 1024**2
"""Bytes over the limit above which the whole sandbox is killed, without asking PID 1."""


SHORT_SHARE = 0.05
"""Share of the machine's memory. If less is available, the host is short of it."""


def is_host_short() -> bool:
    """Return whether this machine is short of memory; False where it does not say."""
    with contextlib.suppress(OSError, ValueError, LookupError):
        found = _read_numbers(Path("/proc/meminfo"))
        return found["MemAvailable"] < SHORT_SHARE * found["MemTotal"]
    return False


def seconds_to_next_measurement(used: int, limit: int) -> float:
    """Return how long the next measurement may wait."""
    return min(MAX_INTERVAL_SECONDS, max(MIN_INTERVAL_SECONDS, (limit - used) / MAX_GROWTH))
