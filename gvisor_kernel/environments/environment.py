"""Environments: what is in one, for which Python it was made, and their store.

    environments/
      <digest>/  environment.json    what is in it, and for which Python
                 kernelspecs         the folders of the kernelspecs that it was installed for
                 lock                locked while a kernelspec is being written for it
                 tree/               what kernels see; nothing writes to it

The sandbox writes to the scratch folder of a draft. ``store`` says how an environment gets its
name, and how it is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import msgspec

from gvisor_kernel.errors import LaunchError, PackagesError
from gvisor_kernel.host.private_directories import (
    lock,
    mark_for_removal,
    own_data,
    read_file,
    replace_file,
    write_file,
)
from gvisor_kernel.store import DigestStore, Draft
from gvisor_kernel.strict_json import parse_json
from gvisor_kernel.typed_json import read_json, write_json

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

    python: Annotated[str, msgspec.Meta(pattern=r"\A[0-9]{1,2}\.[0-9]{1,3}\Z")]
    abi: Annotated[str, msgspec.Meta(pattern=r"\A\.[A-Za-z0-9._-]{1,80}\Z")]
    entries: Annotated[int, msgspec.Meta(ge=0, le=MAX_FILES)]

    @classmethod
    def parse(cls, content: object) -> Facts:
        """Return the facts in a JSON document.

        :raises PackagesError: when it is not such a document
        """
        try:
            return msgspec.convert(content, cls)
        except ValueError:
            raise odd_answer() from None


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


def compute_digest(tree: str, base: Base, abi: str, requirements: tuple[str, ...]) -> str:
    """Return the digest of an environment whose files have the digest ``tree``."""
    content = json.dumps([tree, base.image, base.python, abi, list(requirements)])
    return hashlib.sha256(content.encode()).hexdigest()


MAX_DOCUMENT = 1024 * 1024
"""Bytes of environment.json, and of the list of kernelspecs."""
MAX_KERNELSPECS = 1000


class Store(DigestStore[Environment]):
    """The environments of this user."""

    FOLDER, ERROR = "environments", PackagesError

    @classmethod
    def exists(cls) -> bool:
        """Return whether this user has a store, which ``open`` would make."""
        return (own_data() / cls.FOLDER).is_dir()

    def environments(self) -> list[Environment]:
        """Return all environments that can be read, the newest first."""
        return sorted(self.entries(), key=lambda environment: -environment.created)

    def find(self, digest: str, requirements: tuple[str, ...]) -> Environment:
        """Return the environment of this digest. ``requirements`` are for the error.

        :raises LaunchError: when there is none
        """
        found = self.read(digest)
        if found is None:
            raise LaunchError(
                f"The packages {' '.join(requirements)} of this kernelspec are not installed here"
                f" (environment {digest[:12]}).",
                install_again(requirements),
            )
        return found

    def find_built(self, requirements: tuple[str, ...], base: Base) -> Environment | None:
        """Return what was installed for these requirements on ``base`` before, the newest."""
        for found in self.environments():
            is_same = sorted(found.requirements) == sorted(requirements)
            fits = found.image == base.image and base.python in ("", found.python)
            if is_same and fits:
                return found
        return None

    def load(self, directory: Path) -> Environment:
        """Read an environment."""
        text = read_file(directory / "environment.json", MAX_DOCUMENT)
        found = replace(read_json(text, Environment, MAX_DOCUMENT), directory=directory)
        if found.digest != directory.name:
            raise ValueError("it is in another directory than its own")
        return found

    def keep(self, draft: Draft, environment: Environment) -> Environment:
        """Finish a draft whose tree is complete."""
        found = replace(environment, directory=Path())
        write_file(draft.directory / "environment.json", write_json(found))
        with self.locked():
            self.publish(draft, environment.digest)
        return self.find(environment.digest, environment.requirements)

    @contextlib.contextmanager
    def held(self, environment: Environment, kernelspec: Path) -> Iterator[None]:
        """Keep ``environment`` while its kernelspec is being written, and note the kernelspec.

        :raises LaunchError: when the environment was removed meanwhile
        """
        held = contextlib.ExitStack()
        with held:
            with self.locked():
                self.find(environment.digest, environment.requirements)
                file = environment.directory / "lock"
                held.enter_context(lock(file, fcntl.LOCK_SH, create=True))
                known = [*self.kernelspecs_of(environment), str(kernelspec)]
                known = list(dict.fromkeys(known))[-MAX_KERNELSPECS:]
                replace_file(environment.directory / "kernelspecs", json.dumps(known))
            yield

    def kernelspecs_of(self, environment: Environment) -> list[str]:
        """Return the folders of the kernelspecs that ``environment`` was installed for."""
        try:
            text = read_file(environment.directory / "kernelspecs", MAX_DOCUMENT)
            return msgspec.convert(parse_json(text, MAX_DOCUMENT), list[str])
        except (OSError, ValueError):
            return []

    def remove_unused(
        self, is_used: Callable[[Environment, list[str]], bool], running: Collection[str]
    ) -> list[Environment]:
        """Remove and return the environments that nothing uses.

        ``is_used`` gets an environment and the folders of its kernelspecs. ``running``: the digests
        of those in which kernels run; the caller keeps sandboxes from starting.
        """
        removed = []
        with self.locked():
            for environment in self.environments():
                if environment.digest in running:
                    continue
                file = environment.directory / "lock"
                how = fcntl.LOCK_EX | fcntl.LOCK_NB
                # While it is locked, somebody is about to write a kernelspec that uses it.
                held = lock(file, how, create=True)
                with contextlib.suppress(BlockingIOError), held:
                    if is_used(environment, self.kernelspecs_of(environment)):
                        continue
                    mark_for_removal(environment.directory)
                    removed.append(environment)
            self._sweep()
        return removed
