"""The declarations of an engine's image. They are checked, as a stranger may have written them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import LaunchError
from gvisor_kernel.spec.environment import kernel_environment

VARIABLES_SIZE = 64 * 1024
"""Bytes of the environment variables that an image may have."""
MAX_VOLUMES = 20
"""Each is one more tmpfs in the sandbox."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class EngineImage:
    """``environment``: without PATH, which is ``path``. ``volumes``: folders to make writable."""

    digest: str
    environment: tuple[tuple[str, str], ...]
    path: tuple[str, ...]
    volumes: tuple[str, ...]

    def environment_of(self, spec: SandboxSpec, server: Mapping[str, str]) -> dict[str, str]:
        """Return the whole environment of a kernel. ``server``: the server's environment."""
        return kernel_environment(
            bin_directories=self.path,
            present=(),
            user_base=None,
            names=spec.environment,
            server=server,
            image=dict(self.environment),
        )


def read_image(found: Mapping[str, Any], name: str) -> EngineImage:
    """Read what the engine knows of an image.

    :raises LaunchError: when its variables or volumes cannot be used
    """
    config = found.get("Config") or {}
    variables: dict[str, str] = {}
    for entry in config.get("Env") or ():
        key, equals, value = str(entry).partition("=")
        if equals and _NAME.fullmatch(key) and "\0" not in value:
            variables[key] = value
    volumes = [str(volume) for volume in config.get("Volumes") or ()]
    if sum(len(k) + len(v) for k, v in variables.items()) > VARIABLES_SIZE:
        raise _unusable(name, "its environment variables have more than 64 KiB")
    if len(volumes) > MAX_VOLUMES or not all(map(_is_plain, volumes)):
        raise _unusable(name, f"it has more than {MAX_VOLUMES} volumes, or one with an odd path")
    path = variables.pop("PATH", "")
    return EngineImage(
        digest=str(found.get("Id", "")),
        environment=tuple(sorted(variables.items())),
        path=tuple(part for part in path.split(":") if part.startswith("/")),
        volumes=tuple(volumes),
    )


def _is_plain(path: str) -> bool:
    return path.startswith("/") and ".." not in path.split("/") and path.isprintable()


def _unusable(name: str, why: str) -> LaunchError:
    return LaunchError(f"The image {name} cannot be used: {why}.", "build it without them.")
