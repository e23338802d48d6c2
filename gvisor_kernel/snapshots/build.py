"""Making an image without being in anyone's way: what to start for it, and who may do so now.

Starting, waiting and writing is ``sandboxed``'s. Here is what is special about a kernel that is
started to be imaged: nothing of a session is in it, one is made at a time, and it has time.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import platform
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import SnapshotError
from gvisor_kernel.host import private_directories
from gvisor_kernel.runtimes.base import LaunchRequest
from gvisor_kernel.snapshots.store import Store

NICENESS = 19
MAX_BUILD_SECONDS = 900.0
"""How long making one image may take, with much to import on a busy machine."""

_SYS_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "ppc64le": 273, "s390x": 282}
_IOPRIO_WHO_PROCESS = 1
_IOPRIO_IDLE = 3 << 13


def session_free(
    spec: SandboxSpec, request: LaunchRequest, folder: Path, *, keeps_outputs: bool
) -> tuple[SandboxSpec, LaunchRequest]:
    """What to start for an image of ``spec`` and ``request``: the same, with nothing in it.

    ``folder``: an empty one in the place of the notebook's (``Draft.scratch``).
    ``keeps_outputs``: whether the sandboxes that restore have a folder of the host for their
    outputs (``shown.keeps_outputs``), since a mount cannot become one of another kind.
    """
    outputs = str(folder / "outputs") if keeps_outputs else None
    empty = replace(spec, uploads=None, outputs=outputs)
    return empty, replace(request, folder=folder, kernel_id="")


@contextlib.contextmanager
def builder_turn(store: Store, *, wait: bool = False) -> Iterator[bool]:
    """Whether this process may make an image now: False while another of this user makes one.

    ``wait``: until that has ended. Raises SnapshotError when it takes longer than any image does.
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
                f"No image can be made while another one is: {error.strerror}.",
                "see what that process does; where it was stopped (Ctrl-Z), let it go on.",
            ) from error
        yield mine


def step_back() -> None:
    """Let this process, and what it starts from now on, have what others leave of CPU and disk.

    Cannot be taken back: for a process that does nothing else. Never raises.
    """
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    number = _SYS_IOPRIO_SET.get(platform.machine())
    if number is not None:
        ctypes.CDLL(None).syscall(number, _IOPRIO_WHO_PROCESS, 0, _IOPRIO_IDLE)
