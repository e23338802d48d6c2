"""Tells modules of the environment from those of a notebook's folder, of a session or of Python.

A module of the environment lies below a directory of packages that no kernel can change.
"""

from __future__ import annotations

import importlib.util
import os
import site
import sys
from typing import List, Optional

from gvisor_kernel.guest.installed import SETTING


def find_directories() -> List[str]:
    """Return the directories of the environment's packages."""
    found = list(site.getsitepackages())
    if site.ENABLE_USER_SITE:
        found.append(site.getusersitepackages())
    if SETTING in os.environ:
        found.append(os.environ[SETTING])
    return [os.path.join(path, "") for path in found]


def is_installed(name: str) -> bool:
    """Return whether the first part of a module's name is in the environment. Imports nothing."""
    try:
        spec = importlib.util.find_spec(name.partition(".")[0])
    except (ImportError, ValueError, AttributeError):
        return False
    return spec is not None and _is_within(spec.origin)


def is_loaded(name: str) -> bool:
    """Return whether ``name`` is a module that this process has imported from the environment."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return _is_within(getattr(spec, "origin", None))


def _is_within(origin: Optional[str]) -> bool:
    return isinstance(origin, str) and origin.startswith(tuple(find_directories()))
