"""Settings of a kernel that is started to make a snapshot of it.

It has no data of a session, only one is started at a time, and its process has low priority.
``kernel/snapshot_builder.py`` starts it and writes the snapshot.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import SnapshotError
from gvisor_kernel.host import private_directories
from gvisor_kernel.runtimes.base import LaunchRequest
from gvisor_kernel.snapshots.snapshot_store import Store

NICENESS = 19
MAX_BUILD_SECONDS = 900.0
"""Seconds that making one snapshot may take, with many imports on a busy machine."""

Report = Callable[[str, float], None]
"""Called at each step of making a snapshot, with a text for people and the share of the work that
is done."""

_SYS_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "ppc64le": 273, "s390x": 282}
_IOPRIO_WHO_PROCESS = 1
_IOPRIO_IDLE = 3 << 13


def strip_session(
    spec: SandboxSpec, request: LaunchRequest, folder: Path, *, keeps_outputs: bool
) -> tuple[SandboxSpec, LaunchRequest]:
    """Return ``spec`` and ``request`` without the data of a session, to make a snapshot of.

    ``folder`` is an empty one that replaces the notebook's (``Draft.scratch``). ``keeps_outputs``
    says whether restored sandboxes mount a folder of the host for outputs: then this one must have
    such a mount as well, since a restore cannot change the kind of a mount.
    """
    outputs = str(folder / "outputs") if keeps_outputs else None
    empty = replace(spec, uploads=None, outputs=outputs)
    return empty, replace(request, folder=folder, kernel_id="")


@contextlib.contextmanager
def builder_lock(store: Store, *, wait: bool = False) -> Iterator[bool]:
    """Hold the lock on making snapshots; yield False if another process of this user holds it.

    With ``wait``, wait up to MAX_BUILD_SECONDS for it. Blocks.

    :raises SnapshotError: when the other process holds it for longer than that, or the store is
        read-only
    """
    how = fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)
    turn = private_directories.lock(
        store.root / "builder", how, create=True, seconds=MAX_BUILD_SECONDS
    )
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(turn)
            mine = True
        except BlockingIOError:
            mine = False
        except TimeoutError as error:
            raise SnapshotError(
                f"No snapshot can be made while another one is being made: {error.strerror}.",
                "look at what that process does; if it was stopped (Ctrl-Z), resume it.",
            ) from error
        except OSError as error:
            raise SnapshotError(
                f"No snapshot can be made: {error.filename} cannot be opened: {error.strerror}.",
                "make the folder writable, or set XDG_CACHE_HOME to another place.",
            ) from error
        yield mine


def lower_priority() -> None:
    """Give this process and its future children the lowest priority for CPU and disk.

    This cannot be undone, so the process should do nothing else. Never raises.
    """
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    number = _SYS_IOPRIO_SET.get(platform.machine())
    if number is not None:
        ctypes.CDLL(None).syscall(number, _IOPRIO_WHO_PROCESS, 0, _IOPRIO_IDLE)
