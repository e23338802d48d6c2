"""Restores a sandbox from the snapshot of a key: on this machine, and by the helper of a node."""

from __future__ import annotations

from collections.abc import Callable

from gvisor_kernel.errors import NoSnapshot, SnapshotError
from gvisor_kernel.runtimes.base import Sandbox
from gvisor_kernel.snapshots.key import PARTS, SnapshotKey
from gvisor_kernel.snapshots.snapshot import Meta, Snapshot
from gvisor_kernel.snapshots.store import Store


def restore_by_key(
    store: Store, key: SnapshotKey, start: Callable[[Snapshot], Sandbox]
) -> tuple[Sandbox, Meta]:
    """Return a sandbox that ``start(snapshot)`` has restored, and what is known of its kernel.

    Blocks. A snapshot that does not fit any more, or for which ``start`` raises SnapshotError, is
    discarded.

    :raises NoSnapshot: when there is none, it was discarded, or the store cannot be read; its fact
        says why
    :raises GvisorKernelError: as ``start`` does
    """
    try:
        return _restore(store, key, start)
    except OSError as error:
        raise NoSnapshot(f"the snapshots in {store.root} cannot be used: {error}") from error


def _restore(
    store: Store, key: SnapshotKey, start: Callable[[Snapshot], Sandbox]
) -> tuple[Sandbox, Meta]:
    with store.use(key.name) as snapshot:
        if snapshot is None:
            raise NoSnapshot(f"no snapshot fits: {describe_miss(store, key)}")
        reason = snapshot.meta.manifest.find_change()
        if reason is None:
            try:
                return start(snapshot), snapshot.meta
            except SnapshotError as error:
                reason = str(error)
    store.discard(key.name, reason)
    raise NoSnapshot(reason)


def describe_miss(store: Store, key: SnapshotKey) -> str:
    """Return how the snapshot that is most like ``key`` differs, for a log. Blocks."""
    differences = [
        [part for part in key.parts if snapshot.meta.parts.get(part) != key.parts[part]]
        for snapshot in store.snapshots()
    ]
    if not differences:
        return "there is none yet"
    nearest = min(differences, key=len)
    if not nearest:
        return "another process is removing the one that did"
    return f"the nearest has other {', '.join(PARTS.get(part, part) for part in nearest)}"
