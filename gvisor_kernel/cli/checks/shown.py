"""Checks of what kernels can read of this host: the Python environment and editable installs."""

from __future__ import annotations

import os
import shlex

from gvisor_kernel.cli.checks.jupyter import find_interpreters
from gvisor_kernel.config.validators import is_within
from gvisor_kernel.runtimes.checks import Check, ok, warning
from gvisor_kernel.runtimes.mounts.covers import find_jupyter_covers
from gvisor_kernel.runtimes.mounts.editable_installs import Editable, find_editables
from gvisor_kernel.runtimes.mounts.host_python import ask_interpreter, find_host_python

MAX_NAMED = 20
"""How many paths one result names."""


def check_shown() -> list[Check]:
    """Check the environment of each interpreter that a gvisor-kernel kernelspec starts.

    :raises LaunchError: when an interpreter does not answer
    """
    return [check for python in find_interpreters() for check in check_environment(python)]


def check_environment(python: str) -> list[Check]:
    """List what kernels of the interpreter ``python`` can read of the host with any settings.

    :raises LaunchError: when the interpreter does not answer
    """
    interpreter = ask_interpreter(python)
    python_tree = find_host_python(python)
    covers = (*python_tree.covers, *find_jupyter_covers(python_tree.prefixes))
    gaps = [c.path for c in covers if any(is_within(c.path, root) for root in python_tree.roots)]
    fact = f"kernels of {python} can read {_join(python_tree.roots)}"
    if gaps := [path for path in gaps if os.path.lexists(path)]:
        fact += f"; but not {_join(gaps)}"
    user_site = [interpreter.user_site] if interpreter.user_site is not None else []
    found = find_editables(dict.fromkeys((*interpreter.site_directories, *user_site)))
    return [
        ok(fact),
        *(check_editable(python, editable) for editable in found),
    ]


def check_editable(python: str, editable: Editable) -> Check:
    """List what kernels can read of an editable install; they cannot read its whole repository.

    An import hook that cannot be interpreted is only a warning: kernels work, without its packages.
    """
    name = f"editable {os.path.basename(editable.by)}"  # noqa: PTH119 - text
    pip = f"{shlex.quote(python)} -m pip install"
    if not editable.shown:
        return warning(
            f"{editable.by} does not tell where its packages are: kernels cannot import them",
            f"{pip} .   # in its repository, without -e",
            name=name,
        )
    if editable.left_out:
        return warning(
            f"{editable.folder or editable.by} has too many modules: kernels cannot import"
            f" {editable.left_out} of them",
            f"move them into a package, or: {pip} .   # in the repository, without -e",
            name=name,
        )
    return ok(f"kernels can read {_join(editable.shown)}", name=name)


def _join(paths: tuple[str, ...] | list[str]) -> str:
    more = f" and {len(paths) - MAX_NAMED} more" if len(paths) > MAX_NAMED else ""
    return ", ".join(paths[:MAX_NAMED]) + more
