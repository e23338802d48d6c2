"""What an image in the store is, and what its root file system holds, without running any of it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from gvisor_kernel.archive.scoped import is_program, stat_in
from gvisor_kernel.errors import LaunchError

DEFAULT_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
OLDEST_PYTHON = (3, 9)
KERNEL_MODULES = ("ipykernel", "zmq")
NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Inside:
    """What the image's own Python said in a sandbox. ``modules``: names that it can import.

    ``packages``: the versions of some.
    """

    version: str
    modules: frozenset[str] = field(repr=False)
    packages: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RootImage:
    """An image in the store. ``digest`` names it; ``names`` are what people call it.

    ``environment``: what its maker set for programs in it. ``source``: text for people. ``inside``:
    None where nobody has looked yet. ``size`` in bytes of the disk.
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
    inside: Inside | None = None

    @property
    def tree(self) -> Path:
        """The root file system. Nobody writes to it."""
        return self.directory / "tree"

    @property
    def called(self) -> str:
        return self.names[0] if self.names else self.digest[:12]

    @property
    def path(self) -> tuple[str, ...]:
        """Where programs are looked for."""
        folders = self.environment.get("PATH", "").split(":")
        return tuple(f for f in folders if f.startswith("/")) or DEFAULT_PATH

    @property
    def python(self) -> str | None:
        """The path of the interpreter that runs the sandbox and, if need be, the kernel."""
        return self.find_program("python3")

    def find_program(self, name: str) -> str | None:
        """Where a program is, as a shell in the image would find it."""
        with _opened(self.tree) as root:
            places = [name] if "/" in name else [f"{folder}/{name}" for folder in self.path]
            return next((place for place in places if is_program(root, place)), None)

    def present(self, paths: Sequence[str]) -> frozenset[str]:
        """Those of ``paths`` that lead to something."""
        with _opened(self.tree) as root:
            return frozenset(path for path in paths if stat_in(root, path) is not None)

    # -- what a kernel needs ---------------------------------------------------------------------

    def need_python(self) -> str:
        """The interpreter's path. Raises LaunchError where there is none that can be used."""
        python = self.python
        if python is None:
            raise LaunchError(
                f"The image {self.called} has no python3 in {':'.join(self.path)}.",
                "add Python 3.9 or newer to it, which also runs the sandbox of kernels in other"
                " languages; see docs/images.md.",
            )
        version = self.inside.version if self.inside is not None else ""
        numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
        if numbers and numbers < OLDEST_PYTHON:
            raise LaunchError(
                f"The image {self.called} has Python {version}.",
                "it has to be 3.9 or newer: put a newer python3 first in its PATH.",
            )
        return python

    def need_kernel(self, argv: Sequence[str], remedies: Mapping[str, str] = NOTHING) -> None:
        """Raise LaunchError where what ``argv`` starts is not there; empty: ipykernel.

        What nobody has looked for yet counts as there. ``remedies``: how one comes to a program or
        a module, by its name.
        """
        if not argv:
            for name in KERNEL_MODULES:
                self._need_module(name)
            return
        if self.find_program(argv[0]) is None:
            raise LaunchError(
                f"The image {self.called} has no program {argv[0]}, which starts the kernel.",
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
                f"The Python of the image {self.called} ({self.python}) has no module {name}, which"
                " the kernel needs.",
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
