"""Access to a running Docker engine of this host. Never starts one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

IMAGE = "gvisor-kernel-benchmarks:latest"
ANSWER_SECONDS = 20
SHIM = "containerd-shim"


class EngineError(Exception):
    """There is no engine, or something is missing in it; the text says what."""


class Engine:
    """Connection to the engine.

    :raises EngineError: when no engine answers
    """

    def __init__(self) -> None:
        try:
            import docker  # type: ignore[import-untyped,unused-ignore]
        except ImportError as error:
            raise EngineError("the package docker is not installed") from error
        try:
            self._client: Any = docker.from_env(timeout=ANSWER_SECONDS)
            self.version = str(self._client.version()["Version"])
        except Exception as error:
            raise EngineError(f"no Docker engine answers: {shorten(error)}") from error

    def close(self) -> None:
        self._client.close()

    @property
    def runtimes(self) -> list[str]:
        return sorted(name for name in self._client.info()["Runtimes"] if "." not in name)

    def require(self, runtime: str) -> None:
        """Check that the engine has ``runtime`` and the image.

        :raises EngineError: when one is missing
        """
        if runtime not in self.runtimes:
            raise EngineError(f"the Docker engine has no runtime {runtime}")
        if not self._client.images.list(name=IMAGE):
            raise EngineError(f"no image {IMAGE}: python -m benchmarks.peers.image makes it")

    @property
    def host_address(self) -> str:
        """The host's address for containers on the network ``bridge``."""
        network = self._client.networks.get("bridge")
        return str(network.attrs["IPAM"]["Config"][0]["Gateway"])

    def containers(self) -> dict[str, set[psutil.Process]]:
        """Return the ids of containers of our image, with each one's processes on the host.

        These are its shim, all processes below the shim, and the forwarders of its ports.
        """
        found = {}
        for container in self._client.containers.list(filters={"ancestor": IMAGE}):
            with contextlib.suppress(Exception):  # gone meanwhile
                found[str(container.id)] = set(self._processes(container))
        return found

    @staticmethod
    def _processes(container: Any) -> Iterator[psutil.Process]:
        container.reload()
        state, network = container.attrs["State"], container.attrs["NetworkSettings"]
        process = psutil.Process(state["Pid"])
        shim = next((p for p in process.parents() if p.name().startswith(SHIM)), process)
        yield shim
        yield from shim.children(recursive=True)
        addresses = {each["IPAddress"] for each in network["Networks"].values()}
        for each in psutil.process_iter(["name", "cmdline"]):
            if each.info["name"] == "docker-proxy" and addresses & set(each.info["cmdline"] or ()):
                yield each

    def remove_containers(self) -> int:
        """Remove every container of our image; return their number."""
        containers = self._client.containers.list(all=True, filters={"ancestor": IMAGE})
        for container in containers:
            with contextlib.suppress(Exception):
                container.remove(force=True)
        return len(containers)

    def import_image(self, tar: Path, changes: list[str]) -> str:
        """Import a root file system as ``IMAGE``; return the id of the image."""
        name, tag = IMAGE.split(":")
        self._client.api.timeout = 600
        answer = self._client.api.import_image_from_file(
            os.fspath(tar), repository=name, tag=tag, changes=changes
        )
        return str(answer).strip()


def shorten(error: object, limit: int = 300) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[:limit] + "…"
