"""Starts the sandbox of an order: from a snapshot of this node where one fits, otherwise cold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gvisor_kernel.errors import NoSnapshot, SandboxError, SnapshotError
from gvisor_kernel.runtimes.base import Sandbox
from gvisor_kernel.runtimes.nodes.orders import Order
from gvisor_kernel.runtimes.runsc.runtime import RunscRuntime


def start_sandbox(order: Order) -> tuple[Sandbox, dict[str, Any]]:
    """Return a sandbox that was checked from outside, and what the host is told of snapshots.

    :raises GvisorKernelError: see ``Runtime.start`` and ``Sandbox.verify``; nothing is left then
    """
    runtime = RunscRuntime()
    spec = replace(order.spec, runtime="runsc")
    told: dict[str, Any] = {}
    if order.request.saved is not None or order.request.unfit:
        try:
            return _restore(runtime, replace(order, spec=spec))
        except NoSnapshot as error:
            told["lacks"] = error.fact
    return _check(runtime.start(spec, order.request)), told


def _restore(runtime: RunscRuntime, order: Order) -> tuple[Sandbox, dict[str, Any]]:
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
        facts = KernelFacts(**request.saved)
    except TypeError as error:
        raise NoSnapshot(f"the order is malformed: {error}") from error
    key = make_key(runtime.describe(order.spec, request), facts, find_host_facts())

    def start(snapshot: Snapshot) -> Sandbox:
        sandbox = runtime.start(order.spec, request, snapshot.files)
        try:
            return _check(sandbox)
        except SandboxError as error:
            raise SnapshotError(str(error)) from error

    sandbox, meta = restore_by_key(store, key, start)
    language = str(meta.facts.get("language"))
    found = {"key": key.name, "run": meta.run, "sandbox_key": meta.sandbox_key}
    found[PRELOADED] = meta.facts.get(PRELOADED)
    return sandbox, {"found": {**found, "language": language}}


def _check(sandbox: Sandbox) -> Sandbox:
    try:
        sandbox.verify(None)
    except BaseException:
        sandbox.close()
        raise
    return sandbox
