"""The setting ``mounts``: more folders and files of the host that a kernel sees.

These checks only report mistakes early. ``runtimes/mounts`` decides when it opens a source, because
links may change until then; so a path is returned with its links.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gvisor_kernel.config.validators import (
    FORBIDDEN_SOURCES,
    accept_flag,
    as_written,
    is_plain_path,
    is_within,
    may_be_writable,
)
from gvisor_kernel.errors import SettingError

RESERVED_TARGETS = (
    "/container_info.json",
    "/dev",
    "/etc",
    "/home/user",
    "/mnt/skills",
    "/mnt/transcripts",
    "/mnt/user-data",
    "/opt/gvisor-kernel",
    "/proc",
    "/run",
    "/sys",
    "/tmp",  # noqa: S108 - inside the sandbox
    "/usr",
    "/workspace",
    *("/bin", "/lib", "/lib32", "/lib64", "/libx32", "/sbin"),
)
"""Paths that the sandbox itself mounts: no extra mount can be at, below or above them."""


@dataclass(frozen=True)
class ExtraMount:
    """A folder or file of the host that the kernel sees at ``target``."""

    source: str
    target: str
    read_only: bool = True


def accept_mounts(name: str, value: object) -> tuple[ExtraMount, ...]:
    """Return the extra mounts in a list of mappings.

    :raises SettingError: when one is not accepted, or the target of one is in another's
    """
    if not isinstance(value, list | tuple):
        raise SettingError(
            name, value, 'a list of {"source": …, "target": …, "read_only": true or false}'
        )
    mounts: list[ExtraMount] = []
    for i, item in enumerate(value):
        mount = accept_mount(f"{name}[{i}]", item)
        for other in mounts:
            if is_within(mount.target, other.target) or is_within(other.target, mount.target):
                raise SettingError(
                    f"{name}[{i}].target",
                    mount.target,
                    f"a path that is not at, below or above {other.target}, another mount's target",
                )
        mounts.append(mount)
    return tuple(mounts)


def accept_mount(name: str, item: object) -> ExtraMount:
    """Return the extra mount in a mapping. ``read_only`` is true if it is missing.

    :raises SettingError: when a key is unknown or missing, or a value is not accepted
    """
    keys = {"source", "target", "read_only"}
    if not isinstance(item, Mapping) or not {"source", "target"} <= set(item) <= keys:
        raise SettingError(
            name, item, 'a mapping with "source", "target" and, optionally, "read_only"'
        )
    read_only = accept_flag(f"{name}.read_only", item.get("read_only", True))
    return ExtraMount(
        accept_source(f"{name}.source", item["source"], read_only),
        accept_target(f"{name}.target", item["target"]),
        read_only,
    )


def check_read_only(mounts: Iterable[ExtraMount], why: str) -> None:
    """Check for a runtime that copies files that no mount is writable.

    :raises SettingError: when one is
    """
    for mount in mounts:
        if not mount.read_only:
            raise SettingError("mounts", mount.source, f"read-only mounts: {why}")


def accept_source(name: str, value: object, read_only: bool) -> str:
    """Return the absolute path of a file or folder to mount, with its links as they were written.

    :raises SettingError: when it does not exist, is a system folder, or may not be written
        although ``read_only`` is false
    """
    accepted = 'the absolute path, without "..", of a folder or file that exists'
    if not isinstance(value, str) or not is_plain_path(value):
        raise SettingError(name, value, accepted)
    path = os.path.expanduser(value)  # noqa: PTH111 - Path's raises for users it does not know
    try:
        real = os.path.realpath(path, strict=True)
        mode = Path(real).stat().st_mode
    except OSError as error:
        raise SettingError(name, value, f"{accepted} ({error.strerror})") from error
    if not path.startswith("/") or not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise SettingError(name, value, accepted)
    if real == "/" or any(is_within(real, folder) for folder in FORBIDDEN_SOURCES):
        raise SettingError(
            name, value, f"{accepted}, but not / or in {', '.join(FORBIDDEN_SOURCES)}"
        )
    if not read_only and not may_be_writable(real):
        raise SettingError(
            name,
            value,
            "a path that is no system folder and contains no home directory, or set read_only to"
            " true",
        )
    return as_written(path)


def accept_target(name: str, value: object) -> str:
    """Return the path inside the sandbox of a mount, normalised.

    :raises SettingError: when it overlaps with a place of the sandbox's own
    """
    if (
        isinstance(value, str)
        and is_plain_path(value)
        and value.startswith("/")
        and ":" not in value
        and "," not in value
    ):
        target = "/" + posixpath.normpath(value).lstrip("/")
        if not any(is_within(target, r) or is_within(r, target) for r in RESERVED_TARGETS):
            return target
    raise SettingError(
        name,
        value,
        'an absolute path without "..", such as "/mnt/data", that is not at, below or above '
        + ", ".join(RESERVED_TARGETS),
    )
