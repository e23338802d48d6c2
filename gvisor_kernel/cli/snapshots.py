"""The commands ``snapshot list``, ``verify``, ``remove`` and ``build``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gvisor_kernel.cli.arguments import add_commands, add_json
from gvisor_kernel.cli.output import describe_age, print_json, print_table
from gvisor_kernel.config.validators import accept_modules
from gvisor_kernel.errors import GvisorKernelError, RuntimeMissing, SnapshotError
from gvisor_kernel.shown_text import describe_size, printable_name
from gvisor_kernel.snapshots.key import find_stale_parts
from gvisor_kernel.snapshots.learned import read_preloaded
from gvisor_kernel.snapshots.snapshot import PRELOADED, Snapshot
from gvisor_kernel.snapshots.snapshot_store import Store

if TYPE_CHECKING:
    from gvisor_kernel.kernel.plan import KernelPlan

SHOWN_DIGITS = 12
LABELS = ("kernel", "python", "mode", "preload", "runsc")  # no runtime: keys of a label

REASONS = {
    "runtime": "its runsc was replaced or removed",
    "etc": "files of /etc have changed",
    "user": "it belongs to another user",
    "guest": "gvisor-kernel has changed",
    "cpu": "the CPU features or the number of CPUs changed",
}
"""Why a snapshot is stale, by the part of its key that differs now."""


def find_one(store: Store, text: str) -> Snapshot:
    """Return the snapshot whose key alone begins with ``text``.

    :raises SnapshotError: when there is none, or more than one
    """
    found = [s for s in store.snapshots() if s.meta.key.startswith(text.lower())]
    if len(found) == 1:
        return found[0]
    if found:
        raise SnapshotError(
            f"The IDs of {len(found)} snapshots begin with {text!r}.",
            f"give more of the ID: {', '.join(snapshot.meta.key for snapshot in found[:4])}",
        )
    raise SnapshotError(
        f"There is no snapshot {text!r}.", "list the snapshots: gvisor-kernel snapshot list"
    )


def find_change(snapshot: Snapshot) -> str | None:
    """Return what has changed since ``snapshot`` was made, or None. Does not read its files.

    :raises RuntimeMissing: when there is no usable runsc
    """
    stale = find_stale_parts(snapshot.meta.parts, snapshot.meta.label.get("program", ""))
    if stale:
        return REASONS[stale[0]]
    return snapshot.meta.manifest.find_change()


def find_reason(snapshot: Snapshot) -> str | None:
    """Return why no kernel may start from ``snapshot``, or None. Reads all of its files.

    :raises RuntimeMissing: when there is no usable runsc
    """
    return find_change(snapshot) or snapshot.find_damage()


def find_listed_reason(snapshot: Snapshot) -> str | None:
    """Return the reason that ``list`` shows, also where there is no usable runsc."""
    try:
        return find_change(snapshot)
    except RuntimeMissing as error:
        return error.fact.removesuffix(".")


def describe_state(reason: str | None) -> str:
    """Return ``fits``, or ``stale`` with the reason why no kernel may start from the snapshot."""
    return "fits" if reason is None else f"stale: {reason}"


def describe(snapshot: Snapshot, reason: str | None) -> dict[str, Any]:
    """Return a snapshot as in ``list --json``. Times are seconds since the epoch, sizes bytes."""
    meta = snapshot.meta
    preloaded = read_preloaded(meta.facts.get(PRELOADED))
    return {
        "id": meta.key,
        **{name: meta.label.get(name, "") for name in LABELS},
        "size": snapshot.size,
        "created": meta.created,
        "used": snapshot.used,
        "files": len(meta.manifest.files),
        "fits": reason is None,
        "reason": reason,
        "left_out": dict(preloaded.left_out) if preloaded is not None else {},
    }


def make_row(snapshot: Snapshot, reason: str | None) -> tuple[str, ...]:
    """Return the cells of a snapshot's row in ``list``."""
    label = snapshot.meta.label
    return (
        snapshot.meta.key[:SHOWN_DIGITS],
        label.get("kernel", "?"),
        label.get("python", "?"),
        label.get("preload", ""),
        describe_size(snapshot.size),
        describe_age(time.time() - snapshot.meta.created),
        f"{describe_age(time.time() - snapshot.used)} ago",
        describe_state(reason),
    )


def add_snapshot(parser: argparse.ArgumentParser) -> None:
    """Declare the commands of ``snapshot`` and their arguments."""
    add = add_commands(parser)
    listing = add("list", run_list, "list the snapshots and their states, the last used first")
    add_json(listing)
    build = add(
        "build",
        run_build,
        "make a snapshot of a kernel now",
        "Without this command, a snapshot is made in the background after a cold start.",
    )
    build.add_argument(
        "--kernel",
        default="gvisor-python",
        metavar="NAME",
        help="the kernelspec to make the snapshot for (default: %(default)s)",
    )
    build.add_argument(
        "--preload",
        metavar="MODULES",
        help="Python modules to import before the snapshot is made, such as numpy,pandas. Only"
        " kernels whose setting preload is the same start from it (default: that setting)",
    )
    build.add_argument("--plan", action="store_true", help=argparse.SUPPRESS)
    verify = add(
        "verify",
        run_verify,
        "check for each snapshot whether kernels can still start from it",
        "The exit status is 1 if kernels cannot start from one of them.",
    )
    add_json(verify)
    remove = add("remove", run_remove, "remove snapshots")
    what = remove.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "id", metavar="ID", nargs="?", help='the id that "snapshot list" shows, or its beginning'
    )
    what.add_argument("--all", action="store_true", help="all snapshots")
    what.add_argument(
        "--stale", action="store_true", help="the snapshots that kernels can no longer start from"
    )


def run_list(arguments: argparse.Namespace) -> None:
    """``snapshot list``: print a row for each snapshot, and their size together.

    :raises SnapshotError: when the store is not private to this user
    """
    store = Store.open()
    snapshots = store.snapshots()
    reasons = [find_listed_reason(snapshot) for snapshot in snapshots]
    if arguments.json:
        print_json([describe(*both) for both in zip(snapshots, reasons, strict=True)])
        return
    unusable = store.unusable()
    if not snapshots and not unusable:
        print("No snapshots.")
        return
    rows = [make_row(*both) for both in zip(snapshots, reasons, strict=True)]
    unknown = ("?", "?", "", "?", "?", "?")
    rows += [(key[:SHOWN_DIGITS], *unknown, f"unusable: {why}") for key, why in unusable.items()]
    print_table(("ID", "KERNEL", "PYTHON", "PRELOAD"), ("SIZE", "AGE", "USED"), "STATE", rows)
    held = sum(snapshot.size for snapshot in snapshots)
    print(f"{describe_size(held)} of at most {describe_size(store.capacity())}, in {store.root}")


def run_verify(arguments: argparse.Namespace) -> int:
    """``snapshot verify``: read all snapshots. Return 1 if no kernel may start from one, else 0.

    :raises RuntimeMissing: when there is no usable runsc
    """
    snapshots = Store.open().snapshots()
    reasons = {snapshot.meta.key: find_reason(snapshot) for snapshot in snapshots}
    if arguments.json:
        print_json([{"id": key, "fits": not why, "reason": why} for key, why in reasons.items()])
    else:
        for snapshot in snapshots:
            state = describe_state(reasons[snapshot.meta.key])
            kernel = snapshot.meta.label.get("kernel", "?")
            print(printable_name(f"{snapshot.meta.key[:SHOWN_DIGITS]}  {kernel}  {state}"))
        if not snapshots:
            print("No snapshots.")
    return 1 if any(reasons.values()) else 0


def run_remove(arguments: argparse.Namespace) -> None:
    """``snapshot remove``: remove one snapshot, all, or those that do not fit any more.

    :raises SnapshotError: when there is no such snapshot, or kernels start from it now
    """
    store = Store.open()
    if arguments.id is not None:
        snapshots = [find_one(store, arguments.id)]
    else:
        snapshots = [s for s in store.snapshots() if arguments.all or find_reason(s) is not None]
    in_use = []
    for snapshot in snapshots:
        if store.remove(snapshot.meta.key):
            print(f"Removed {snapshot.meta.key[:SHOWN_DIGITS]}, {describe_size(snapshot.size)}")
        else:
            in_use.append(snapshot.meta.key[:SHOWN_DIGITS])
    if not snapshots:
        print("Nothing to remove.")
    if in_use:
        raise SnapshotError(
            f"Kernels are starting from {', '.join(in_use)} now.", "try again in a moment."
        )


def build_from_stdin() -> None:
    """Make the snapshot of the plan in the first line of stdin.

    This process ends, and removes what it has begun, when stdin closes, unless its program has left
    it to finish: see ``snapshot_queue``.
    """
    from gvisor_kernel.kernel.snapshot_builder import build_in_background
    from gvisor_kernel.kernel.snapshot_queue import end_with, note_finished, read_order

    order, said = read_order(sys.stdin.fileno())
    plan = json.loads(order)
    end_with(sys.stdin.fileno(), order, said)
    build_in_background(plan)
    note_finished(order)


def run_build(arguments: argparse.Namespace) -> None:
    """``snapshot build``: make a snapshot now. ``--plan`` is for ``SnapshotQueue`` alone.

    :raises GvisorKernelError: when the kernelspec or a setting is wrong, or it cannot be made
    """
    if arguments.plan:
        build_from_stdin()
        return
    preload = None
    if arguments.preload is not None:
        names = [name.strip() for name in arguments.preload.split(",") if name.strip()]
        preload = accept_modules("preload", names)
    from gvisor_kernel.cli.images import progress
    from gvisor_kernel.jupyter.plan_factory import check_provisioner
    from gvisor_kernel.kernel.snapshot_builder import build_snapshot

    check_provisioner(arguments.kernel)
    with progress() as report:
        report("Reading the settings", 0.0)
        snapshot = build_snapshot(_make_plan(arguments.kernel), preload, report)
    print(f"Made {snapshot.meta.key[:SHOWN_DIGITS]}, {describe_size(snapshot.size)}")
    for name, reason in describe(snapshot, None)["left_out"].items():
        print(printable_name(f"Not imported ahead: {name} ({reason})"))


def _make_plan(kernel_name: str) -> KernelPlan:
    """Make a plan as in a folder of notebooks: no outputs are kept in some, as below /usr."""
    from gvisor_kernel.jupyter.plan_factory import make_plan
    from gvisor_kernel.kernel.client import private_connection_info
    from gvisor_kernel.runtimes.mounts.outputs import keeps_outputs

    plan = make_plan(kernel_name, private_connection_info(), "")
    if keeps_outputs(plan.spec, plan.request):
        return plan
    return replace(plan, request=replace(plan.request, folder=Path.home()))


def build_for_release(runsc: str) -> None:
    """Make the snapshots of the kernelspecs that leave the release to ``runsc use``, for ``runsc``:
    a value of that setting. Prints what was done, and what has failed."""
    from gvisor_kernel.jupyter.kernelspecs import find_kernelspecs

    for name in dict.fromkeys(spec.name for spec in find_kernelspecs()):
        build_missing(name, runsc)


def build_missing(kernel_name: str, runsc: str = "") -> None:
    """Make the snapshot of a kernelspec's kernels, unless there is one or they start without.

    For ``install``: prints what was done. A failure is printed too, but is none of the install.
    ``runsc``: see ``build_for_release``.
    """
    from gvisor_kernel.cli.images import progress
    from gvisor_kernel.kernel.preparation import may_prepare
    from gvisor_kernel.kernel.restore import has_snapshot
    from gvisor_kernel.kernel.snapshot_builder import build_snapshot

    try:
        plan = _make_plan(kernel_name)
        if runsc:
            if plan.spec.runsc:
                return
            plan = replace(plan, spec=replace(plan.spec, runsc=runsc))
        if not may_prepare(plan) or has_snapshot(plan):
            return
        if runsc and not sys.stderr.isatty():
            words = f"making the snapshot for {runsc}; this takes up to a minute"
            print(printable_name(f"{kernel_name}: {words}"), flush=True)
        with progress() as report:
            report("Making the snapshot", 0.0)
            snapshot = build_snapshot(plan, None, report)
    except GvisorKernelError as error:
        words = f"No snapshot was made, so the first kernel starts cold: {error.fact}"
    else:
        size = describe_size(snapshot.size)
        words = f"Kernels start from the snapshot {snapshot.meta.key[:SHOWN_DIGITS]}, {size}"
    print(printable_name(f"{kernel_name}: {words}"))
