"""Import an image into the store from a directory, an archive, Docker or Podman.

A failed import leaves nothing in the store. Nothing of an image runs here: its Python is asked by a
function of the caller.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from gvisor_kernel.archive.layers import Budget, apply_archive, apply_folder
from gvisor_kernel.archive.tar import CHUNK, TarReader
from gvisor_kernel.archive.tree import Tree
from gvisor_kernel.config.validators import HOST_IMAGE, IMAGE_NAME, IMAGE_NAME_RULE
from gvisor_kernel.errors import ArchiveError, GvisorKernelError, RootImageError
from gvisor_kernel.images.blobs import Blobs, FolderBlobs, TarBlobs, decompressed, is_compressed
from gvisor_kernel.images.engines import save_image
from gvisor_kernel.images.formats import Manifest, open_layer, read_manifest
from gvisor_kernel.images.image import PythonReport, RootImage, Store
from gvisor_kernel.store import Draft, measure_tree

# by path: below a private store of this user; an image that a person has given

Report = Callable[[str, float], None]
"""Called when a step begins, with its description and the share of the import that is done (0 to
1)."""
Probe = Callable[[RootImage], PythonReport]
"""Asks the Python of an image in a sandbox for its version and packages. Passed in, because the
package that starts sandboxes imports this one. It may raise GvisorKernelError."""

PROGRAM_FOLDERS = ("usr", "bin")
HINT = "see docs/images.md for what can be imported."
MAX_ROOTS = 100
"""Entries for the root directory itself that are skipped to find the first name in an archive. Real
archives have one or none."""


@dataclass(frozen=True)
class Imported:
    """The result of an import.

    ``replaced`` is the digest of the image that had the name before, if it has no name any more.
    ``problem`` says why the image's Python could not be asked.
    """

    image: RootImage
    replaced: str | None
    problem: GvisorKernelError | None = None


def choose_name(source: str, name: str | None) -> str:
    """Return the name of an image: ``name``, or else one derived from its source.

    :raises RootImageError: when it is not a valid name of an image
    """
    if name is None:
        last = source.rstrip("/").rpartition("/")[2].partition("@")[0].lower()
        last = re.sub(r"\.(tar(\.\w+)?|tgz|tzst|txz)$", "", last)
        name = re.sub(r"[^a-z0-9._-]+", "-", last).strip("._-")
    if not IMAGE_NAME.fullmatch(name) or name == HOST_IMAGE:
        raise RootImageError(
            f"An image cannot have the name {name!r}.",
            f"set another one with --name: {IMAGE_NAME_RULE}; not {HOST_IMAGE}.",
        )
    return name


@dataclass(frozen=True)
class Import:
    """An import into ``store`` under ``name``.

    ``reference`` chooses one of several images in an archive. ``owner``: the uid and gid of the
    unpacked files; None leaves those of this process. ``budget``: by default, what there is room
    for on the disk.
    """

    store: Store
    name: str
    report: Report = lambda words, done: None
    reference: str | None = None
    owner: int | None = None
    budget: Budget | None = None

    def import_source(self, source: str, probe: Probe) -> Imported:
        """Import a path, or an image of Docker or Podman, and ask its Python what it has. Blocks.

        :raises RootImageError: when the source does not exist or is not accepted
        """
        if os.path.exists(source) or source.startswith(("/", ".", "~")):  # noqa: PTH110 - never raises
            return self.import_path(Path(source), source, probe)
        with self.store.write() as draft:
            self.report("Saving the image of Docker or Podman", 0.0)
            file = draft.scratch / "image.tar"
            save_image(source, file)
            return self.import_path(file, source, probe)

    def import_path(self, path: Path, origin: str, probe: Probe) -> Imported:
        """Import a file or directory, and ask its Python what it has. Blocks.

        ``origin`` says in messages and in ``image list`` where the image is from.

        :raises RootImageError: when it does not exist or is not accepted
        """
        imported = self.unpack(path, origin)
        self.report("Starting the image's Python", 0.95)
        image = imported.image
        if image.inside is not None or image.python is None:
            return imported
        try:
            inside = probe(image)
        except GvisorKernelError as error:
            return replace(imported, problem=error)
        return replace(imported, image=self.store.save_inside(image, inside))

    def unpack(self, path: Path, origin: str) -> Imported:
        """Unpack the image at ``path`` into the store, without running any of it. Blocks.

        ``path`` is an OCI layout or a root file system (each as a directory or an archive), or an
        archive of ``docker save``.

        :raises RootImageError: when it is not accepted, or the disk is full; the store is unchanged
        """
        try:
            with self.store.write() as draft:
                image, replaced = self._fill(draft, path, origin)
        except ArchiveError as error:
            hint = error.hint or f"check it, or get it again; {HINT}"
            raise RootImageError(f"Could not import {origin}: {error.fact}.", hint) from error
        except OSError as error:
            reason, hint = _explain(error, path, self.store)
            raise RootImageError(f"Could not import {origin}: {reason}.", hint) from error
        return Imported(image, replaced)

    def _fill(self, draft: Draft, path: Path, origin: str) -> tuple[RootImage, str | None]:
        budget = self.budget or Budget.of_disk(draft.directory)
        with closing(Tree(draft.tree, self.owner)) as tree:
            found = self._apply(path, tree, budget, draft)
            self.report("Writing to the disk", 0.8)
            tree.finish()
        if not any((draft.tree / folder).is_dir() for folder in PROGRAM_FOLDERS):
            raise ArchiveError("there is no root file system: neither /usr nor /bin exists")
        self.report("Computing the digest", 0.85)
        environment = dict(found.environment) if found is not None else {}
        measure = measure_tree(draft.tree, environment)
        source = {"from": origin}
        if found is not None:
            source |= {"reference": found.reference, "config": found.config_digest}
        content = {
            "digest": measure.digest,
            "environment": environment,
            "source": source,
            "left_out": budget.left_out,
            "size": measure.size,
            "entries": measure.entries,
            "created": time.time(),
        }
        return self.store.keep(draft, content, self.name)

    def _apply(self, path: Path, tree: Tree, budget: Budget, draft: Draft) -> Manifest | None:
        self.report("Detecting the format", 0.0)
        if path.is_dir():
            blobs = FolderBlobs(path)
            manifest = read_manifest(blobs, self.reference)
            if manifest is None:
                self.report("Copying the files", 0.05)
                apply_folder(path, tree, budget)
                return None
            self._apply_layers(blobs, manifest, tree, budget)
            return manifest
        with path.open("rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ArchiveError(
                    "it is neither a file nor a directory",
                    f"give the path of an existing file or folder; {HINT}",
                )
            with decompressed(file) as stream:
                entries = islice(TarReader(stream), MAX_ROOTS)
                first = next((entry.parts[0] for entry in entries if entry.parts), "")
            file.seek(0)
            if not _IMAGE_ARCHIVE_ROOTS.fullmatch(first):
                self.report("Unpacking", 0.05)
                with decompressed(file) as stream:
                    apply_archive(stream, tree, budget, is_layer=False)
                return None
            with _open_decompressed(file, draft, budget) as plain:
                archive = TarBlobs(plain)
                manifest = read_manifest(archive, self.reference)
                if manifest is None:
                    raise ArchiveError(
                        "the archive is neither a root file system nor an image archive",
                        HINT,
                    )
                self._apply_layers(archive, manifest, tree, budget)
                return manifest

    def _apply_layers(self, blobs: Blobs, manifest: Manifest, tree: Tree, budget: Budget) -> None:
        count = len(manifest.layers)
        for number, layer in enumerate(manifest.layers):
            self.report(f"Unpacking layer {number + 1} of {count}", 0.05 + 0.75 * number / count)
            with open_layer(blobs, layer) as stream:
                apply_archive(stream, tree, budget, is_layer=True)


def remove_replaced(
    store: Store,
    digest: str,
    block_starts: Callable[[], AbstractContextManager[Collection[str]]],
) -> bool:
    """Remove the image that an import has replaced. Return False if kernels still run in it.

    ``block_starts`` keeps sandboxes from starting, and yields the digests of the images in use.
    """
    try:
        old = store.find(digest)
        with block_starts() as used:
            store.remove(old, used)
    except RootImageError:
        removed = False
    else:
        removed = True
    store.sweep()
    return removed


def _explain(error: OSError, path: Path, store: Store) -> tuple[str, str]:
    """Return a clause that says what failed, without the name of ``path``, and a hint."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        room = f"free some space in {store.root}, or set XDG_DATA_HOME to a folder on another disk."
        return "the disk is full", room
    is_named = isinstance(error.filename, str) and error.filename != str(path)
    reason = f"{error.filename}: {error.strerror}" if is_named else error.strerror or str(error)
    if error.errno in (errno.EACCES, errno.EPERM):
        return reason, "import it as a user who may read all of it, or change its mode."
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
        return reason, f"give the path of an existing file or folder; {HINT}"
    return reason, f"check it, or get it again; {HINT}"


_IMAGE_ARCHIVE_ROOTS = re.compile(
    r"blobs|oci-layout|index\.json|manifest\.json|repositories|[0-9a-f]{64}(?:\.json)?"
)
"""First parts of names in archives of ``docker save`` and in OCI archives."""


@contextmanager
def _open_decompressed(file: BinaryIO, draft: Draft, budget: Budget) -> Iterator[BinaryIO]:
    """Yield ``file`` itself, or a decompressed copy of it in the draft's scratch directory."""
    packed = is_compressed(file.read(6))
    file.seek(0)
    if not packed:
        yield file
        return
    with (draft.scratch / "archive").open("w+b") as plain:
        with decompressed(file) as stream:
            # no timeout: a file; a pipe ends with its writer, or with Ctrl-C
            while data := stream.read(CHUNK):
                budget.charge(len(data))
                plain.write(data)
        yield plain
