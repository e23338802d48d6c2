"""Where images are kept: one private directory a user, one directory in it for each image.

    root-images/                  0700
      lock                        held while images come and go
      names/<name>                the digest of the image that is called so
      <digest>/  image.json       written last
                 inside.json      what its Python said, once somebody has looked
                 tree/            the root file system; nobody writes to it
      new-<random>/               being written, as long as its lock is held
      gone-<random>/              being removed

What half exists has another name and does not count. An image is in its place in one step, when
all of it is on the disk.
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
from gvisor_kernel.images.inspection import Inside, RootImage

FORMAT = 1
MAX_DOCUMENT = 4 * 1024 * 1024
MAX_DIGEST = 64
MIN_DIGITS = 6
"""Of a digest that stands for an image."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Draft:
    """An image that is being written."""

    directory: Path

    @property
    def tree(self) -> Path:
        return self.directory / "tree"

    @property
    def scratch(self) -> Path:
        """For files that are needed on the way."""
        return self.directory / "scratch"


class Store:
    """The images of this user, shared by all of the user's processes. All methods raise
    RootImageError, and none is for an event loop but ``find``.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def open(cls) -> Store:
        """This user's, made if need be. Raises RootImageError where it is not private."""
        data = user_data_path("gvisor-kernel")
        fix = "let it be a directory of yours alone, or let XDG_DATA_HOME name another place."
        root = data / "root-images"
        try:
            private_directories.make_directories(data, root, root / "names")
        except private_directories.NotPrivate as error:
            raise RootImageError(str(error), fix) from error
        return cls(root)

    # -- reading ---------------------------------------------------------------------------------

    def images(self) -> list[RootImage]:
        """Every image, by name. What cannot be read is left out."""
        names = self._names()
        found = (self._read(name, names) for name in os.listdir(self.root))  # noqa: PTH208
        return sorted(
            (i for i in found if i is not None), key=lambda i: (i.names or ("~",), i.digest)
        )

    def find(self, text: str) -> RootImage:
        """The image of a name, or of the beginning of its digest. Milliseconds."""
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
            "see which there are: gvisor-kernel image list; add one: gvisor-kernel image import.",
        )

    def _names(self) -> dict[str, tuple[str, ...]]:
        """The names of each digest."""
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
    def _read_inside(directory: Path) -> Inside | None:
        try:
            content = json.loads(
                private_directories.read_file(directory / "inside.json", MAX_DOCUMENT)
            )
            return Inside(
                version=str(content["version"]),
                modules=frozenset(map(str, content["modules"])),
                packages={str(k): str(v) for k, v in content["packages"].items()},
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    # -- writing ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def write(self) -> Iterator[Draft]:
        """A new image in the making; gone at the end, unless ``keep`` was called with it."""
        self.sweep()
        with private_directories.new_entry(self.root) as directory:
            draft = Draft(directory)
            draft.tree.mkdir(mode=0o755)
            draft.scratch.mkdir(mode=0o700)
            yield draft

    def keep(
        self, draft: Draft, content: dict[str, Any], name: str
    ) -> tuple[RootImage, str | None]:
        """Put a written image in its place and call it ``name``; also the digest of the image that
        was called so before and has no name now. ``content``: the fields of a RootImage that are
        to be written down."""
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

    def note_inside(self, image: RootImage, inside: Inside) -> RootImage:
        """Keep what the image's Python said."""
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
        """Take the name away from an image that has another one; whether it had."""
        with private_directories.locked_directory(self.root):
            digest = self._read_name(name) if IMAGE_NAME.fullmatch(name) else None
            if digest is None or len(self._names()[digest]) < 2:
                return False
            (self.root / "names" / name).unlink()
            return True

    def remove(self, image: RootImage, used: Collection[str]) -> None:
        """Remove an image and its names, unless its digest is among those ``used``.

        Who calls this keeps sandboxes from being started meanwhile.
        """
        if image.digest in used:
            raise RootImageError(
                f"The image {image.called} is in use by running kernels.",
                "shut them down first; gvisor-kernel list shows them.",
            )
        with private_directories.locked_directory(self.root):
            for name in self._names().get(image.digest, ()):
                (self.root / "names" / name).unlink(missing_ok=True)
            private_directories.mark_for_removal(self.root / image.digest)

    def sweep(self) -> None:
        """Remove what was half written, or half removed, by processes that are gone."""
        with private_directories.locked_directory(self.root):
            private_directories.sweep(self.root)
