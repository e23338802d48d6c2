"""Checks of what sandboxes are shown of this host: the environment, and editable installs in it."""

from __future__ import annotations

import os
import shlex

from gvisor_kernel.cli.checks.base import Check
from gvisor_kernel.cli.checks.jupyter import find_interpreters
from gvisor_kernel.runtimes.mounts.covers import find_jupyters
from gvisor_kernel.runtimes.mounts.editable_installs import Editable, find_editables
from gvisor_kernel.runtimes.mounts.host_python import ask_interpreter, find_world
from gvisor_kernel.spec.layout import is_within

MAX_NAMED = 20
"""Paths in one line."""


def check_shown() -> list[Check]:
    """For each interpreter that a kernelspec of ours starts. Raises LaunchError."""
    return [check for python in find_interpreters() for check in check_environment(python)]


def check_environment(python: str) -> list[Check]:
    """What kernels of the interpreter ``python`` read of the host, whatever their settings."""
    interpreter = ask_interpreter(python)
    world = find_world(python)
    covers = (*world.covers, *find_jupyters(world.prefixes))
    gaps = [c.path for c in covers if any(is_within(c.path, root) for root in world.roots)]
    fact = f"kernels of {python} read {_name(world.roots)}"
    if gaps := [path for path in gaps if os.path.lexists(path)]:
        fact += f"; not {_name(gaps)}"
    user_site = [interpreter.user_site] if interpreter.user_site is not None else []
    found = find_editables(dict.fromkeys((*interpreter.site_directories, *user_site)))
    return [Check("shown", "ok", fact), *(check_editable(python, editable) for editable in found)]


def check_editable(python: str, editable: Editable) -> Check:
    """What is shown of a package that is installed as editable; the rest of its repository is not.

    A hook that cannot be followed is no failure: kernels work, but for its packages.
    """
    name = f"editable {os.path.basename(editable.by)}"  # noqa: PTH119 - text
    pip = f"{shlex.quote(python)} -m pip install"
    if not editable.shown:
        return Check(
            name,
            "warning",
            f"{editable.by} does not say where its packages are, so kernels do not have them",
            f"{pip} .   # without -e, in its repository",
        )
    if editable.left_out:
        return Check(
            name,
            "warning",
            f"{editable.folder or editable.by} has too many modules: {editable.left_out} are left"
            " out",
            f"put them into a package, or {pip} .   # without -e",
        )
    return Check(name, "ok", f"kernels read {_name(editable.shown)}")


def _name(paths: tuple[str, ...] | list[str]) -> str:
    more = f" and {len(paths) - MAX_NAMED} more" if len(paths) > MAX_NAMED else ""
    return ", ".join(paths[:MAX_NAMED]) + more
