"""Importing: a folder or an archive becomes an image in the store, or nothing is left of it."""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from gvisor_kernel.archive.layers import Budget, apply_archive, apply_folder
from gvisor_kernel.archive.refusal import Refused
from gvisor_kernel.archive.tar import CHUNK, TarReader
from gvisor_kernel.archive.tree import Tree
from gvisor_kernel.config.validators import HOST_IMAGE, IMAGE_NAME, IMAGE_NAME_RULE
from gvisor_kernel.errors import RootImageError
from gvisor_kernel.images.blobs import Blobs, FolderBlobs, TarBlobs, is_packed, unpacked
from gvisor_kernel.images.formats import Manifest, open_layer, read_manifest
from gvisor_kernel.images.inspection import RootImage
from gvisor_kernel.images.measure import measure_tree
from gvisor_kernel.images.store import Draft, Store

Report = Callable[[str, float], None]
"""Takes words for the step that begins, and the share of all that is done."""

PROGRAM_FOLDERS = ("usr", "bin")
MAX_ROOTS = 100
"""Entries of an archive's root that are read over to see what it is; there is one, or none."""


@dataclass(frozen=True)
class Imported:
    """``replaced``: the digest of the image that had the name before, and has none now."""

    image: RootImage
    replaced: str | None


def choose_name(source: str, name: str | None) -> str:
    """What an image is to be called. Raises RootImageError."""
    if name is None:
        last = source.rstrip("/").rpartition("/")[2].partition("@")[0].lower()
        last = re.sub(r"\.(tar(\.\w+)?|tgz|tzst|txz)$", "", last)
        name = re.sub(r"[^a-z0-9._-]+", "-", last).strip("._-")
    if not IMAGE_NAME.fullmatch(name) or name == HOST_IMAGE:
        raise RootImageError(
            f"An image cannot be called {name!r}.",
            f"choose a --name: {IMAGE_NAME_RULE}; not {HOST_IMAGE}.",
        )
    return name


def import_image(
    store: Store,
    path: Path,
    name: str,
    *,
    reference: str | None,
    owner: int | None,
    origin: str,
    report: Report,
) -> Imported:
    """Import the image at ``path``: an OCI layout or a root file system, folder or archive, or
    what ``docker save`` wrote. ``reference``: which of several. ``owner``: of the unpacked files.
    ``origin``: where it is from, for people.

    Raises RootImageError, with nothing left behind.
    """
    try:
        with store.write() as draft:
            budget = Budget.of_disk(draft.directory)
            tree = Tree(draft.tree, owner)
            try:
                found = _unpack(path, reference, tree, budget, draft, report)
                report("Writing it to the disk", 0.8)
                tree.finish()
            finally:
                tree.close()
            if not any((draft.tree / folder).is_dir() for folder in PROGRAM_FOLDERS):
                raise Refused("it is no root file system: there is neither /usr nor /bin")
            report("Measuring it", 0.85)
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
    except Refused as error:
        raise RootImageError(f"{origin} is not imported: {error.fact}.", error.hint) from error
    except OSError as error:
        raise RootImageError(f"{origin} is not imported: {_explain(error)}.") from error
    return Imported(image, replaced)


def _explain(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full"
    where = f"{error.filename}: " if isinstance(error.filename, str) else ""
    return f"{where}{error.strerror or error}"


def _unpack(
    path: Path, reference: str | None, tree: Tree, budget: Budget, draft: Draft, report: Report
) -> Manifest | None:
    report("Looking at what it is", 0.0)
    if path.is_dir():
        blobs = FolderBlobs(path)
        manifest = read_manifest(blobs, reference)
        if manifest is None:
            report("Copying its files", 0.05)
            apply_folder(path, tree, budget)
            return None
        _apply_layers(blobs, manifest, tree, budget, report)
        return manifest
    with path.open("rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise Refused("it is neither a file nor a folder")
        with unpacked(file) as stream:
            entries = islice(TarReader(stream), MAX_ROOTS)
            first = next((entry.parts[0] for entry in entries if entry.parts), "")
        file.seek(0)
        if not _OF_ARCHIVES.fullmatch(first):
            report("Unpacking it", 0.05)
            with unpacked(file) as stream:
                apply_archive(stream, tree, budget, is_layer=False)
            return None
        with _seekable(file, draft, budget) as plain:
            archive = TarBlobs(plain)
            manifest = read_manifest(archive, reference)
            if manifest is None:
                raise Refused(
                    "it is neither a root file system nor an archive of images",
                    "docs/images.md says what can be imported.",
                )
            _apply_layers(archive, manifest, tree, budget, report)
            return manifest


_OF_ARCHIVES = re.compile(
    r"blobs|oci-layout|index\.json|manifest\.json|repositories|[0-9a-f]{64}(?:\.json)?"
)
"""Names at the top of what ``docker save`` writes, and of OCI archives."""


@contextmanager
def _seekable(file: BinaryIO, draft: Draft, budget: Budget) -> Iterator[BinaryIO]:
    """``file``, or what is packed in it, where any part can be read at any time."""
    packed = is_packed(file.read(6))
    file.seek(0)
    if not packed:
        yield file
        return
    with (draft.scratch / "archive").open("w+b") as plain:
        with unpacked(file) as stream:
            while data := stream.read(CHUNK):
                budget.take(len(data))
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
