"""The declarations of an engine's image. They are checked, as a stranger may have written them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gvisor_kernel.errors import LaunchError

VARIABLES_SIZE = 64 * 1024
"""Bytes of the environment variables that an image may have."""
MAX_VOLUMES = 20
"""Each is one more tmpfs in the sandbox."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class EngineImage:
    """``environment``: its variables. ``volumes``: folders to make writable."""

    digest: str
    environment: Mapping[str, str]
    volumes: tuple[str, ...]


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
    return EngineImage(str(found.get("Id", "")), variables, tuple(volumes))


def _is_plain(path: str) -> bool:
    return path.startswith("/") and ".." not in path.split("/") and path.isprintable()


def _unusable(name: str, why: str) -> LaunchError:
    return LaunchError(f"The image {name} cannot be used: {why}.", "build it without them.")
