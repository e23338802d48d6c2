"""The runtime's entry. It has no setting of its own: the environment names the engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gvisor_kernel.config.settings import RuntimeEntry, SandboxSpec
from gvisor_kernel.errors import SettingError
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


def _check(spec: SandboxSpec) -> None:
    if spec.runsc:
        accepted = '"": the Docker engine has a runsc of its own, as its runtime'
        raise SettingError("runsc", spec.runsc, accepted)


ENTRY = RuntimeEntry(
    make=_make,
    check=_check,
    images="the Docker engine",
    variables=("DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", *SSH_VARIABLES),
    remove=_remove,
)
