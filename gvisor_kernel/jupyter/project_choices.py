"""Remembers for which notebooks' folders a person has chosen to show the project around, or not.

A choice holds from the next start there, where no setting names other uploads. It is for the
project that the person has seen, and for no other one that is found later. ``server`` decides who
may choose.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from gvisor_kernel.config.settings import DEFAULTS, SandboxSpec, find_entry
from gvisor_kernel.config.validators import PROJECT
from gvisor_kernel.errors import SettingError, StateError
from gvisor_kernel.host.private_directories import replace_file, state_root
from gvisor_kernel.runtimes.mounts.folders import find_project_path
from gvisor_kernel.runtimes.state.records import locked
from gvisor_kernel.strict_json import JsonError
from gvisor_kernel.typed_json import read_json

FILE = "projects.json"
MAX_CHOICES, MAX_BYTES = 1000, 8 * 1024 * 1024
"""The last choices are remembered; the bytes of the file."""


def remember(folder: Path, project: str | None) -> None:
    """Remember to show ``project`` to kernels in ``folder``; None: to show that folder alone.

    :raises StateError: when it cannot be written
    """
    name, path = os.path.realpath(folder), state_root() / FILE
    with locked():
        others = [choice for choice in _read().items() if choice[0] != name]
        text = json.dumps(dict([*others[1 - MAX_CHOICES :], (name, project or "")]))
        try:
            replace_file(path, text)
        except OSError as error:
            raise StateError(
                f"The choice cannot be kept in {path}: {error.strerror}.",
                "check whether the disk is full.",
            ) from error


def may_choose(spec: SandboxSpec) -> bool:
    """Return whether a choice changes what ``spec`` shows: it has no uploads of its own."""
    with suppress(SettingError):  # a runtime whose uploads are its own
        find_entry(spec.runtime).check(replace(spec, uploads=PROJECT))
        return spec.uploads in (DEFAULTS.uploads, PROJECT)
    return False


def with_choice(spec: SandboxSpec, folder: Path) -> SandboxSpec:
    """Return ``spec`` as the person has chosen for kernels in ``folder``.

    :raises StateError: when the state directory cannot be used
    """
    chosen = _read().get(os.path.realpath(folder))
    if chosen is None or (chosen and find_project_path(str(folder)) != chosen):
        return spec
    return replace(spec, uploads=PROJECT if chosen else DEFAULTS.uploads)


def _read() -> dict[str, str]:
    with suppress(OSError, JsonError):
        return read_json((state_root() / FILE).read_bytes(), dict[str, str], MAX_BYTES)
    return {}
