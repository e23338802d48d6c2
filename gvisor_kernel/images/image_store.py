"""The store of images: one private directory per user, with one directory for each image.

    root-images/                  0700
      lock                        locked while names change
      names/<name>                the digest of the image that has this name
      <digest>/  image.json       written last
                 inside.json      what its Python reported, if it was asked
                 tree/            the root file system; nothing writes to it
      new-<random>/               being written, as long as its lock is held
      gone-<random>/              being removed

An image gets its name in one step, after all of it was written to the disk. Incomplete ones have
other names and are ignored.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platformdirs import user_data_path

from gvisor_kernel.config.validators import IMAGE_NAME
from gvisor_kernel.errors import RootImageError
from gvisor_kernel.host import private_directories
from gvisor_kernel.images.inspection import PythonReport, RootImage

# by path: below a private store of this user; an image that a person has given

FORMAT = 1
MAX_DOCUMENT = 4 * 1024 * 1024
"""Bytes of image.json and of inside.json."""
MAX_DIGEST = 64
MIN_DIGITS = 6
"""Digits at the beginning of a digest that are enough to find an image."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Draft:
    """An image that is being written."""

    directory: Path

    @property
    def tree(self) -> Path:
        """The folder that the root file system is unpacked into."""
        return self.directory / "tree"

    @property
    def scratch(self) -> Path:
        """The directory for temporary files of the import."""
        return self.directory / "scratch"


class Store:
    """The images of this user, shared by all of the user's processes.

    All methods but ``find`` may block for seconds: do not call them from an event loop.

    :raises RootImageError: (``open``, ``find``, ``remove``) see there
    :raises OSError: (methods that write) when the directory cannot be used
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def open(cls) -> Store:
        """Open the store of this user; create it if it does not exist.

        :raises RootImageError: when its directory is not private to this user
        """
        data = user_data_path("gvisor-kernel")
        fix = "make it a directory that only you can access, or set XDG_DATA_HOME to another place."
        root = data / "root-images"
        try:
            private_directories.make_directories(data, root, root / "names")
        except private_directories.NotPrivate as error:
            raise RootImageError(str(error), fix) from error
        return cls(root)

    # -- reading ---------------------------------------------------------------------------------

    def images(self) -> list[RootImage]:
        """Return all images, sorted by name, without those that cannot be read."""
        names = self._names()
        found = (self._read(name, names) for name in os.listdir(self.root))  # noqa: PTH208
        return sorted(
            (i for i in found if i is not None), key=lambda i: (i.names or ("~",), i.digest)
        )

    def find(self, text: str) -> RootImage:
        """Find an image by a name, or by the beginning of its digest. Takes milliseconds.

        :raises RootImageError: when there is none, or the digits fit several
        """
        if IMAGE_NAME.fullmatch(text) and (digest := self._read_name(text)) is not None:
            image = self._read(digest, {digest: (text,)})
            if image is not None:
                return image
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
            digest = private_directories.read_file(self.root / "names" / name, MAX_DIGEST).decode(
                "ascii", "replace"
            )
            return digest if _DIGEST.fullmatch(digest) else None
        return None

    def _read(self, digest: str, names: dict[str, tuple[str, ...]]) -> RootImage | None:
        if not _DIGEST.fullmatch(digest):
            return None
        directory = self.root / digest
        try:
            content = json.loads(
                private_directories.read_file(directory / "image.json", MAX_DOCUMENT)
            )
            if content.pop("format") != FORMAT or content["digest"] != digest:
                return None
            return RootImage(
                directory=directory,
                names=names.get(digest, ()),
                inside=self._read_inside(directory),
                **content,
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    @staticmethod
    def _read_inside(directory: Path) -> PythonReport | None:
        try:
            content = json.loads(
                private_directories.read_file(directory / "inside.json", MAX_DOCUMENT)
            )
            return PythonReport(
                version=str(content["version"]),
                modules=frozenset(map(str, content["modules"])),
                packages={str(k): str(v) for k, v in content["packages"].items()},
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    # -- writing ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def write(self) -> Iterator[Draft]:
        """Yield a new, unfinished image. At the end it is removed, unless ``keep`` was called."""
        self.sweep()
        with private_directories.new_entry(self.root) as directory:
            draft = Draft(directory)
            draft.tree.mkdir(mode=0o755)
            draft.scratch.mkdir(mode=0o700)
            yield draft

    def keep(
        self, draft: Draft, content: dict[str, Any], name: str
    ) -> tuple[RootImage, str | None]:
        """Finish an image, and give it ``name``. ``content`` are the fields of RootImage to store.

        Return the image, and the digest of the one that had the name before if it has no name any
        more.
        """
        digest = content["digest"]
        shutil.rmtree(draft.scratch, ignore_errors=True)
        text = json.dumps({"format": FORMAT, **content})
        private_directories.write_file(draft.directory / "image.json", text)
        with private_directories.locked_directory(self.root):
            before = self._read_name(name)
            if self._read(digest, {}) is None:
                private_directories.mark_for_removal(self.root / digest)
                draft.directory.rename(self.root / digest)
            new = self.root / "names" / f".{secrets.token_hex(8)}"
            new.write_text(digest)
            new.replace(self.root / "names" / name)
            nameless = before if before != digest and before not in self._names() else None
        self.sweep()
        return self.find(name), nameless

    def save_inside(self, image: RootImage, inside: PythonReport) -> RootImage:
        """Store what the image's Python reported."""
        content = {
            "version": inside.version,
            "modules": sorted(inside.modules),
            "packages": dict(inside.packages),
        }
        with contextlib.suppress(OSError):
            new = image.directory / f".{secrets.token_hex(8)}"
            private_directories.write_file(new, json.dumps(content))
            new.replace(image.directory / "inside.json")
        return self.find(image.digest)

    def forget(self, name: str) -> bool:
        """Remove a name of an image that has another one. Return whether that was done."""
        with private_directories.locked_directory(self.root):
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
        with private_directories.locked_directory(self.root):
            for name in self._names().get(image.digest, ()):
                (self.root / "names" / name).unlink(missing_ok=True)
            private_directories.mark_for_removal(self.root / image.digest)

    def sweep(self) -> None:
        """Remove incomplete images of processes that have ended."""
        with private_directories.locked_directory(self.root):
            private_directories.sweep(self.root)
