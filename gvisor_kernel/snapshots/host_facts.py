"""The facts of this host that a snapshot depends on: the guest's code and the CPU features."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import gvisor_kernel
from gvisor_kernel.config.settings import DEFAULT_RUNTIME
from gvisor_kernel.runtimes import get_runtime
from gvisor_kernel.runtimes.base import SnapshotRuntime
from gvisor_kernel.snapshots.key import HostFacts, digest

# by path: the kernel's own file systems, /proc, /sys and /dev

PACKAGE = Path(gvisor_kernel.__file__).parent
GUEST_FOLDERS = ("link", "guest", "guest/modules")
"""Folders with the guest's code. Only files directly in them are listed: if one gets a subpackage,
a change there would not change the key, and kernels would be restored with the old code."""
FEATURES = ("flags", "Features", "features", "isa")
"""The names of the CPU features in /proc/cpuinfo on x86, on ARM and on other architectures."""


def find_host_facts(package: Path = PACKAGE) -> HostFacts:
    """Return the current facts. Takes about a millisecond."""
    files = sorted(_find_files(package))
    return HostFacts(guest=[gvisor_kernel.__version__, *files], cpu=_find_processor())


def find_stale_parts(parts: Mapping[str, str]) -> list[str]:
    """Return the parts of a snapshot's key that differ from this host now, whatever the kernel."""
    host, runtime = find_host_facts(), get_runtime(DEFAULT_RUNTIME)
    own = runtime.describe_host() if isinstance(runtime, SnapshotRuntime) else {}
    facts = {**own, "guest": list(host.guest), "cpu": list(host.cpu)}
    return sorted(name for name, value in facts.items() if parts.get(name) != digest(value))


def _find_files(package: Path) -> Iterator[tuple[str, int, int]]:
    """Yield name, size and modification time of each file of the guest's code."""
    for folder in GUEST_FOLDERS:
        with os.scandir(package / folder) as entries:
            for entry in entries:
                if entry.name.endswith(".py"):
                    status = entry.stat()
                    yield f"{folder}/{entry.name}", status.st_size, status.st_mtime_ns
    status = (package / "__init__.py").stat()
    yield "__init__.py", status.st_size, status.st_mtime_ns


def _find_processor() -> list[str]:
    # Libraries start as many threads as there are CPUs when they are imported.
    return [*_read_processor(), str(len(os.sched_getaffinity(0)))]


@cache
def _read_processor() -> tuple[str, ...]:
    """Return the architecture and the features of the first CPU. They do not change."""
    found = [os.uname().machine]
    try:
        # Read only the first CPU: Linux queries each one for its part of the file.
        with Path("/proc/cpuinfo").open("rb", buffering=0) as file:
            text = file.read(16384).decode(errors="replace").partition("\n\n")[0]
    except OSError:
        return tuple(found)
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in FEATURES:
            found += sorted(value.split())
    return tuple(found)
