"""Installs, finds and removes our kernelspecs, which Jupyter lists in its kernel picker.

A kernelspec is a folder with kernel.json and logos. The templates are in ``kernelspecs/`` of the
repository; a wheel has them inside the package. This module only reads and writes the files; the
settings in them belong to config/settings.py.

The argv of an installed kernelspec starts the launcher, for front ends that do not know
provisioners. Its ``-P`` keeps Python from importing modules of the notebook's folder on the host,
where a sandbox may have written a ``json.py``.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_core.paths import SYSTEM_JUPYTER_PATH, jupyter_data_dir

from gvisor_kernel.errors import KernelspecError
from gvisor_kernel.host.private_directories import replace_file

# by path: a path that a person has given on the command line

PROVISIONER = "gvisor-provisioner"
DEFAULT_NAME = "gvisor-python"


@dataclass(frozen=True)
class Kernelspec:
    """An installed kernelspec of ours. ``interpreter`` is None if it does not exist."""

    name: str
    display_name: str
    directory: Path
    argv: tuple[str, ...]
    interpreter: str | None
    settings: Mapping[str, object]
    language: str


def find_template(name: str = DEFAULT_NAME) -> Path:
    """Return the folder of a kernelspec's template in the package.

    :raises KernelspecError: when there is none
    """
    package = Path(__file__).parent.parent
    for kernelspecs in (package / "kernelspecs_data", package.parent / "kernelspecs"):
        if (kernelspecs / name / "kernel.json").is_file():
            return kernelspecs / name
    raise KernelspecError(
        f"This installation of gvisor-kernel has no template of the kernelspec {name!r}.",
        "install gvisor-kernel again.",
    )


def template_settings(name: str) -> dict[str, object]:
    """Return the settings in the template of a kernelspec.

    :raises KernelspecError: when there is no template
    """
    document = json.loads((find_template(name) / "kernel.json").read_text())
    return dict(document["metadata"]["kernel_provisioner"]["config"])


def render_kernelspec(
    template: Mapping[str, Any],
    name: str,
    display_name: str | None,
    interpreter: str,
    settings: Mapping[str, object],
) -> dict[str, Any]:
    """Return the content of kernel.json for one installation."""
    argv = list(template["argv"])
    argv[0] = interpreter
    argv[argv.index("--kernel") + 1] = name
    metadata = dict(template["metadata"])
    provisioner = dict(metadata["kernel_provisioner"])
    provisioner["config"] = {**provisioner["config"], **settings}
    metadata["kernel_provisioner"] = provisioner
    return {
        **template,
        "argv": argv,
        "display_name": display_name or template["display_name"],
        "metadata": metadata,
    }


def install_kernelspec(
    *,
    user: bool = False,
    prefix: str | None = None,
    name: str = DEFAULT_NAME,
    display_name: str | None = None,
    settings: Mapping[str, object] | None = None,
    interpreter: str = sys.executable,
    template: str = DEFAULT_NAME,
) -> Kernelspec:
    """Install a kernelspec into the user's folder, below ``prefix``, or else for the whole system.

    ``template`` names the kernelspec of the package that is copied. ``settings`` are added to its
    ``config``; whoever calls has checked them. A kernelspec of ours with the same name in the same
    place is replaced.

    :raises KernelspecError: when the name is invalid or taken, or when it cannot be written
    """
    check_destination(user, prefix, name)
    if not Path(interpreter).is_absolute():
        raise KernelspecError(
            f"The path of the Python interpreter is {interpreter!r}, which is not absolute.",
            "run this command with an absolute path of the interpreter.",
        )
    settings = settings or {}
    folder = find_template(template)
    document = render_kernelspec(
        json.loads((folder / "kernel.json").read_text()),
        name,
        display_name,
        interpreter,
        settings,
    )
    destination = find_destination(user, prefix) / name
    if destination.exists():
        remove_kernelspec(read_kernelspec(destination))
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, name)
        source.mkdir()
        for logo in folder.glob("logo-*"):
            shutil.copyfile(logo, source / logo.name)
        (source / "kernel.json").write_text(json.dumps(document, indent=1) + "\n")
        # Other users must be able to read a system-wide kernelspec, whatever the umask is.
        source.chmod(0o755)
        for path in source.iterdir():
            path.chmod(0o644)
        try:
            make_manager().install_kernel_spec(str(source), name, user=user, prefix=prefix)
        except OSError as error:
            raise KernelspecError(
                f"The kernelspec cannot be written to {destination}: {error.strerror}.",
                "use --user, or --sys-prefix in an environment of your own.",
            ) from error
    return read_kernelspec(destination)


def name_shown(name: str, template: str) -> str | None:
    """Return what tells a kernelspec of an own name from the usual one; None for that."""
    if name == template:
        return None
    usual = json.loads((find_template(template) / "kernel.json").read_text())["display_name"]
    return f"{usual.removesuffix(')')}, {name})"


def update_kernelspec(
    kernelspec: Kernelspec, display_name: str | None, settings: Mapping[str, object]
) -> Kernelspec:
    """Give an installed kernelspec other ``settings``, and a ``display_name`` unless that is None.

    All else in its kernel.json stays, such as ``env``.

    :raises KernelspecError: when it cannot be written
    """
    path = kernelspec.directory / "kernel.json"
    try:
        document = json.loads(path.read_text())
        document["metadata"]["kernel_provisioner"]["config"] = dict(settings)
        document["display_name"] = display_name or document["display_name"]
        # Other users must be able to read a system-wide kernelspec.
        replace_file(path, json.dumps(document, indent=1) + "\n", 0o644)
    except OSError as error:
        raise KernelspecError(
            f"The kernelspec cannot be written to {path}: {error.strerror}.",
            "run this command as the user who owns it.",
        ) from error
    return read_kernelspec(kernelspec.directory)


def check_destination(user: bool, prefix: str | None, name: str) -> Path:
    """Return the folder of the kernelspec ``name``, which need not exist.

    :raises KernelspecError: when the name is invalid, or another kernelspec has it
    """
    if not re.fullmatch(r"[a-z0-9._-]+", name):
        raise KernelspecError(
            f"The name {name!r} is not valid for a kernelspec.",
            'use lower-case letters, digits, ".", "_" and "-".',
        )
    destination = find_destination(user, prefix) / name
    if destination.exists() and not is_ours(destination):
        raise KernelspecError(
            f"{destination} exists and is not a kernelspec of gvisor-kernel.",
            "choose another --name, or remove it yourself.",
        )
    return destination


def find_destination(user: bool, prefix: str | None) -> Path:
    """Return the folder of kernelspecs for the user, for ``prefix``, or for the system."""
    if user:
        return Path(jupyter_data_dir(), "kernels")
    if prefix is not None:
        return Path(prefix).absolute() / "share/jupyter/kernels"
    return Path(SYSTEM_JUPYTER_PATH[0], "kernels")


def make_manager() -> KernelSpecManager:
    """Return a kernelspec manager that logs errors only."""
    quiet = logging.getLogger(__name__)
    quiet.setLevel(logging.ERROR)
    return KernelSpecManager(log=quiet)


def is_searched(folder: Path) -> bool:
    """Return whether Jupyter, run by this process, searches ``folder`` for kernelspecs."""
    return str(folder) in make_manager().kernel_dirs


def find_first(name: str) -> Path | None:
    """Return the folder of the kernelspec that Jupyter uses for a name, whosever it is."""
    for folder in map(Path, make_manager().kernel_dirs):
        if (folder / name / "kernel.json").is_file():
            return folder / name
    return None


def is_ours(directory: Path) -> bool:
    """Return whether a folder contains a kernelspec that names our provisioner."""
    try:
        read_kernelspec(directory)
    except KernelspecError:
        return False
    return True


def read_kernelspec(directory: Path) -> Kernelspec:
    """Read a kernelspec of ours from its folder.

    :raises KernelspecError: when the folder does not contain one
    """
    try:
        document = json.loads((directory / "kernel.json").read_text())
        provisioner = document["metadata"]["kernel_provisioner"]
        if provisioner["provisioner_name"] != PROVISIONER:
            raise KeyError("provisioner_name")
        argv = tuple(str(word) for word in document["argv"])
        return Kernelspec(
            name=directory.name,
            display_name=str(document["display_name"]),
            directory=directory,
            argv=argv,
            interpreter=find_interpreter(argv),
            settings=dict(provisioner.get("config") or {}),
            language=str(document.get("language", "")),
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise KernelspecError(
            f"{directory} does not contain a kernelspec of gvisor-kernel."
        ) from error


def find_interpreter(argv: tuple[str, ...]) -> str | None:
    """Return the interpreter that Jupyter would start: ``python3`` means Jupyter's own."""
    if not argv:
        return None
    if re.fullmatch(r"python(3(\.\d+)?)?", argv[0]):
        return sys.executable
    return shutil.which(argv[0])


def find_broken_kernelspecs() -> dict[Path, str]:
    """Return each kernel.json, in Jupyter's folders, that cannot be read, and why.

    Whose it was cannot be told any more.
    """
    broken: dict[Path, str] = {}
    for folder in map(Path, make_manager().kernel_dirs):
        for file in sorted(folder.glob("*/kernel.json")):
            try:
                json.loads(file.read_text())
            except OSError as error:
                broken[file] = error.strerror or str(error)
            except ValueError as error:
                broken[file] = f"it is not JSON: {error}"
    return broken


def find_kernelspecs(folder: Path | None = None) -> list[Kernelspec]:
    """Return our kernelspecs in Jupyter's search order, in which the first of a name wins.

    With ``folder``, search only there.
    """
    folders = [folder] if folder else [Path(path) for path in make_manager().kernel_dirs]
    found: dict[Path, Kernelspec] = {}
    for folder in folders:
        try:
            directories = sorted(folder.iterdir())
        except OSError:
            continue
        for directory in directories:
            if is_ours(directory):
                found.setdefault(directory.resolve(), read_kernelspec(directory))
    return list(found.values())


def remove_kernelspec(kernelspec: Kernelspec) -> None:
    """Remove an installed kernelspec.

    :raises KernelspecError: when the files cannot be removed
    """
    try:
        if kernelspec.directory.is_symlink():
            kernelspec.directory.unlink()
        else:
            shutil.rmtree(kernelspec.directory)
    except OSError as error:
        raise KernelspecError(
            f"The kernelspec {kernelspec.directory} cannot be removed: {error.strerror}.",
            "run this command as the user who owns it.",
        ) from error
