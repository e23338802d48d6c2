"""Finds secrets of routes that a kernel would see without any route: then it must not start.

A variable that the setting ``environment`` passes on, or a file in a folder that the sandbox shows,
would put the key where a route keeps it from.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.config.validators import INSTALLED_SKILLS, is_within, real_path
from gvisor_kernel.egress.routes import Route, UrlRoute
from gvisor_kernel.errors import SettingError
from gvisor_kernel.host.homes import find_home
from gvisor_kernel.skills.skill_store import FOLDERS, default_folder


def check_exposure(routes: Iterable[Route], spec: SandboxSpec, folder: Path) -> None:
    """Check that a kernel with ``spec`` in ``folder`` sees no secret of ``routes``, whether it uses
    them or not.

    :raises SettingError: when it would see one
    """
    for route in routes:
        if not isinstance(route, UrlRoute) or route.secret is None:
            continue
        kind, _, place = route.secret.partition(":")
        if kind == "env" and place in spec.environment:
            raise SettingError(
                "environment",
                list(spec.environment),
                f"a list without {place}, which is the secret of the route {route.name}: a kernel"
                " that has the route does not need the key",
            )
        if kind == "file":
            for setting, value, shown in find_shown(spec, folder):
                if is_within(real_path(place), real_path(shown)):
                    raise SettingError(
                        setting,
                        value,
                        f"a folder without the secret of the route {route.name}, or move the file"
                        f" {place} out of {shown}, which this kernel sees",
                    )


def find_shown(spec: SandboxSpec, folder: Path) -> Iterator[tuple[str, object, str]]:
    """Yield the folders and files of a person that a kernel sees: setting, value, path.

    The notebook's folder is not shown if it is a home, or above one.
    """
    for name in ("uploads", "outputs"):
        value = getattr(spec, name)
        if value is not None:
            path = os.path.join(folder, value)  # noqa: PTH118 - an absolute value replaces folder
            if find_home(real_path(path)) is None:
                yield name, value, path
    if spec.skills is not None:
        skills = str(default_folder()) if spec.skills == INSTALLED_SKILLS else spec.skills
        for name in FOLDERS:
            yield "skills", spec.skills, os.path.join(skills, name)  # noqa: PTH118 - text
    for i, mount in enumerate(spec.mounts):
        yield f"mounts[{i}].source", mount.source, mount.source
