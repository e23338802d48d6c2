"""What a kernel's argv is inside, on the host and in an image; and what of it is missing.

Looks, and starts nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from gvisor_kernel.config.settings import HOST_IMAGE, SandboxSpec
from gvisor_kernel.errors import LaunchError
from gvisor_kernel.images import Store
from gvisor_kernel.spec.environment import SYSTEM_PATH

DATA_WORD = "{data}"
"""In a word of the setting ``command``: a folder ``share/jupyter`` that has what follows it. There
packages of Python lay down the files of kernels in other languages."""
SYSTEM_DATA = ("/usr/local/share/jupyter", "/usr/share/jupyter")
REMEDIES = {
    "bash_kernel": "`python3 -m pip install bash_kernel`",
    "deno": "`python3 -m pip install 'deno>=2.7,<2.8'`",
    "java": "`sudo apt-get install default-jdk-headless`, a JDK of Java 17 or newer",
    "kernels/java/jjava.jar": "`python3 -m pip install --pre jjava`",
}
"""How one comes to what our own kernelspecs start, by the name of it."""


def choose_program(
    spec: SandboxSpec, argv: list[str], extra: list[str]
) -> tuple[str, tuple[str, ...]]:
    """The interpreter, which for the image ``host`` defines it, and the kernel's argv inside.

    An empty argv is ipykernel of that interpreter. A kernelspec of ours names this launcher, not
    a kernel; any other kernelspec's argv is run as it is. Raises GvisorKernelError where what is
    to run is not there.
    """
    if spec.runtime == "docker":
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
    return python, (*need_on_host(python, argv), *extra)


def choose_in_image(
    spec: SandboxSpec, argv: list[str], extra: list[str]
) -> tuple[str, tuple[str, ...]]:
    """Likewise, for an image from the store: a kernelspec's Python is that of the image."""
    image = Store.open().find(spec.image)
    python = image.need_python()
    argv = choose_own(spec, argv)
    if argv and is_python(argv[0]):
        argv[0] = python
    image.need_kernel(argv, REMEDIES)
    argv = fill_data(
        argv, python, lambda path: path in image.present([path]), f"The image {image.called}"
    )
    return python, (*argv, *extra) if argv else ()


def choose_in_engine(
    spec: SandboxSpec, argv: list[str], extra: list[str]
) -> tuple[str, tuple[str, ...]]:
    """Likewise, for an image of a Docker engine. What that has is seen when it starts."""
    argv = choose_own(spec, argv)
    if argv and is_python(argv[0]):
        argv[0] = "python3"
    return "python3", (*argv, *extra) if argv else ()


def choose_own(spec: SandboxSpec, argv: list[str]) -> list[str]:
    """The argv of a kernel inside an image of its own; empty for ipykernel."""
    ours = "gvisor_kernel" in argv and "launch" in argv
    return list(spec.command) or ([] if ours else argv)


def is_python(program: str) -> bool:
    return re.fullmatch(r"python3?(\.\d+)?", Path(program).name) is not None


def need_on_host(python: str, argv: Sequence[str]) -> list[str]:
    """``argv`` for the image ``host``. Raises LaunchError where something of it is missing."""
    path = host_path(python)
    # A path may be one that the setting mounts makes.
    if "/" not in argv[0] and shutil.which(argv[0], path=path) is None:
        raise LaunchError(
            f"There is no program {argv[0]}, which the kernel needs, in {path}.",
            f"install it: {REMEDIES[argv[0]]}; or run the kernel in an image that has it."
            if argv[0] in REMEDIES
            else "install it, or name another in the setting command.",
        )
    return fill_data(argv, python, os.path.exists, "This machine")


def host_path(python: str) -> str:
    """Where a kernel of the image ``host`` finds programs."""
    return ":".join(dict.fromkeys((str(Path(python).parent), *SYSTEM_PATH)))


def fill_data(
    argv: Sequence[str], python: str, exists: Callable[[str], bool], where: str
) -> list[str]:
    """``argv`` with paths in the place of ``{data}``: of the interpreter first, then the system's.

    Raises LaunchError for a file that none of them has.
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
                    f"{where} has no {name}, which the kernel needs, in {', '.join(folders)}.",
                    f"install it: {remedy}.",
                )
            word = found
        filled.append(word)
    return filled
