"""Images: their store, and what the root file system of one contains, without running any of it.

    root-images/
      names/<name>                the digest of the image that has this name
      <digest>/  image.json       written last
                 inside.json      what its Python reported, if it was asked
                 tree/            the root file system; nothing writes to it

``store`` says how an image gets its name, and how it is removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from gvisor_kernel.config.validators import IMAGE_NAME
from gvisor_kernel.errors import LaunchError, RootImageError
from gvisor_kernel.host.descriptors import closing_fd
from gvisor_kernel.host.folders import is_program, stat_in
from gvisor_kernel.host.private_directories import (
    mark_for_removal,
    read_file,
    replace_file,
    write_file,
)
from gvisor_kernel.store import DIGEST, DigestStore, Draft

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


def _opened(directory: Path) -> contextlib.AbstractContextManager[int]:
    return closing_fd(os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))


FORMAT = 1
MAX_DOCUMENT = 4 * 1024 * 1024
"""Bytes of image.json and of inside.json."""
MAXDIGEST = 64
MIN_DIGITS = 6
"""Digits at the beginning of a digest that are enough to find an image."""


class Store(DigestStore[RootImage]):
    """The images of this user.

    :raises RootImageError: (``open``, ``find``, ``remove``) see there
    """

    FOLDER, BELOW, ERROR = "root-images", ("names",), RootImageError

    def images(self) -> list[RootImage]:
        """Return all images, sorted by name, without those that cannot be read."""
        names = self._names()
        found = (replace(image, names=names.get(image.digest, ())) for image in self.entries())
        return sorted(found, key=lambda image: (image.names or ("~",), image.digest))

    def find(self, text: str) -> RootImage:
        """Find an image by a name, or by the beginning of its digest. Takes milliseconds.

        :raises RootImageError: when there is none, or the digits fit several
        """
        if IMAGE_NAME.fullmatch(text) and (digest := self._read_name(text)) is not None:
            image = self.read(digest)
            if image is not None:
                return replace(image, names=(text,))
        digits = text.removeprefix("sha256:")
        if len(digits) >= MIN_DIGITS:
            found = [image for image in self.images() if image.digest.startswith(digits)]
            if len(found) == 1:
                return found[0]
        raise RootImageError(
            f"There is no image {text!r}.",
            "list the images: gvisor-kernel image list; add one: gvisor-kernel image import.",
        )

    def _names(self) -> dict[str, tuple[str, ...]]:
        """Return the names of each digest."""
        found: dict[str, tuple[str, ...]] = {}
        with contextlib.suppress(OSError):
            for name in sorted(os.listdir(self.root / "names")):  # noqa: PTH208
                digest = self._read_name(name) if IMAGE_NAME.fullmatch(name) else None
                if digest is not None:
                    found[digest] = (*found.get(digest, ()), name)
        return found

    def _read_name(self, name: str) -> str | None:
        with contextlib.suppress(OSError):
            digest = read_file(self.root / "names" / name, MAXDIGEST).decode("ascii", "replace")
            return digest if DIGEST.fullmatch(digest) else None
        return None

    def load(self, directory: Path) -> RootImage:
        """Read an image, without its names."""
        try:
            content = json.loads(read_file(directory / "image.json", MAX_DOCUMENT))
            if content.pop("format") != FORMAT or content["digest"] != directory.name:
                raise ValueError("another format, or another image")
            inside = _read_inside(directory)
            return RootImage(directory=directory, names=(), inside=inside, **content)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError("no image") from error

    # -- writing ---------------------------------------------------------------------------------

    def keep(
        self, draft: Draft, content: dict[str, Any], name: str
    ) -> tuple[RootImage, str | None]:
        """Finish an image, and give it ``name``. ``content`` are the fields of RootImage to store.

        Return the image, and the digest of the one that had the name before if it has no name any
        more.
        """
        digest = content["digest"]
        text = json.dumps({"format": FORMAT, **content})
        write_file(draft.directory / "image.json", text)
        with self.locked():
            before = self._read_name(name)
            self.publish(draft, digest)
            replace_file(self.root / "names" / name, digest)
            nameless = before if before != digest and before not in self._names() else None
        self.sweep()
        return self.find(name), nameless

    def save_inside(self, image: RootImage, inside: PythonReport) -> RootImage:
        """Store what the image's Python reported."""
        with contextlib.suppress(OSError, ValueError):  # also: half a character in a name
            replace_file(image.directory / "inside.json", msgspec.json.encode(inside).decode())
        return self.find(image.digest)

    def forget(self, name: str) -> bool:
        """Remove a name of an image that has another one. Return whether that was done."""
        with self.locked():
            digest = self._read_name(name) if IMAGE_NAME.fullmatch(name) else None
            if digest is None or len(self._names()[digest]) < 2:
                return False
            (self.root / "names" / name).unlink()
            return True

    def remove(self, image: RootImage, used: Collection[str]) -> None:
        """Remove an image and its names. The caller keeps sandboxes from starting meanwhile.

        ``used`` are the digests of the images that sandboxes run in.

        :raises RootImageError: when the image is one of them
        """
        if image.digest in used:
            raise RootImageError(
                f"The image {image.display_name} is in use by running kernels.",
                "shut these kernels down first; gvisor-kernel list shows them.",
            )
        with self.locked():
            for name in self._names().get(image.digest, ()):
                (self.root / "names" / name).unlink(missing_ok=True)
            mark_for_removal(self.root / image.digest)


def _read_inside(directory: Path) -> PythonReport | None:
    with contextlib.suppress(OSError, ValueError):
        text = read_file(directory / "inside.json", MAX_DOCUMENT)
        return msgspec.json.decode(text, type=PythonReport)
    return None
