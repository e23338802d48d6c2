"""Receives an order of the host, and carries it out: starts its sandbox, or makes a snapshot.

A sandbox is restored from a snapshot of this node where one fits. Snapshots are made by a process
of the lowest priority.
"""

from __future__ import annotations

import os
import select
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gvisor_kernel.config.settings import write_spec
from gvisor_kernel.errors import (
    GvisorKernelError,
    LaunchError,
    NoSnapshot,
    SandboxError,
    SnapshotError,
)
from gvisor_kernel.host.folders import find_identity
from gvisor_kernel.runtimes.base import Sandbox
from gvisor_kernel.runtimes.mounts.covers import hide_also
from gvisor_kernel.runtimes.nodes.orders import (
    HEAD,
    MAX_ORDER,
    Found,
    Order,
    OrderError,
    read_chunks,
    read_head,
    read_order,
)
from gvisor_kernel.runtimes.runsc.runtime import RESTORE_SECONDS, RunscRuntime
from gvisor_kernel.strict_json import JsonError
from gvisor_kernel.typed_json import read_value

if TYPE_CHECKING:
    from gvisor_kernel.node.files import Copy

ORDER_SECONDS = 60.0
"""Seconds that the order may take to come."""


class HostGone(OrderError):
    """The host's end of stdin is closed before everything has come."""


def receive_order(fd: int, wake: int) -> Order:
    """Read an order and not one byte more.

    :raises OrderError: when none comes in time, or it is malformed
    """
    return read_order(_read(fd, read_head(_read(fd, HEAD, wake)), wake))


def receive_files(order: Order, fd: int, wake: int) -> tuple[Copy, Order]:
    """Read the files that follow the order, and not one byte more; see ``files.take_files``.

    :raises GvisorKernelError, OrderError: when they do not come, or cannot be kept
    """
    from gvisor_kernel.node.files import take_files

    limit = 2 * order.spec.disk_limit + MAX_ORDER
    return take_files(order, read_chunks(lambda size: _read(fd, size, wake), limit))


def receive_image(order: Order, fd: int, wake: int) -> Copy:
    """Read the image that follows the order, and not one byte more.

    :raises GvisorKernelError, OrderError: when it does not come, or cannot be kept
    """
    from gvisor_kernel.node.files import take_archive

    return take_archive(order.image, read_chunks(lambda size: _read(fd, size, wake)))


def _read(fd: int, size: int, wake: int) -> bytes:
    data = b""
    deadline = time.monotonic() + ORDER_SECONDS
    while len(data) < size:
        rest = deadline - time.monotonic()
        ready = select.select([fd, wake], [], [], max(rest, 0))[0]
        if wake in ready or not ready:
            raise OrderError("No order came.")
        with suppress(BlockingIOError):
            more = os.read(fd, size - len(data))  # no timeout: it is ready, or does not block
            if not more:
                raise HostGone("The host has gone.")
            data += more
    return data


def adopt_places(order: Order) -> None:
    """Look for images, skills and keys where the server's user has them."""
    os.environ.update(order.places)
    hide_also([str(Path(os.environ["XDG_STATE_HOME"]).parent), *order.hidden])


def check_shared(order: Order, host: str) -> None:
    """Check that this node has the very folders that the host means.

    :raises LaunchError: when it does not
    """
    for path, inode in order.shared:
        found = find_identity(path)
        if found is None or found.inode != inode:
            what = "does not exist" if found is None else "is another folder"
            raise LaunchError(
                f"The folder {path} of the server {what} on the node {host}.",
                "start the kernel in a folder that the server and the nodes share, or set uploads"
                " and outputs to such folders.",
            )


def start_sandbox(order: Order, image: Path | None = None) -> tuple[Sandbox, Found | None, str]:
    """Return a sandbox that was checked from outside, the snapshot that it was restored from, and
    why it was not. ``image``: of a saved kernel, which goes on in it.

    :raises GvisorKernelError: see ``Runtime.start`` and ``Sandbox.verify``; nothing is left then
    """
    order = replace(order, spec=replace(order.spec, runtime="runsc"))
    runtime = RunscRuntime(restore_seconds=order.spec.start_timeout if image else RESTORE_SECONDS)
    if image is not None:
        return _check(runtime.start(order.spec, order.request, image)), None, ""
    lacks = ""
    if order.request.saved is not None or order.request.unfit:
        try:
            return *_restore(runtime, order), ""
        except NoSnapshot as error:
            lacks = error.fact
    return _check(runtime.start(order.spec, order.request)), None, lacks


def _restore(runtime: RunscRuntime, order: Order) -> tuple[Sandbox, Found]:
    """:raises NoSnapshot: when no snapshot fits"""
    # A node whose kernels start cold does not wait for these.
    from gvisor_kernel.snapshots.key import KernelFacts, find_host_facts, make_key
    from gvisor_kernel.snapshots.snapshot import PRELOADED, Snapshot
    from gvisor_kernel.snapshots.snapshot_store import Store, restore_by_key

    request = order.request
    try:
        store = Store.open()
    except SnapshotError as error:
        raise NoSnapshot(str(error)) from error
    if request.unfit:
        store.discard(request.unfit, "its kernel did not answer")
    if request.saved is None:
        raise NoSnapshot("a kernel could not be restored from the last one")
    try:
        facts = read_value(request.saved, KernelFacts)
    except JsonError as error:
        raise NoSnapshot(f"the order is malformed: {error}") from error
    key = make_key(runtime.describe(order.spec, request), facts, find_host_facts())

    def start(snapshot: Snapshot) -> Sandbox:
        sandbox = runtime.start(order.spec, request, snapshot.files)
        try:
            return _check(sandbox)
        except SandboxError as error:
            raise SnapshotError(str(error)) from error

    sandbox, meta = restore_by_key(store, key, start)
    facts_of, language = meta.facts, str(meta.facts.get("language"))
    found = Found(key.name, meta.run, meta.sandbox_key, language, facts_of.get(PRELOADED))
    return sandbox, found


def _check(sandbox: Sandbox) -> Sandbox:
    try:
        sandbox.verify(None)
    except BaseException:
        sandbox.close()
        raise
    return sandbox


def build() -> int:
    """Make the snapshot that the host orders on stdin, unless it exists; return the exit status.

    This process ends, and removes what it has begun, when stdin ends.
    """
    from gvisor_kernel.kernel.snapshot_builder import build_in_background
    from gvisor_kernel.kernel.snapshot_queue import end_with

    wake, never = os.pipe2(os.O_CLOEXEC)
    try:
        order = receive_order(sys.stdin.fileno(), wake)
        if order.kernel is None:
            raise OrderError("The order names no kernel.")
        adopt_places(order)
        end_with(sys.stdin.fileno())
        request = {**vars(order.request), "folder": str(order.request.folder)}
        spec = write_spec(replace(order.spec, runtime="runsc"))
        build_in_background({**order.kernel, "spec": spec, "request": request})
    except (KeyboardInterrupt, HostGone):
        return 0  # nobody wants it any more; of a job of Slurm, another status would be a failure
    except (GvisorKernelError, OrderError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    finally:
        os.close(wake)
        os.close(never)
    return 0
