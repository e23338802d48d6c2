"""``image``: import, build, list, inspect, verify and remove the root file systems of kernels."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gvisor_kernel.cli.arguments import add_commands, add_json
from gvisor_kernel.cli.output import (
    describe_age,
    describe_error,
    make_console,
    print_error,
    print_json,
    print_table,
)
from gvisor_kernel.config.settings import DEFAULT_RUNTIME
from gvisor_kernel.errors import LaunchError
from gvisor_kernel.host.processes import SUBUID_BASE
from gvisor_kernel.images import PythonReport, RootImage, Store
from gvisor_kernel.images.engines import bootstrap, build, check_base, find_builder, find_chain
from gvisor_kernel.images.importer import (
    Import,
    Imported,
    Report,
    choose_name,
    remove_replaced,
)
from gvisor_kernel.runtimes import get_runtime
from gvisor_kernel.runtimes.base import ImageProber
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.shown_text import describe_size, printable_name
from gvisor_kernel.store import measure_tree

SHOWN_DIGITS = 12


def add_image(parser: argparse.ArgumentParser) -> None:
    """Declare the commands of ``image`` and their arguments."""
    add = add_commands(parser)
    importing = add(
        "import",
        run_import,
        "import an image, so that kernels can run in it",
        "SOURCE is one of:\n"
        "  an OCI layout: a folder, or an archive of one\n"
        "  an archive that docker save wrote\n"
        "  a root file system: a folder, or a tar archive of one\n"
        "  the name of an image in Docker or Podman, if one of them is installed\n"
        "Archives may be compressed.",
    )
    importing.add_argument("source", metavar="SOURCE", help="see below")
    importing.add_argument("--name", help="the name of the image here (default: from SOURCE)")
    importing.add_argument(
        "--reference", metavar="REF", help="which image to import, if SOURCE contains several"
    )
    build = add(
        "build",
        run_build,
        "build an image that comes with gvisor-kernel, and import it",
        "Docker builds it if its engine runs, otherwise buildah. Images that it is based on are\n"
        "built first, unless they exist.",
    )
    build.add_argument("image", metavar="IMAGE", help="base, python, polyglot or full")
    build.add_argument("--name", help="the name of the image here (default: IMAGE)")
    distribution = build.add_mutually_exclusive_group()
    distribution.add_argument(
        "--base", metavar="REF", help="the image of the distribution to start from, in a registry"
    )
    distribution.add_argument(
        "--archive", metavar="FILE", help="an archive of the root file system to start from"
    )
    distribution.add_argument(
        "--bootstrap",
        metavar="SUITE",
        help="start from a Debian or Ubuntu release, such as trixie, that mmdebstrap makes from its"
        " packages",
    )
    listing = add("list", run_list, "list the images")
    add_json(listing)
    inspect = add("inspect", run_inspect, "print what is known about an image")
    inspect.add_argument("image", metavar="IMAGE", help='a name or digest that "image list" shows')
    add_json(inspect)
    verify = add(
        "verify",
        run_verify,
        "check that the files of images are still those that were imported",
        "This reads every file. The exit status is 1 if an image has changed.",
    )
    verify.add_argument(
        "image", metavar="IMAGE", nargs="*", help="the images to check (default: all)"
    )
    add_json(verify)
    remove = add("remove", run_remove, "remove images that no running kernel uses")
    remove.add_argument(
        "image", metavar="IMAGE", nargs="+", help='a name or digest that "image list" shows'
    )


def run_import(arguments: argparse.Namespace) -> None:
    """``image import``: import SOURCE and print what it contains.

    :raises RootImageError: when the source, its name or its content is not accepted
    """
    source = str(arguments.source)
    name = choose_name(source, arguments.name)
    store = Store.open()
    with progress() as report:
        importing = Import(store, name, report, arguments.reference, find_owner())
        imported = importing.import_source(source, probe_image)
    finish(store, imported)


def run_build(arguments: argparse.Namespace) -> None:
    """``image build``: build an image with Docker or buildah, and import it.

    :raises RootImageError: when it cannot be built or imported
    """
    name = choose_name(arguments.image, arguments.name)
    find_chain(arguments.image)
    builder = find_builder()
    base = check_base(arguments.base) if arguments.base else None
    store = Store.open()
    with store.write() as draft:
        archive = Path(arguments.archive) if arguments.archive else None
        if arguments.bootstrap:
            print_step(f"Making the distribution {arguments.bootstrap} from its packages")
            archive = draft.scratch / "distribution.tar"
            bootstrap(arguments.bootstrap, archive)
        file = draft.scratch / "image.tar"
        for part in build(builder, arguments.image, base=base, archive=archive, file=file):
            print_step(f"Building {part} with {builder.program}")
        origin = f"the Dockerfile of {arguments.image}"
        with progress() as report:
            importing = Import(store, name, report, owner=find_owner())
            imported = importing.import_path(file, origin, probe_image)
    finish(store, imported)


def probe_image(image: RootImage) -> PythonReport:
    """Ask an image's Python for its packages, in a sandbox of the usual runtime."""
    runtime = get_runtime(DEFAULT_RUNTIME)
    assert isinstance(runtime, ImageProber)
    return runtime.probe_image(image)


def find_owner() -> int | None:
    """Return the owner of the files of images: of root, whoever root is in sandboxes."""
    return SUBUID_BASE if os.geteuid() == 0 else None


def print_step(text: str) -> None:
    """Print a step in such a way that it stands out in the output of Docker or buildah."""
    print(f"==> {printable_name(text)}", file=sys.stderr, flush=True)


def finish(store: Store, imported: Imported) -> None:
    """Print what was imported, and remove the image that it replaced unless kernels run in it."""
    image = imported.image
    if imported.problem is not None:
        print_error(imported.problem)
    print(
        f"Imported {printable_name(image.display_name)} ({image.digest[:SHOWN_DIGITS]}):"
        f" {image.entries} files, {describe_size(image.size)}"
    )
    for kind, count in image.left_out.items():
        print(f"Left out {count} {printable_name(kind)}")
    try:
        image.require_python()
        image.require_kernel([])
        versions = ", ".join(f"{name} {version}" for name, version in list_versions(image).items())
        print(f"It has {printable_name(versions)}.")
        name = printable_name(image.display_name)
        print(f"Install a kernel that uses it: gvisor-kernel install --image {name}")
    except LaunchError as error:
        print(f"No Python kernel can run in it. {describe_error(error)}")
    if imported.replaced is not None:
        old_digits = imported.replaced[:SHOWN_DIGITS]
        if remove_replaced(store, imported.replaced, block_starts):
            print(f"Removed the replaced image {old_digits}.")
        else:
            print(f"Kept the replaced image {old_digits}, because kernels still run in it.")


@contextmanager
def block_starts() -> Iterator[set[str]]:
    """Block the start of kernels; yield the digests of the images that kernels run in."""
    with records.locked():
        yield records.find_used(lambda it: it.image)


def list_versions(image: RootImage) -> dict[str, str]:
    """Return the versions of Python and of the packages that kernels need."""
    if image.inside is None:
        return {}
    return {"Python": image.inside.version, **image.inside.packages}


def describe(image: RootImage) -> dict[str, Any]:
    """Return an image for JSON. Times are seconds since the epoch, sizes are bytes."""
    return {
        "names": list(image.names),
        "digest": image.digest,
        "size": image.size,
        "files": image.entries,
        "created": image.created,
        "from": image.source.get("from", ""),
        "reference": image.source.get("reference", ""),
        "config": image.source.get("config", ""),
        "left_out": dict(image.left_out),
        "environment": dict(image.environment),
        "python": image.python,
        "versions": list_versions(image),
        "tree": str(image.tree),
    }


def make_row(image: RootImage) -> tuple[str, ...]:
    """Return the cells of an image's row in ``list``."""
    return (
        ", ".join(image.names) or "-",
        image.digest[:SHOWN_DIGITS],
        image.inside.version if image.inside is not None else "?",
        describe_size(image.size),
        describe_age(time.time() - image.created),
        image.source.get("from", ""),
    )


def run_list(arguments: argparse.Namespace) -> None:
    """``image list``: print a row for each image.

    :raises RootImageError: when the store is not private to this user
    """
    store = Store.open()
    images = store.images()
    if arguments.json:
        print_json([describe(image) for image in images])
    elif images:
        print_table(("NAME", "DIGEST", "PYTHON"), ("SIZE", "AGE"), "FROM", map(make_row, images))
    else:
        print("No images. Kernels run in the Python environment of this machine.")


def run_inspect(arguments: argparse.Namespace) -> None:
    """``image inspect``: print the facts about one image.

    :raises RootImageError: when there is no such image
    """
    found = describe(Store.open().find(arguments.image))
    if arguments.json:
        print_json(found)
        return
    found["size"] = describe_size(found["size"])
    found["created"] = f"{describe_age(time.time() - found['created'])} ago"
    found["names"] = ", ".join(found["names"])
    for key, value in found.items():
        if isinstance(value, dict):
            print(f"{key}:")
            for name, text in value.items():
                print(printable_name(f"  {name}: {text}"))
        else:
            print(printable_name(f"{key}: {value if value is not None else 'none'}"))


def run_verify(arguments: argparse.Namespace) -> int:
    """``image verify``: compare images with their digests. Return 1 if one has changed, else 0.

    :raises RootImageError: when there is no such image
    """
    store = Store.open()
    images = [store.find(text) for text in arguments.image] or store.images()
    sound: dict[str, bool] = {}
    with progress() as report:
        for number, image in enumerate(images):
            report(f"Verifying {image.display_name}", number / len(images))
            try:
                digest = measure_tree(image.tree, image.environment).digest
            except OSError:
                digest = ""
            sound[image.digest] = digest == image.digest
    if arguments.json:
        print_json([{"digest": digest, "unchanged": fits} for digest, fits in sound.items()])
    else:
        for image in images:
            result = "unchanged" if sound[image.digest] else "CHANGED: remove and import it again"
            print(f"{image.digest[:SHOWN_DIGITS]}  {image.display_name}  {result}")
        if not images:
            print("No images.")
    return 0 if all(sound.values()) else 1


def run_remove(arguments: argparse.Namespace) -> None:
    """``image remove``: remove names, and images that have no other name.

    :raises RootImageError: when there is no such image, or a kernel runs in it
    """
    store = Store.open()
    for text in arguments.image:
        image = store.find(text)
        if store.forget(text):
            print(f"Removed the name {text}; the image stays, because it has other names")
            continue
        with block_starts() as used:
            store.remove(image, used)
        print(f"Removed {image.display_name}, {describe_size(image.size)}")
    store.sweep()


@contextmanager
def progress() -> Iterator[Report]:
    """Show a progress bar on standard error if that is a terminal; yield how to update it."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = make_console(stderr=True)
    if not console.is_terminal:
        yield lambda words, done: None
        return
    # A step may be a line that a sandbox wrote: no markup, as in the console itself.
    step = TextColumn("{task.description}", markup=False)
    columns = (step, BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=1.0)

        def report(words: str, done: float) -> None:
            bar.update(task, description=printable_name(words), completed=done)

        yield report
