"""Remembers for which notebooks' folders a person has chosen to show the project around, or not.

A choice holds at the next start of a kernel there, where neither Jupyter's configuration nor a
kernelspec names other uploads. It names the project that the person has seen: another one that is
found later is not shown by it. Who may choose is decided by ``server``.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from gvisor_kernel.config.settings import DEFAULTS, SandboxSpec, find_entry
from gvisor_kernel.config.validators import PROJECT
from gvisor_kernel.errors import SettingError
from gvisor_kernel.host.private_directories import state_root
from gvisor_kernel.runtimes.mounts.folders import find_project_path
from gvisor_kernel.runtimes.state.records import locked
from gvisor_kernel.strict_json import JsonError
from gvisor_kernel.typed_json import read_json

# by path: below the state directory, whose parents only this user can change

MAX_CHOICES = 1000
"""Folders whose choices are remembered: the last ones."""
MAX_BYTES = 8 * 1024 * 1024


def remember(folder: Path, project: str | None) -> None:
    """Remember to show ``project`` to kernels in ``folder``; None: to show that folder alone.

    :raises StateError, OSError: when it cannot be written
    """
    path, name = _path(), os.path.realpath(folder)
    with locked():
        choices = _read(path)
        choices.pop(name, None)
        choices[name] = project or ""
        for old in list(choices)[:-MAX_CHOICES]:
            del choices[old]
        new = path.with_suffix(".new")
        new.write_text(json.dumps(choices))
        new.replace(path)


def may_choose(spec: SandboxSpec) -> bool:
    """Return whether a choice changes what ``spec`` shows: it has no uploads of its own."""
    if spec.uploads not in (DEFAULTS.uploads, PROJECT):
        return False
    try:
        find_entry(spec.runtime).check(replace(spec, uploads=PROJECT))
    except SettingError:  # a runtime whose uploads are its own
        return False
    return True


def with_choice(spec: SandboxSpec, folder: Path) -> SandboxSpec:
    """Return ``spec`` as the person has chosen for kernels in ``folder``.

    :raises StateError: when the state directory cannot be used
    """
    chosen = _read(_path()).get(os.path.realpath(folder)) if may_choose(spec) else None
    if chosen is None:
        return spec
    if not chosen:
        return replace(spec, uploads=DEFAULTS.uploads)
    return replace(spec, uploads=PROJECT) if find_project_path(str(folder)) == chosen else spec


def _path() -> Path:
    return state_root() / "projects.json"


def _read(path: Path) -> dict[str, str]:
    with suppress(OSError, JsonError):
        return read_json(path.read_bytes(), dict[str, str], MAX_BYTES)
    return {}
