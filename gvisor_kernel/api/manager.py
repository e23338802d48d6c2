"""Makes the kernel manager of a sandbox: jupyter_client's own, with our provisioner."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from traitlets.config import Config

from gvisor_kernel.config.jupyter_config import OWN
from gvisor_kernel.config.settings import SETTINGS, find_own_settings
from gvisor_kernel.egress.environment import PROGRAM, Door
from gvisor_kernel.errors import SettingError, UnknownSetting
from gvisor_kernel.jupyter.kernelspecs import find_template
from gvisor_kernel.jupyter.plan_factory import read_configuration

LANGUAGES = ("python", "bash", "typescript", "java")
ALIASES = {"memory": "memory_limit", "disk": "disk_limit", "pids": "pids_limit"}
"""Short names of settings."""
PRIVATE: Mapping[str, object] = {"uploads": None, "outputs": None}
"""A program's folder is not shown to a sandbox unless the program says so."""


class _OneKernelSpec(KernelSpecManager):
    """Knows the one kernelspec of a sandbox, whatever is installed on this machine."""

    def __init__(self, kernel_spec: KernelSpec, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._kernel_spec = kernel_spec

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return self._kernel_spec


class Manager(AsyncKernelManager):
    """jupyter_client's manager, without a connection file: it would outlive a killed process, and
    has a key."""

    logs_death = False
    """Tells the provisioner not to log a death: it is part of the result."""
    holds_replies = False
    """Tells the provisioner that this client misses no reply, and answers no outputs."""
    door = PROGRAM
    """Tells the provisioner who can give the kernel routes, and that a program is refused what it
    may not have."""
    lasting = False
    """Tells the provisioner that the kernel outlives its program, and another one takes it over."""

    def write_connection_file(self, **kwargs: Any) -> None:
        """Write none. Called at each start."""


def choose_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by their full names, with the defaults for programs.

    :raises SettingError: when one is unknown, or is given by both of its names
    """
    chosen = dict(PRIVATE)
    for name, value in settings.items():
        full = ALIASES.get(name, name)
        if full not in SETTINGS and full not in OWN:
            raise UnknownSetting(name, value, [*SETTINGS, *find_own_settings(), *ALIASES])
        if full != name and full in settings:
            raise SettingError(name, value, f"nothing, since {full} is given as well")
        chosen[full] = value
    return chosen


def make_manager(language: str, settings: Mapping[str, Any], door: Door = PROGRAM) -> Manager:
    """Return a manager whose kernels are started in sandboxes. It starts nothing yet.

    Jupyter's configuration of this user counts as for a server: its routes, its limits. The start
    of a PROGRAM's kernel fails if that asks for more than it may have.

    :raises SettingError: when the language or a setting is wrong
    """
    if language not in LANGUAGES:
        raise SettingError("language", language, f"one of {', '.join(LANGUAGES)}")
    name = f"gvisor-{language}"
    folder = find_template(name)
    document = json.loads((folder / "kernel.json").read_text())
    document["argv"][0] = sys.executable
    document["metadata"]["kernel_provisioner"]["config"].update(choose_settings(settings))
    kernel_spec = KernelSpec(resource_dir=str(folder), **document)
    config: Config = read_configuration()
    manager = Manager(
        kernel_name=name,
        kernel_spec_manager=_OneKernelSpec(kernel_spec),
        config=config,
        transport="ipc",
    )
    manager.door = door
    return manager


def describe_uploads(path: str | Path | None) -> str | None:
    """Return a folder that a sandbox reads as a setting: absolute, so that it is what was meant.

    :raises SettingError: when there is no such folder
    """
    folder = describe_folder(path)
    if folder is not None and not Path(folder).is_dir():
        raise SettingError("uploads", str(path), f"a folder that exists: there is no {folder}")
    return folder


def describe_folder(path: str | Path | None) -> str | None:
    """Return a folder of the program as a setting, absolute."""
    return None if path is None else str(Path(path).expanduser().absolute())
