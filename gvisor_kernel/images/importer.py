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
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from gvisor_kernel.archive.archive_error import ArchiveError
from gvisor_kernel.archive.layers import Budget, apply_archive, apply_folder
from gvisor_kernel.archive.tar import CHUNK, TarReader
from gvisor_kernel.archive.tree import Tree
from gvisor_kernel.config.validators import HOST_IMAGE, IMAGE_NAME, IMAGE_NAME_RULE
from gvisor_kernel.errors import GvisorKernelError, RootImageError
from gvisor_kernel.host.processes import SUBUID_BASE
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


def import_source(
    store: Store, source: str, name: str, reference: str | None, *, probe: Probe, report: Report
) -> Imported:
    """Import a path, or an image of Docker or Podman, and ask its Python what it has. Blocks.

    ``reference`` chooses one of several images in an archive.

    :raises RootImageError: when the source does not exist or is not accepted
    """
    if os.path.exists(source) or source.startswith(("/", ".", "~")):  # noqa: PTH110 - never raises
        return import_path(
            store, Path(source), name, reference, origin=source, probe=probe, report=report
        )
    with store.write() as draft:
        report("Saving the image of Docker or Podman", 0.0)
        file = draft.scratch / "image.tar"
        save_image(source, file)
        return import_path(store, file, name, reference, origin=source, probe=probe, report=report)


def import_path(
    store: Store,
    path: Path,
    name: str,
    reference: str | None,
    *,
    origin: str,
    probe: Probe,
    report: Report,
) -> Imported:
    """Import a file or directory, and ask its Python what it has. Blocks.

    ``origin`` says in messages and in ``image list`` where the image is from.

    :raises RootImageError: when it does not exist or is not accepted
    """
    imported = import_image(
        store,
        path,
        name,
        reference=reference,
        owner=SUBUID_BASE if os.geteuid() == 0 else None,
        origin=origin,
        report=report,
    )
    report("Starting the image's Python", 0.95)
    image = imported.image
    if image.inside is not None or image.python is None:
        return imported
    try:
        inside = probe(image)
    except GvisorKernelError as error:
        return Imported(image, imported.replaced, error)
    return Imported(store.save_inside(image, inside), imported.replaced)


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


def import_image(
    store: Store,
    path: Path,
    name: str,
    *,
    reference: str | None,
    owner: int | None,
    origin: str,
    report: Report,
    budget: Budget | None = None,
) -> Imported:
    """Unpack the image at ``path`` into the store, without running any of it. Blocks.

    ``path`` is an OCI layout or a root file system (each as a directory or an archive), or an
    archive of ``docker save``. ``owner`` is the uid and gid of the unpacked files; None leaves
    those of this process. ``budget``: by default, what there is room for on the disk.

    :raises RootImageError: when it is not accepted, or the disk is full; the store is unchanged
    """
    try:
        with store.write() as draft:
            budget = budget or Budget.of_disk(draft.directory)
            tree = Tree(draft.tree, owner)
            try:
                found = _unpack(path, reference, tree, budget, draft, report)
                report("Writing to the disk", 0.8)
                tree.finish()
            finally:
                tree.close()
            if not any((draft.tree / folder).is_dir() for folder in PROGRAM_FOLDERS):
                raise ArchiveError("there is no root file system: neither /usr nor /bin exists")
            report("Computing the digest", 0.85)
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
            image, replaced = store.keep(draft, content, name)
    except ArchiveError as error:
        hint = error.hint or f"check it, or get it again; {HINT}"
        raise RootImageError(f"Could not import {origin}: {error.fact}.", hint) from error
    except OSError as error:
        reason, hint = _explain(error, path, store)
        raise RootImageError(f"Could not import {origin}: {reason}.", hint) from error
    return Imported(image, replaced)


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


def _unpack(
    path: Path, reference: str | None, tree: Tree, budget: Budget, draft: Draft, report: Report
) -> Manifest | None:
    report("Detecting the format", 0.0)
    if path.is_dir():
        blobs = FolderBlobs(path)
        manifest = read_manifest(blobs, reference)
        if manifest is None:
            report("Copying the files", 0.05)
            apply_folder(path, tree, budget)
            return None
        _apply_layers(blobs, manifest, tree, budget, report)
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
            report("Unpacking", 0.05)
            with decompressed(file) as stream:
                apply_archive(stream, tree, budget, is_layer=False)
            return None
        with _open_decompressed(file, draft, budget) as plain:
            archive = TarBlobs(plain)
            manifest = read_manifest(archive, reference)
            if manifest is None:
                raise ArchiveError(
                    "the archive is neither a root file system nor an image archive",
                    HINT,
                )
            _apply_layers(archive, manifest, tree, budget, report)
            return manifest


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


def _apply_layers(
    blobs: Blobs, manifest: Manifest, tree: Tree, budget: Budget, report: Report
) -> None:
    for number, layer in enumerate(manifest.layers):
        count = len(manifest.layers)
        report(f"Unpacking layer {number + 1} of {count}", 0.05 + 0.75 * number / count)
        with open_layer(blobs, layer) as stream:
            apply_archive(stream, tree, budget, is_layer=True)
