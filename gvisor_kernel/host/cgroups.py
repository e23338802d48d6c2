"""One cgroup a sandbox, where this user may make one: version 1 or 2, by root or delegated.

The directories are made here, and the runtime is told to ignore cgroups: so what was made is
known exactly, and removed exactly. A sandbox without a cgroup is still held by the memory watch.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gvisor_kernel.host.processes import open_process

ROOT = Path("/sys/fs/cgroup")
PARENT = "gvisor-kernel"
CONTROLLERS = ("memory", "cpu", "pids")
ATTEMPTS = 5


@dataclass(frozen=True)
class HostLimits:
    """Limits as a cgroup of the host holds them."""

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
    """The directories of one sandbox: one in version 2, one a controller in version 1."""

    directories: tuple[Path, ...] = ()
    controllers: frozenset[str] = frozenset()

    @property
    def bounds_memory(self) -> bool:
        return "memory" in self.controllers


def plan_cgroup(name: str, *, root: Path = ROOT) -> tuple[Path, ...]:
    """The directories that ``make_cgroup`` would make, if this user may. Makes nothing.

    To be written down before: who is killed while they are made has named them then.
    """
    if (root / "cgroup.controllers").exists():
        parent = root / PARENT if os.geteuid() == 0 else _find_parent_v2(root)
        return () if parent is None else (parent / name,)
    if os.geteuid() != 0:
        return ()
    known = (c for c in CONTROLLERS if (root / c / "cgroup.procs").exists())
    return tuple(root / controller / PARENT / name for controller in known)


def make_cgroup(name: str, limits: HostLimits, *, root: Path = ROOT) -> Cgroup:
    """A cgroup ``name`` with ``limits``, as far as this user may; without directories if not."""
    make = _make_v2 if (root / "cgroup.controllers").exists() else _make_v1
    for _ in range(ATTEMPTS):
        with contextlib.suppress(FileNotFoundError):  # PARENT went away with another sandbox
            return make(name, limits, root)
    return Cgroup()


def can_bound_memory(*, root: Path = ROOT) -> bool:
    """Whether a cgroup that ``make_cgroup`` makes now would bound memory. Makes nothing."""
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
    """Where a cgroup with controllers can be made: for root a place of our own, else delegated.

    A user may move a process only below a common ancestor that is the user's too, so the search
    goes up from where this process is, as long as the user may write there.
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
        with contextlib.suppress(OSError):  # not there, or processes in the way
            (directory / "cgroup.subtree_control").write_text(f"+{controller}")


def _read_words(path: Path) -> set[str]:
    try:
        return set(path.read_text().split())
    except OSError:
        return set()


def _make_directory(directory: Path, values: dict[str, int]) -> bool:
    """Make ``directory`` with ``values`` in its files, or nothing.

    Raises FileNotFoundError where the parent is gone.
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
    """SIGKILL every process in ``directories``; the pids that got it. Never raises."""
    killed = []
    for directory in directories:
        with contextlib.suppress(OSError):
            (directory / "cgroup.kill").write_text("1")
        for pid in _read_pids(directory):
            with open_process(pid) as fd:
                # Looked at again, now that it cannot become another process unnoticed.
                if fd is not None and pid in _read_pids(directory):
                    with contextlib.suppress(OSError):
                        signal.pidfd_send_signal(fd, signal.SIGKILL)
                        killed.append(pid)
    return killed


def _read_pids(directory: Path) -> list[int]:
    try:
        return [int(pid) for pid in (directory / "cgroup.procs").read_text().split()]
    except (OSError, ValueError):
        return []


def remove_cgroup(directories: Iterable[Path], deadline: float) -> bool:
    """Remove ``directories`` when they are empty, and our parents of them when these are.

    The kernel lets go of a dead process's cgroup a moment after the process can be waited for,
    and tells nobody, so this looks again until ``time.monotonic()`` is ``deadline``. Never raises.
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
            with contextlib.suppress(OSError):  # other sandboxes are in it
                directory.parent.rmdir()
    return removed


def count_oom_kills(directories: Iterable[Path]) -> int:
    """How often the kernel ended a process of the sandbox for want of memory."""
    for directory in directories:
        for file in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(OSError, ValueError):
                for line in (directory / file).read_text().splitlines():
                    key, _, value = line.partition(" ")
                    if key == "oom_kill":
                        return int(value)
    return 0
