"""``snapshot``: list, check, remove and make the images that kernels start from."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from typing import Any

from gvisor_kernel.cli.output import (
    describe_age,
    describe_size,
    make_console,
    print_json,
    print_table,
    printable,
)
from gvisor_kernel.config.validators import accept_modules
from gvisor_kernel.errors import SnapshotError
from gvisor_kernel.snapshots.host_facts import find_stale_parts
from gvisor_kernel.snapshots.store import Snapshot, Store

SHOWN_DIGITS = 12

REASONS = {
    "runtime": "runsc has changed",
    "etc": "files of /etc have changed",
    "user": "it is another user's",
    "guest": "gvisor-kernel has changed",
    "cpu": "the processors are others",
}
"""What the parts of a key are called where one is not as it was."""


def find_one(store: Store, text: str) -> Snapshot:
    """The image that ``text`` means: the beginning of just one key."""
    found = [image for image in store.snapshots() if image.meta.key.startswith(text.lower())]
    if len(found) == 1:
        return found[0]
    if found:
        raise SnapshotError(
            f"{text!r} is the beginning of {len(found)} images' ids.",
            f"give more of it: {', '.join(image.meta.key for image in found[:4])}",
        )
    raise SnapshotError(f"There is no image {text!r}.", "see: gvisor-kernel snapshot list")


def find_reason(image: Snapshot) -> str | None:
    """Why no kernel may start from ``image`` any more; None if one may."""
    stale = find_stale_parts(image.meta.parts)
    if stale:
        return REASONS[stale[0]]
    return image.meta.manifest.find_change() or image.find_damage()


def describe(image: Snapshot) -> dict[str, Any]:
    """An image in ``list --json``. Times are seconds since the epoch, sizes bytes."""
    meta = image.meta
    return {
        "id": meta.key,
        **{name: meta.label.get(name, "") for name in ("kernel", "python", "mode", "preload")},
        "size": image.size,
        "created": meta.created,
        "used": image.used,
        "files": len(meta.manifest.files),
    }


def make_row(image: Snapshot) -> tuple[str, ...]:
    """Of its row in ``list``."""
    label = image.meta.label
    return (
        image.meta.key[:SHOWN_DIGITS],
        label.get("kernel", "?"),
        label.get("python", "?"),
        describe_size(image.size),
        describe_age(time.time() - image.meta.created),
        f"{describe_age(time.time() - image.used)} ago",
        label.get("preload", ""),
    )


def run_list(arguments: argparse.Namespace) -> int:
    store = Store.open()
    images = store.snapshots()
    if arguments.json:
        print_json([describe(image) for image in images])
        return 0
    if not images:
        print("No snapshots.")
        return 0
    print_table(
        ("ID", "KERNEL", "PYTHON"), ("SIZE", "AGE", "USED"), "PRELOAD", map(make_row, images)
    )
    held = sum(image.size for image in images)
    print(f"{describe_size(held)} of at most {describe_size(store.capacity())}, in {store.root}")
    return 0


def run_verify(arguments: argparse.Namespace) -> int:
    images = Store.open().snapshots()
    reasons = {image.meta.key: find_reason(image) for image in images}
    if arguments.json:
        print_json([{"id": key, "fits": not why, "reason": why} for key, why in reasons.items()])
    else:
        for image in images:
            why = reasons[image.meta.key]
            words = "fits" if why is None else f"stale: {why}"
            kernel = image.meta.label.get("kernel", "?")
            print(printable(f"{image.meta.key[:SHOWN_DIGITS]}  {kernel}  {words}"))
        if not images:
            print("No snapshots.")
    return 1 if any(reasons.values()) else 0


def run_remove(arguments: argparse.Namespace) -> int:
    store = Store.open()
    if arguments.id is not None:
        images = [find_one(store, arguments.id)]
    else:
        images = [i for i in store.snapshots() if arguments.all or find_reason(i) is not None]
    in_use = []
    for image in images:
        if store.remove(image.meta.key):
            print(f"Removed {image.meta.key[:SHOWN_DIGITS]}, {describe_size(image.size)}")
        else:
            in_use.append(image.meta.key[:SHOWN_DIGITS])
    if not images:
        print("Nothing to remove.")
    if in_use:
        raise SnapshotError(
            f"Kernels start from {', '.join(in_use)} just now.", "run this again in a moment."
        )
    return 0


GIVE_UP_SECONDS = 10.0
"""How long a builder whose owner has gone may take to clear away what it has begun."""


def build_from_stdin() -> None:
    """Make the image of the plan in the first line of stdin. When stdin ends this process does:
    whoever wanted the image is gone. It takes along what it has begun."""
    plan = json.loads(sys.stdin.readline())
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def watch() -> None:
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(GIVE_UP_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    from gvisor_kernel.kernel.snapshot_builder import build_in_background

    build_in_background(plan)


def run_build(arguments: argparse.Namespace) -> int:
    if arguments.plan:
        build_from_stdin()
        return 0
    preload = None
    if arguments.preload is not None:
        names = [name.strip() for name in arguments.preload.split(",") if name.strip()]
        preload = accept_modules("preload", names)
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from gvisor_kernel.jupyter.plan_factory import find_plan
    from gvisor_kernel.kernel.connection_info import own_info
    from gvisor_kernel.kernel.snapshot_builder import build_snapshot

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=make_console(stderr=True), transient=True) as progress:
        task = progress.add_task("Looking at what there is", total=1.0)

        def report(words: str, done: float) -> None:
            progress.update(task, description=printable(words), completed=done)

        plan = find_plan(arguments.kernel, own_info(), "")
        image = build_snapshot(plan, preload, report)
    print(f"Made {image.meta.key[:SHOWN_DIGITS]}, {describe_size(image.size)}")
    return 0
