"""Finds the command line of a kernel inside its sandbox, and reports missing programs.

Only looks at files; starts nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from gvisor_kernel.config.settings import SandboxSpec, find_entry
from gvisor_kernel.config.validators import HOST_IMAGE
from gvisor_kernel.errors import LaunchError
from gvisor_kernel.images import Store
from gvisor_kernel.spec.environment import SYSTEM_PATH

DATA_WORD = "{data}"
"""Prefix in the setting ``command`` for a folder ``share/jupyter`` that contains the rest of the
path. Python packages install the files of kernels in other languages there."""
SYSTEM_DATA = ("/usr/local/share/jupyter", "/usr/share/jupyter")
REMEDIES = {
    "bash_kernel": "`python3 -m pip install bash_kernel`",
    "deno": "`python3 -m pip install 'deno>=2.7,<2.8'`",
    "java": "`sudo apt-get install default-jdk-headless`, a JDK of Java 17 or newer",
    "kernels/java/jjava.jar": "`python3 -m pip install --pre jjava`",
}
"""Commands that install the programs that our own kernelspecs start, by name."""


def choose_program(
    spec: SandboxSpec, argv: list[str], extra: list[str]
) -> tuple[str, tuple[str, ...]]:
    """Return the Python interpreter and the kernel's argv inside the sandbox.

    In the image ``host`` the interpreter decides what the sandbox shows. An empty argv means
    ipykernel of that interpreter. A kernelspec of ours names the launcher and not a kernel. In the
    argv of any other kernelspec a bare ``python`` becomes the interpreter's path and ``{data}`` is
    filled in; ``extra`` is appended.

    :raises GvisorKernelError: when a program named without a path is not on the host, or is not in
        an image of the store; an image of a Docker engine is not checked
    """
    argv = list(argv)
    if find_entry(spec.runtime).images:
        return choose_in_engine(spec, argv, extra)
    if spec.image != HOST_IMAGE:
        return choose_in_image(spec, argv, extra)
    python = argv[0] if argv and argv[0].startswith("/") and "python" in Path(argv[0]).name else ""
    ours = "gvisor_kernel" in argv and "launch" in argv
    if spec.command:
        argv = list(spec.command)
    elif ours or not argv:
        return python or sys.executable, ()
    if argv[0] in {"python", "python3", f"python{sys.version_info[0]}.{sys.version_info[1]}"}:
        argv[0] = python or sys.executable
    python = python or sys.executable
    return python, (*check_on_host(python, argv), *extra)


def choose_in_image(
    spec: SandboxSpec, argv: list[str], extra: list[str]
) -> tuple[str, tuple[str, ...]]:
    """Do the same for an image of the store; Python in an argv means the image's Python."""
    image = Store.open().find(spec.image)
    python = image.require_python()
    argv = choose_argv(spec, argv)
    if argv and is_python(argv[0]):
        argv[0] = python
    image.require_kernel(argv, REMEDIES)
    argv = fill_data(
        argv,
        python,
        lambda path: path in image.find_existing([path]),
        f"The image {image.display_name}",
    )
    return python, (*argv, *extra) if argv else ()


def choose_in_engine(
    spec: SandboxSpec, argv: list[str], extra: list[str]
) -> tuple[str, tuple[str, ...]]:
    """Do the same for an image of a Docker engine, without a check: the engine may be remote."""
    argv = choose_argv(spec, argv)
    if argv and is_python(argv[0]):
        argv[0] = "python3"
    return "python3", (*argv, *extra) if argv else ()


def choose_argv(spec: SandboxSpec, argv: list[str]) -> list[str]:
    """Return the argv of a kernel inside an image other than ``host``; empty for ipykernel."""
    ours = "gvisor_kernel" in argv and "launch" in argv
    return list(spec.command) or ([] if ours else argv)


def is_python(program: str) -> bool:
    """Return whether ``program`` has a name of Python, such as ``/usr/bin/python3.11``."""
    return re.fullmatch(r"python3?(\.\d+)?", Path(program).name) is not None


def check_on_host(python: str, argv: Sequence[str]) -> list[str]:
    """Return ``argv`` for the image ``host``, with data folders filled in.

    :raises LaunchError: when its program or a data file does not exist
    """
    path = host_path(python)
    # A path with a slash is not checked, as the setting mounts may create it.
    if "/" not in argv[0] and shutil.which(argv[0], path=path) is None:
        raise LaunchError(
            f"The kernel needs the program {argv[0]}, which is not in {path}.",
            f"install it: {REMEDIES[argv[0]]}; or run the kernel in an image that has it."
            if argv[0] in REMEDIES
            else "install it, or name another program in the setting command.",
        )
    return fill_data(argv, python, os.path.exists, "This machine")


def host_path(python: str) -> str:
    """Return the PATH of a kernel in the image ``host``."""
    return ":".join(dict.fromkeys((str(Path(python).parent), *SYSTEM_PATH)))


def fill_data(
    argv: Sequence[str], python: str, exists: Callable[[str], bool], where: str
) -> list[str]:
    """Replace ``{data}`` in ``argv`` by a path: the interpreter's folder or the system's.

    ``where`` names the place in an error.

    :raises LaunchError: when no folder has the file
    """
    folders = dict.fromkeys((str(Path(python).parent.parent / "share/jupyter"), *SYSTEM_DATA))
    filled = []
    for word in argv:
        if word.startswith(f"{DATA_WORD}/"):
            name = word.removeprefix(f"{DATA_WORD}/")
            found = next((f"{f}/{name}" for f in folders if exists(f"{f}/{name}")), None)
            if found is None:
                remedy = REMEDIES.get(name, "its package, into the Python that runs the kernel")
                raise LaunchError(
                    f"{where} has no file {name}, which the kernel needs, in {', '.join(folders)}.",
                    f"install it: {remedy}.",
                )
            word = found
        filled.append(word)
    return filled
