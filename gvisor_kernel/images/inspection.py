"""An image in the store, and what its root file system contains, without running any of it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from gvisor_kernel.errors import LaunchError
from gvisor_kernel.host.folders import is_program, stat_in

# by path: below a private store of this user; an image that a person has given

DEFAULT_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
OLDEST_PYTHON = (3, 9)
KERNEL_MODULES = ("ipykernel", "zmq")
NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class PythonReport:
    """The report of the image's own Python, from a sandbox. It is untrusted.

    ``modules`` are the names that can be imported, ``packages`` the versions of some packages.
    """

    version: str
    modules: frozenset[str] = field(repr=False)
    packages: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RootImage:
    """An image in the store, identified by ``digest``.

    ``environment`` are the variables that the image sets. ``source`` says where it is from.
    ``inside`` is None until its Python was asked. ``size`` is in bytes on the disk, ``created`` in
    seconds since the epoch.
    """

    digest: str
    directory: Path
    names: tuple[str, ...]
    environment: Mapping[str, str]
    source: Mapping[str, str]
    left_out: Mapping[str, int]
    size: int
    entries: int
    created: float
    inside: PythonReport | None = None

    @property
    def tree(self) -> Path:
        """The directory of the root file system. Nothing writes to it."""
        return self.directory / "tree"

    @property
    def display_name(self) -> str:
        """The first name, or else the beginning of the digest, for messages."""
        return self.names[0] if self.names else self.digest[:12]

    @property
    def path(self) -> tuple[str, ...]:
        """The directories in which programs are searched for."""
        folders = self.environment.get("PATH", "").split(":")
        return tuple(f for f in folders if f.startswith("/")) or DEFAULT_PATH

    @property
    def python(self) -> str | None:
        """The path of the interpreter for a sandbox's PID 1 and for Python kernels, or None."""
        return self.find_program("python3")

    def find_program(self, name: str) -> str | None:
        """Return the path of a program, as a shell in the image would find it; None if missing."""
        with _opened(self.tree) as root:
            places = [name] if "/" in name else [f"{folder}/{name}" for folder in self.path]
            return next((place for place in places if is_program(root, place)), None)

    def find_existing(self, paths: Sequence[str]) -> frozenset[str]:
        """Return those of ``paths`` that exist."""
        with _opened(self.tree) as root:
            return frozenset(path for path in paths if stat_in(root, path) is not None)

    # -- what a kernel needs ---------------------------------------------------------------------

    def require_python(self) -> str:
        """Return the path of the image's interpreter.

        :raises LaunchError: when the image has none, or an older one than OLDEST_PYTHON
        """
        python = self.python
        if python is None:
            raise LaunchError(
                f"The image {self.display_name} has no python3 in {':'.join(self.path)}.",
                "add Python 3.9 or newer to it: it also runs the sandbox of kernels in other"
                " languages; see docs/images.md.",
            )
        version = self.inside.version if self.inside is not None else ""
        numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
        if numbers and numbers < OLDEST_PYTHON:
            raise LaunchError(
                f"The image {self.display_name} has Python {version}.",
                "install Python 3.9 or newer in it, and put it first in the image's PATH.",
            )
        return python

    def require_kernel(self, argv: Sequence[str], remedies: Mapping[str, str] = NOTHING) -> None:
        """Check that the image has the program and the module that ``argv`` starts; if it is empty,
        ipykernel.

        Modules are not checked until the image's Python was asked. ``remedies`` says by name how to
        add a program.

        :raises LaunchError: when something is missing
        """
        if not argv:
            for name in KERNEL_MODULES:
                self._need_module(name)
            return
        if self.find_program(argv[0]) is None:
            raise LaunchError(
                f"The image {self.display_name} has no program {argv[0]}, which starts the kernel.",
                f"add it to the image: {remedies[argv[0]]}."
                if argv[0] in remedies
                else "add it to the image, or name another in the setting command.",
            )
        if "python" in Path(argv[0]).name and "-m" in argv[:-1]:
            self._need_module(argv[argv.index("-m") + 1])

    def _need_module(self, module: str) -> None:
        name = module.partition(".")[0]
        if self.inside is not None and name not in self.inside.modules:
            raise LaunchError(
                f"The Python of the image {self.display_name} ({self.python}) has no module {name},"
                " which the kernel needs.",
                f"add it to the image: `python3 -m pip install {name.replace('zmq', 'pyzmq')}`; see"
                " docs/images.md.",
            )


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
