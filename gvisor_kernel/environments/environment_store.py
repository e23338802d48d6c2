"""The store of environments: one private directory per user, with one directory for each.

    environments/                    0700
      lock                           locked while names change
      <digest>/  environment.json    what is in it, and for which Python
                 kernelspecs         the folders of the kernelspecs that it was installed for
                 lock                locked while a kernelspec is being written for it
                 tree/               what kernels see; nothing writes to it
      new-<random>/                  being made: outputs/ is what the sandbox may write
      gone-<random>/                 being removed

An environment gets its name in one step, after all of it was written to the disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_data_path

from gvisor_kernel.config.packages import DIGEST
from gvisor_kernel.environments.collection import remove_at_any_depth
from gvisor_kernel.environments.environment import (
    Base,
    Environment,
    install_again,
    read_manifest,
    write_manifest,
)
from gvisor_kernel.errors import LaunchError, PackagesError
from gvisor_kernel.host import private_directories
from gvisor_kernel.strict_json import parse_json

# by path: below a private store of this user

FOLDER = "environments"
MAX_DOCUMENT = 1024 * 1024
"""Bytes of environment.json, and of the list of kernelspecs."""
MAX_KERNELSPECS = 1000


@dataclass(frozen=True)
class Draft:
    """An environment that is being made."""

    directory: Path

    @property
    def tree(self) -> Path:
        """The folder for what kernels will see."""
        return self.directory / "tree"

    @property
    def outputs(self) -> Path:
        """The folder that the sandbox may write."""
        return self.directory / "outputs"


class Store:
    """The environments of this user, shared by all of the user's processes.

    :raises OSError: (methods that write) when the directory cannot be used
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def exists(cls) -> bool:
        """Return whether this user has a store, which ``open`` would make."""
        return (user_data_path("gvisor-kernel") / FOLDER).is_dir()

    @classmethod
    def open(cls) -> Store:
        """Open the store of this user; create it if it does not exist.

        :raises PackagesError: when its directory is not private to this user
        """
        data = user_data_path("gvisor-kernel")
        root = data / FOLDER
        try:
            private_directories.make_directories(data, root)
        except private_directories.NotPrivate as error:
            raise PackagesError(
                str(error),
                "make it a directory that only you can access, or set XDG_DATA_HOME to another"
                " place.",
            ) from error
        return cls(root)

    # -- reading ---------------------------------------------------------------------------------

    def environments(self) -> list[Environment]:
        """Return all environments that can be read, the newest first."""
        found = (self._read(name) for name in os.listdir(self.root))  # noqa: PTH208
        return sorted((e for e in found if e is not None), key=lambda e: -e.created)

    def find(self, digest: str, requirements: tuple[str, ...]) -> Environment:
        """Return the environment of this digest. ``requirements`` are for the error.

        :raises LaunchError: when there is none
        """
        found = self._read(digest)
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

    def _read(self, digest: str) -> Environment | None:
        if not DIGEST.fullmatch(digest):
            return None
        directory = self.root / digest
        try:
            text = private_directories.read_file(directory / "environment.json", MAX_DOCUMENT)
            return read_manifest(parse_json(text, MAX_DOCUMENT), directory)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    # -- writing ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def write(self) -> Iterator[Draft]:
        """Yield a new, unfinished environment. At the end it is removed, unless it was kept."""
        with private_directories.locked_directory(self.root):
            self._sweep()
        with private_directories.new_entry(self.root) as directory:
            draft = Draft(directory)
            draft.tree.mkdir(mode=0o755)
            draft.outputs.mkdir(mode=0o700)
            try:
                yield draft
            finally:
                remove_at_any_depth(draft.outputs)

    def keep(self, draft: Draft, environment: Environment) -> Environment:
        """Finish a draft whose tree is complete."""
        private_directories.write_file(
            draft.directory / "environment.json", write_manifest(environment)
        )
        remove_at_any_depth(draft.outputs)
        with private_directories.locked_directory(self.root):
            target = self.root / environment.digest
            if self._read(environment.digest) is None:
                private_directories.mark_for_removal(target)
                draft.directory.rename(target)
        return self.find(environment.digest, environment.requirements)

    @contextlib.contextmanager
    def held(self, environment: Environment, kernelspec: Path) -> Iterator[None]:
        """Keep ``environment`` while its kernelspec is being written, and note the kernelspec.

        :raises LaunchError: when the environment was removed meanwhile
        """
        held = contextlib.ExitStack()
        with held:
            with private_directories.locked_directory(self.root):
                self.find(environment.digest, environment.requirements)
                file = environment.directory / "lock"
                held.enter_context(private_directories.lock(file, fcntl.LOCK_SH, create=True))
                known = [*self.kernelspecs_of(environment), str(kernelspec)]
                known = list(dict.fromkeys(known))[-MAX_KERNELSPECS:]
                new = environment.directory / f".{secrets.token_hex(8)}"
                private_directories.write_file(new, json.dumps(known))
                new.replace(environment.directory / "kernelspecs")
            yield

    def kernelspecs_of(self, environment: Environment) -> list[str]:
        """Return the folders of the kernelspecs that ``environment`` was installed for."""
        try:
            file = environment.directory / "kernelspecs"
            found = parse_json(private_directories.read_file(file, MAX_DOCUMENT), MAX_DOCUMENT)
        except (OSError, ValueError):
            return []
        return [str(path) for path in found] if isinstance(found, list) else []

    def remove_unused(
        self, is_used: Callable[[Environment, list[str]], bool], running: Collection[str]
    ) -> list[Environment]:
        """Remove and return the environments that nothing uses.

        ``is_used`` gets an environment and the folders of its kernelspecs. ``running``: the digests
        of those in which kernels run; the caller keeps sandboxes from starting.
        """
        removed = []
        with private_directories.locked_directory(self.root):
            for environment in self.environments():
                if environment.digest in running:
                    continue
                file = environment.directory / "lock"
                how = fcntl.LOCK_EX | fcntl.LOCK_NB
                # While it is locked, somebody is about to write a kernelspec that uses it.
                lock = private_directories.lock(file, how, create=True)
                with contextlib.suppress(BlockingIOError), lock:
                    if is_used(environment, self.kernelspecs_of(environment)):
                        continue
                    private_directories.mark_for_removal(environment.directory)
                    removed.append(environment)
            self._sweep()
        return removed

    def _sweep(self) -> None:
        """Remove what is unfinished and nobody fills. The caller holds the directory's lock."""
        for name in os.listdir(self.root):  # noqa: PTH208
            if name.startswith((private_directories.NEW, private_directories.GONE)):
                entry = self.root / name
                how = fcntl.LOCK_EX | fcntl.LOCK_NB
                lock = private_directories.lock(entry / "lock", how, create=True)
                with contextlib.suppress(OSError), lock:
                    remove_at_any_depth(entry / "outputs")
        private_directories.sweep(self.root)
