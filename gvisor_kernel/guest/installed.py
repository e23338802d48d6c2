"""The environment in which a kernel's packages are installed, layered over the image's own.

The image's Python is read-only, so pip and uv get a virtual environment in the sandbox's home. A
``.pth`` file in it adds the packages of the setting ``packages`` and those of the image behind its
own: what these have counts as installed, another version of it hides theirs, and uninstalling that
shows it again. The kernel itself does not restart for it: its import path gets the same
directories in front of the image's packages.

Everything runs as the kernel's user. The kernel may change or remove the environment; PID 1 never
imports from it.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import shlex
import site
import subprocess
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any

from gvisor_kernel.guest.refusals import REMEDY
from gvisor_kernel.link.streams import EGRESS_PORT

VARIABLE = "GVISOR_KERNEL_PACKAGES"
"""Names the directory of the environment. A kernel without it has none."""
SETTING = "GVISOR_KERNEL_ENVIRONMENT"
"""Names the directory of the packages of the setting ``packages``, which is read-only."""
ABI_FILE = "abi"
"""File there with the ending of the names of the extension modules that were installed."""
NO_INDEX = f"http://127.0.0.1:{EGRESS_PORT}/simple"
NOT_FOUND = "(from versions: none)"
"""In pip's line about a package of which its index, or no index, has any version."""
HOST_PTH = "_gvisor_kernel_image.pth"
WHEELS = ("/usr/share/python-wheels",)
"""Folders in which distributions keep the wheel of pip that ensurepip uses."""


def prepare(environment: MutableMapping[str, str]) -> None:
    """Make the environment that VARIABLE names, unless it exists, and put it on PATH.

    What fails is printed to stderr, the kernel's log: a kernel without it still runs.
    """
    root = environment.get(VARIABLE)
    if not root:
        return
    try:
        if not os.path.lexists(root):
            _make(root, environment)
    except OSError as error:
        print(f"Packages cannot be installed in {root}: {error}", file=sys.stderr)
        return
    programs = [os.path.join(place, "bin") for place in (root, environment.get(SETTING)) if place]
    path = [entry for entry in environment.get("PATH", "").split(":") if entry not in programs]
    environment["PATH"] = ":".join([*programs, *path])
    environment["VIRTUAL_ENV"] = root


def activate(environment: MutableMapping[str, str]) -> None:
    """Let this interpreter import what is in the environment, and make it before if necessary.

    :raises SystemExit: when the packages of the setting were installed for another Python
    """
    _check_abi(environment)
    prepare(environment)
    root = environment.get("VIRTUAL_ENV")
    if not root or root != environment.get(VARIABLE):
        return
    directory = site_directory(root)
    if directory in sys.path or not os.path.isdir(directory):
        return
    images = {os.path.realpath(path) for path in image_directories()}
    at = next((i for i, p in enumerate(sys.path) if p and os.path.realpath(p) in images), None)
    at = len(sys.path) if at is None else at
    before = list(sys.path)
    for name in sorted(os.listdir(directory)):  # there are some if this kernel is not the first
        if name.endswith(".pth") and name != HOST_PTH:
            site.addpackage(directory, name, {site.makepath(path)[1] for path in before})
    for path in setting_directories(environment):
        site.addsitedir(path, {site.makepath(entry)[1] for entry in before})
    added = [path for path in sys.path if path not in before]
    sys.path[:] = [*before[:at], directory, *added, *before[at:]]
    # Not the image's: it would install into the image, and multiprocessing would not import what
    # the kernel imports.
    sys.executable = os.path.join(root, "bin", "python")


def explain_pip(shell: Any) -> None:
    """Let ``%pip install`` without a route to packages say so in one sentence, as pip cannot.

    pip itself still runs: it may need no network. ``shell``: IPython's of the kernel.
    """
    usual = shell.find_line_magic("pip")

    def pip(line: str) -> None:
        if os.environ.get(VARIABLE) or line.split()[:1] not in (["install"], ["download"]):
            usual(line)
            return
        command = ["/bin/sh", "-c", f"{shlex.quote(sys.executable)} -m pip {line}"]
        # The address refuses at once. By pip's own one, the cell would tell of a refused tunnel.
        variables = {**os.environ, "PIP_INDEX_URL": NO_INDEX, "PIP_RETRIES": "0"}
        has_failed = False
        with subprocess.Popen(
            command,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        ) as process:
            assert process.stdout is not None
            for text in process.stdout:
                has_failed = has_failed or NOT_FOUND in text
                if not has_failed and NO_INDEX not in text:
                    print(text, end="")
        if has_failed:
            remedy = os.environ.get(REMEDY) or "add packages to its setting egress"
            print(
                "gvisor-kernel: pip finds no packages, as this kernel has no network for them;"
                f" {remedy}.",
                file=sys.stderr,
            )

    if usual is not None:
        shell.register_magic_function(pip, "line", "pip")


def site_directory(root: str) -> str:
    """Return the directory of packages below ``root``."""
    return os.path.join(root, "lib", f"python{_version()}", "site-packages")


def setting_directories(environment: Mapping[str, str]) -> list[str]:
    """Return the directory from which the packages of the setting are imported, if there is one."""
    root = environment.get(SETTING)
    return [site_directory(root)] if root else []


def image_directories() -> list[str]:
    """Return the directories from which the image's Python imports packages, in order."""
    directories = site.getsitepackages()
    if site.ENABLE_USER_SITE:
        directories = [site.getusersitepackages(), *directories]
    return directories


def _version() -> str:
    return "{}.{}".format(*sys.version_info)


def _check_abi(environment: Mapping[str, str]) -> None:
    """Check that the packages of the setting were installed for this Python.

    The host knows its version only of some images.
    """
    root = environment.get(SETTING)
    if not root:
        return
    own = importlib.machinery.EXTENSION_SUFFIXES[0]
    try:
        with open(os.path.join(root, ABI_FILE), encoding="ascii", errors="replace") as file:
            made_for = file.read(200).strip()
    except OSError as error:
        made_for = str(error)
    if made_for != own:
        raise SystemExit(
            f"The packages of this kernelspec were installed for another Python ({made_for}, and"
            f" this one is {own}): run `gvisor-kernel install --with ...` again."
        )


def _make(root: str, environment: Mapping[str, str]) -> None:
    new = f"{root}.new"
    directory = site_directory(new)
    programs = os.path.join(new, "bin")
    for made in (directory, programs):
        os.makedirs(made, exist_ok=True)
    python = os.path.realpath(sys.executable)
    _write(
        os.path.join(new, "pyvenv.cfg"),
        f"home = {os.path.dirname(python)}\n"
        "include-system-site-packages = false\n"
        "version = {}.{}.{}\n".format(*sys.version_info),
    )
    for name in ("python", "python3", f"python{_version()}"):
        os.symlink(python, os.path.join(programs, name))
    below = [*setting_directories(environment), *image_directories()]
    lines = [f"import site; site.addsitedir({path!r})" for path in below]
    lines += _find_spare_pip()
    _write(os.path.join(directory, HOST_PTH), "".join(f"{line}\n" for line in lines))
    # The image's own script would run pip for the image.
    script = f'#!/bin/sh\nexec {shlex.quote(os.path.join(root, "bin", "python"))} -m pip "$@"\n'
    for name in ("pip", "pip3"):
        _write(os.path.join(programs, name), script, 0o755)
    os.rename(new, root)


def _find_spare_pip() -> list[str]:
    """Return the wheel from which ``python -m pip`` can run if the image has no pip installed."""
    if any(os.path.isdir(os.path.join(path, "pip")) for path in image_directories()):
        return []
    bundled = os.path.join(os.path.dirname(os.__file__), "ensurepip", "_bundled")
    for directory in (bundled, *WHEELS):
        try:
            names = sorted(os.listdir(directory))
        except OSError:
            continue
        wheels = [name for name in names if name.startswith("pip-") and name.endswith(".whl")]
        if wheels:
            return [os.path.join(directory, wheels[-1])]
    return []


def _write(path: str, text: str, mode: int = 0o644) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text)


# -- modules of the environment --------------------------------------------------------------------
# Those lie below a directory of packages that no kernel can change; others are of a notebook's
# folder, of a session, or of Python.


def find_directories() -> list[str]:
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


def _is_within(origin: str | None) -> bool:
    return isinstance(origin, str) and origin.startswith(tuple(find_directories()))
