"""An environment in the store: what is in it, and for which Python it was made. Pure: no I/O."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gvisor_kernel.config.packages import DIGEST
from gvisor_kernel.errors import LaunchError, PackagesError

PYTHON = re.compile(r"[0-9]{1,2}\.[0-9]{1,3}")
ABI = re.compile(r"\.[A-Za-z0-9._-]{1,80}")
ABI_FILE = "abi"
"""File in the tree that the kernel's Python compares with its own, see ``guest/installed.py``."""
MAX_FILES = 200_000
"""Files and folders of an environment. One with a dozen large libraries has 60,000."""


@dataclass(frozen=True)
class Base:
    """The Python and the image that an environment lies on: its packages fit these.

    ``image``: the digest of a root image or of an engine's image, or ``host:`` with the path of the
    interpreter. ``python``: its version, such as 3.12; empty where that is not known yet.
    """

    image: str
    python: str


@dataclass(frozen=True)
class Facts:
    """The sandbox's report about what it has made. It is untrusted, and checked here.

    ``abi``: the ending of the names of this Python's extension modules. ``entries``: how many
    files, folders and links there are.
    """

    python: str
    abi: str
    entries: int

    @classmethod
    def parse(cls, content: object) -> Facts:
        """Return the facts in a JSON document.

        :raises PackagesError: when it is not such a document
        """
        if isinstance(content, Mapping):
            python, abi, entries = (content.get(n) for n in ("python", "abi", "entries"))
            if (
                isinstance(python, str)
                and PYTHON.fullmatch(python)
                and isinstance(abi, str)
                and ABI.fullmatch(abi)
                and isinstance(entries, int)
                and 0 <= entries <= MAX_FILES
            ):
                return cls(python, abi, entries)
        raise odd_answer()


def odd_answer() -> PackagesError:
    """Return the error for a sandbox that does not answer as it should."""
    return PackagesError(
        "The sandbox in which the packages were installed gave an odd answer.",
        "one of them may have interfered; check their names.",
    )


@dataclass(frozen=True)
class Environment:
    """``digest`` covers everything but ``created``. ``size`` is in bytes on the disk.

    ``packages``: names and versions of what was installed, without what the image had already.
    """

    digest: str
    directory: Path
    requirements: tuple[str, ...]
    image: str
    python: str
    abi: str
    packages: tuple[tuple[str, str], ...]
    size: int
    entries: int
    created: float

    @property
    def tree(self) -> Path:
        """The directory that kernels see, read-only. Nothing writes to it."""
        return self.directory / "tree"

    @property
    def base(self) -> Base:
        """Return the base that it was made for."""
        return Base(self.image, self.python)

    def check(self, base: Base) -> None:
        """Check that a kernel on ``base`` can import from it.

        :raises LaunchError: when it was made for another Python or another image
        """
        if base.python and base.python != self.python:
            raise LaunchError(
                f"The packages {' '.join(self.requirements)} were installed for Python"
                f" {self.python}, and the kernel has Python {base.python}.",
                install_again(self.requirements),
            )
        if base.image != self.image:
            raise LaunchError(
                f"The packages {' '.join(self.requirements)} were installed for another image than"
                " the one that the kernel has now.",
                install_again(self.requirements),
            )


def install_again(requirements: tuple[str, ...]) -> str:
    """Return the hint for packages that cannot be used."""
    return (
        f'run `gvisor-kernel install --with "{" ".join(requirements)}"` again, with the other'
        " options of this kernelspec."
    )


def write_manifest(environment: Environment) -> str:
    """Return the content of environment.json."""
    return json.dumps({**asdict(environment), "directory": None})


def read_manifest(content: Any, directory: Path) -> Environment:
    """Return the environment in ``directory`` from the content of its environment.json.

    :raises ValueError, TypeError, KeyError: when it is not such a document
    """
    fields = dict(content)
    fields["requirements"] = tuple(map(str, fields["requirements"]))
    fields["packages"] = tuple((str(name), str(version)) for name, version in fields["packages"])
    found = Environment(**{**fields, "directory": directory})
    if not DIGEST.fullmatch(found.digest) or found.digest != directory.name:
        raise ValueError("it is in another directory than its own")
    return found


def compute_digest(tree: str, base: Base, abi: str, requirements: tuple[str, ...]) -> str:
    """Return the digest of an environment whose files have the digest ``tree``."""
    content = json.dumps([tree, base.image, base.python, abi, list(requirements)])
    return hashlib.sha256(content.encode()).hexdigest()
