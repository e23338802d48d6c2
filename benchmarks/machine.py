"""Describe the machine, its load and the versions of programs for the results."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.runtimes.runsc.command_line import find_runsc

PACKAGES = (
    *("gvisor-kernel", "ipykernel", "jupyter-client", "pyzmq"),
    *("numpy", "pandas", "matplotlib", "dockernel", "gateway-provisioners"),
)
PROJECT = Path(__file__).resolve().parent.parent


def describe_machine() -> dict[str, Any]:
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "cpus": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 1024**3),
        "kernel": platform.release(),
        "system": system_name(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "user": "root" if os.geteuid() == 0 else "ordinary",
        "commit": commit(),
        "load": load(),
        "runsc": runsc_version(),
        **{name: package_version(name) for name in PACKAGES},
    }


def load() -> list[float]:
    return [round(value, 2) for value in os.getloadavg()]


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def system_name() -> str:
    return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")


def runsc_version() -> str:
    try:
        return find_runsc().version
    except GvisorKernelError as error:
        return f"none: {error.fact}"


def package_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def commit() -> str:
    """Return the commit of the checkout, with a + if files differ from it."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=10", "--dirty=+"],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()
