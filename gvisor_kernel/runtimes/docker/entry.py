"""The runtime's entry. It has no setting of its own: the environment names the engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gvisor_kernel.config.settings import RuntimeEntry
from gvisor_kernel.runtimes.clients import SSH_VARIABLES

if TYPE_CHECKING:
    from gvisor_kernel.runtimes.docker.runtime import DockerRuntime
    from gvisor_kernel.runtimes.state.records import Record


def _make() -> DockerRuntime:
    from gvisor_kernel.runtimes.docker.runtime import DockerRuntime

    return DockerRuntime()


def _remove(directory: Path, record: Record, seconds: float | None) -> bool:
    from gvisor_kernel.runtimes.docker.removal import remove_from_engine

    return remove_from_engine(directory, record, seconds)


ENTRY = RuntimeEntry(
    make=_make,
    images="the Docker engine",
    variables=("DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", *SSH_VARIABLES),
    remove=_remove,
)
