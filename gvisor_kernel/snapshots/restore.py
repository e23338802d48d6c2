"""Restores a sandbox from the snapshot of a key: on this machine, and by the helper of a node."""

from __future__ import annotations

from collections.abc import Callable

from gvisor_kernel.errors import NoSnapshot, SnapshotError
from gvisor_kernel.runtimes.base import Sandbox
from gvisor_kernel.snapshots.key import SnapshotKey
from gvisor_kernel.snapshots.snapshot import Meta, Snapshot
from gvisor_kernel.snapshots.store import Store


def restore_by_key(
    store: Store, key: SnapshotKey, start: Callable[[Snapshot], Sandbox]
) -> tuple[Sandbox, Meta]:
    """Return a sandbox that ``start(snapshot)`` has restored, and what is known of its kernel.

    Blocks. A snapshot that does not fit any more, or for which ``start`` raises SnapshotError, is
    discarded.

    :raises NoSnapshot: when there is none, or it was discarded; its fact says why
    :raises GvisorKernelError: as ``start`` does
    """
    with store.use(key.name) as snapshot:
        if snapshot is None:
            raise NoSnapshot("no snapshot fits")
        reason = snapshot.meta.manifest.find_change()
        if reason is None:
            try:
                return start(snapshot), snapshot.meta
            except SnapshotError as error:
                reason = str(error)
    store.discard(key.name, reason)
    raise NoSnapshot(reason)
