"""Makes sandboxes the default of Jupyter, and undoes it.

Two steps, each for one place (the user, an environment, the system). The first is here, a line of
Jupyter's configuration, ``jupyter_config.json``: kernelspecs that name no provisioner are started
by ours. The second, for programs that do not read that configuration, is in
``replaced_kernelspec.py``.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from jupyter_core.paths import SYSTEM_CONFIG_PATH, jupyter_config_dir

from gvisor_kernel.errors import KernelspecError
from gvisor_kernel.jupyter.kernelspecs import PROVISIONER, find_destination, is_ours
from gvisor_kernel.jupyter.replaced_kernelspec import NATIVE
from gvisor_kernel.strict_json import JsonError, parse_json

# by path: Jupyter's folders of configuration and kernelspecs

MAX_FILE = 16 * 1024 * 1024
FILE = "jupyter_config.json"
"""Read by each Jupyter application, before its own configuration."""
SECTION, KEY = "KernelProvisionerFactory", "default_provisioner_name"
VARIABLE = "JUPYTER_DEFAULT_PROVISIONER_NAME"
"""Does the same as the configuration, for all that a process starts."""


def find_config_file(user: bool, prefix: str | None) -> Path:
    """Return Jupyter's configuration file for the user, for ``prefix``, or for the system."""
    if user:
        return Path(jupyter_config_dir(), FILE)
    if prefix is not None:
        return Path(prefix).absolute() / "etc/jupyter" / FILE
    return Path(SYSTEM_CONFIG_PATH[0], FILE)


def set_default(user: bool, prefix: str | None) -> Path:
    """Let our provisioner start kernelspecs that name none; return the file that says so.

    :raises KernelspecError: when the file names another one, or cannot be read or written
    """
    path = find_config_file(user, prefix)
    content = _read(path)
    section = content.setdefault(SECTION, {})
    found = section.get(KEY) if isinstance(section, dict) else section
    if not isinstance(section, dict) or found not in (None, PROVISIONER):
        raise KernelspecError(
            f"{path} sets {SECTION}.{KEY} to {found!r}.",
            "remove that line, if gVisor shall be the default.",
        )
    section[KEY] = PROVISIONER
    _write(path, content)
    return path


def unset_default(user: bool, prefix: str | None) -> Path | None:
    """Undo ``set_default``; return the file that was changed, or None.

    :raises KernelspecError: when the file cannot be read or written
    """
    path = find_config_file(user, prefix)
    content = _read(path)
    section = content.get(SECTION)
    if not isinstance(section, dict) or section.get(KEY) != PROVISIONER:
        return None
    del section[KEY]
    if not section:
        del content[SECTION]
    if content:
        _write(path, content)
        return path
    try:
        path.unlink()
    except OSError as error:
        raise KernelspecError(
            f"{path} cannot be removed: {error.strerror}.",
            "run this command as the user who owns it.",
        ) from error
    return path


def find_defaults() -> list[str]:
    """Return the options of ``uninstall --default`` for the places where it undoes something."""
    system = str(Path(SYSTEM_CONFIG_PATH[0]).parent.parent)
    places = {
        "--user": (True, None),
        "--sys-prefix": (False, sys.prefix),
        f"--prefix {shlex.quote(system)}": (False, system),
    }
    return [option for option, place in places.items() if is_default(*place)]


def is_default(user: bool, prefix: str | None) -> bool:
    """Return whether sandboxes are the default of a place, by one of the two steps."""
    with suppress(KernelspecError):
        section = _read(find_config_file(user, prefix)).get(SECTION)
        if isinstance(section, dict) and section.get(KEY) == PROVISIONER:
            return True
    return is_ours(find_destination(user, prefix) / NATIVE)


def _read(path: Path) -> dict[str, Any]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # it may be a pipe
        with open(descriptor, "rb") as file:
            content = parse_json(file.read(MAX_FILE + 1), MAX_FILE)
    except FileNotFoundError:
        return {}
    except (OSError, JsonError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise KernelspecError(
            f"{path} cannot be read: {reason}.", "repair the file, or move it away."
        ) from error
    if not isinstance(content, dict):
        raise KernelspecError(f"{path} is not a JSON object.", "repair the file.")
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    """Replace the file in one step."""
    target = path.resolve()  # a link to a file that a person keeps elsewhere stays one
    new = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with new.open("x") as file:
            file.write(json.dumps(content, indent=2) + "\n")
        new.chmod(target.stat().st_mode & 0o777 if target.exists() else 0o644)
        new.replace(target)
    except OSError as error:
        with suppress(OSError):
            new.unlink()
        raise KernelspecError(
            f"{path} cannot be written: {error.strerror}.",
            f"use --user, or --sys-prefix in an environment of your own (now: {sys.prefix}).",
        ) from error
