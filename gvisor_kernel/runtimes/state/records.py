"""The state directories of this user's sandboxes, and the records in them.

One directory a sandbox, below ``sandboxes/``, private to the user. The record says whose it is;
``is_orphan`` decides whether that owner is gone. Nothing here ends a process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from platformdirs import user_state_path

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import StateError
from gvisor_kernel.host.locks import locked_file
from gvisor_kernel.host.processes import ProcessId, identify, is_alive
from gvisor_kernel.runtimes.base import LaunchRequest
from gvisor_kernel.runtimes.mounts.plan import Outputs
from gvisor_kernel.spec.identity import Identity

RECORD = "record.json"


@dataclass(frozen=True)
class Machine:
    """Where a pid means something: one boot of one host, and one pid namespace on it."""

    host: str
    boot: str
    pid_namespace: str


@dataclass(frozen=True)
class Record:
    """What is known of a sandbox from outside, for ``list``, ``kill`` and the sweep."""

    identity: str
    container_id: str
    kernel_name: str
    kernel_id: str
    folder: str
    created: float
    memory_limit: int
    owner: ProcessId
    machine: Machine
    outputs: str | None = None
    outputs_file: tuple[int, int] | None = None
    """Device and inode of that folder: another one may have its name by now."""
    outputs_parent: tuple[int, int] | None = None
    """Likewise of the folder that it is in."""
    made_outputs: bool = False
    lent_by: tuple[int, int] | None = None
    """The uid and gid that get what is in outputs, when the sandbox has ended."""
    image: str | None = None
    """The digest of the image from the store that it runs in."""
    cgroups: tuple[str, ...] = ()
    processes: dict[str, ProcessId] = field(default_factory=dict)
    spare: bool = False
    """Restored ahead; no kernel's yet."""
    runtime: str = "runsc"
    engine: str | None = None
    """Where the Docker engine is that has it, if one has."""
    ready: bool = False
    """It has been started there, and looked at."""
    ended: bool = False
    """It has ended there; its outputs are still to be copied, and what is left to be removed."""


def first_record(
    spec: SandboxSpec,
    request: LaunchRequest,
    identity: Identity,
    outputs: Outputs,
    owner: ProcessId,
    **facts: Any,
) -> Record:
    """Of a sandbox that is about to be made; ``facts``: fields of the runtime's own."""
    return Record(
        identity=str(identity),
        container_id=identity.container_id,
        kernel_name=request.kernel_name,
        kernel_id=request.kernel_id,
        folder=str(request.folder),
        created=time.time(),
        memory_limit=spec.memory_limit,
        owner=owner,
        machine=this_machine(),
        outputs=outputs.path,
        outputs_file=None if outputs.folder is None else outputs.folder.identity,
        outputs_parent=outputs.parent,
        made_outputs=outputs.made,
        lent_by=outputs.lent_by,
        spare=request.spare,
        **facts,
    )


@cache
def this_machine() -> Machine:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return Machine(socket.gethostname(), boot, str(Path("/proc/self/ns/pid").readlink()))


def state_root() -> Path:
    """The directory of all of this user's sandboxes, made if need be. Raises StateError."""
    root = user_state_path("gvisor-kernel")
    fix = "let it be a directory of yours alone (mode 0700), or set XDG_STATE_HOME to another one."
    try:
        _check_parents(root)
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for status in (root.lstat(), root.stat()):  # a link, if it is one, and where it leads
            if status.st_uid != os.geteuid():
                raise StateError(f"The state directory {root} belongs to uid {status.st_uid}.", fix)
        if status.st_mode & 0o077:
            root.chmod(0o700)
        (root / "sandboxes").mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StateError(
            f"The state directory {root} cannot be used: {error.strerror}.", fix
        ) from error
    return root


def _check_parents(root: Path) -> None:
    """Raise StateError where somebody else could put another directory in the place of ``root``.

    Names below it are trusted afterwards, so each folder on the way has to belong to this user or
    root, and be writable by no other; but for those where nobody takes away what is another's, as
    /tmp, and for a group that is the owner's alone, which has the owner's number.
    """
    real = str(root.resolve())
    if real in _checked:
        return
    for folder in Path(real).parents:
        try:
            status = folder.stat()
        except FileNotFoundError:
            continue  # it will be made, as this user's
        owners = {0, os.geteuid(), _overflow_uid()}
        group = status.st_mode & stat.S_IWGRP and (
            status.st_gid not in (0, status.st_uid) or _has_list(folder)
        )
        others = status.st_mode & stat.S_IWOTH
        shared = (group or others) and not status.st_mode & stat.S_ISVTX
        if status.st_uid not in owners or shared:
            raise StateError(
                f"The folder {folder}, in which the state directory {root} is, can be changed by"
                f" others: it belongs to uid {status.st_uid} and has the mode"
                f" {stat.S_IMODE(status.st_mode):o}.",
                f"let it be yours (chmod go-w {folder}), or set XDG_STATE_HOME to another place.",
            )
    _checked.add(real)


def _has_list(folder: Path) -> bool:
    """Whether an access list says who else may write; the group's bits are its mask then."""
    try:
        return "system.posix_acl_access" in os.listxattr(folder)
    except OSError:  # this file system has none
        return False


_checked: set[str] = set()
"""State directories of this process. Who could change that later is this user, or root."""


@cache
def _overflow_uid() -> int:
    """Whose files those of all users are that a container has no number for."""
    try:
        return int(Path("/proc/sys/kernel/overflowuid").read_text())
    except (OSError, ValueError):
        return 65534


def state_id() -> str:
    """A name of this state directory, by which things outside of this machine are told to be of it.

    Random, and as old as its first use. Raises StateError.
    """
    path = state_root() / "id"
    try:
        with locked():
            with contextlib.suppress(FileNotFoundError):
                return path.read_text()
            temporary = path.with_suffix(".new")
            temporary.write_text(secrets.token_hex(16))
            temporary.replace(path)
            return path.read_text()
    except OSError as error:
        raise StateError(f"The file {path} cannot be used: {error.strerror}.") from error


def make_directory(container_id: str) -> Path:
    """A new directory for one sandbox. Raises StateError."""
    path = state_root() / "sandboxes" / container_id
    try:
        path.mkdir(mode=0o700)
    except OSError as error:
        raise StateError(
            f"The directory {path} cannot be made: {error.strerror}.",
            "look whether the disk is full or read-only; XDG_STATE_HOME names another place.",
        ) from error
    return path


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Keeps this user's other processes out while folders come and go. Raises StateError."""
    path = state_root() / "lock"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateError(f"The file {path} cannot be opened: {error.strerror}.") from error
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked_file(fd, fcntl.LOCK_EX))
        except TimeoutError as error:
            raise StateError(
                f"The file {path} cannot be locked: {error.strerror}.",
                "see what that process does; where it was stopped (Ctrl-Z), let it go on.",
            ) from error
        yield


def write_record(directory: Path, record: Record) -> None:
    """Replace the record in one step, so that a reader never sees half of it.

    Raises StateError.
    """
    temporary = directory / f"{RECORD}.new"
    try:
        temporary.write_text(json.dumps(dataclasses.asdict(record), indent=1) + "\n")
        temporary.replace(directory / RECORD)
    except OSError as error:
        raise StateError(
            f"The file {directory / RECORD} cannot be written: {error.strerror}.",
            "look whether the disk is full or read-only; XDG_STATE_HOME names another place.",
        ) from error


def read_record(directory: Path) -> Record | None:
    """The record in ``directory``; None where there is none that can be read."""
    try:
        content: dict[str, Any] = json.loads((directory / RECORD).read_text())
        content["owner"] = ProcessId(**content["owner"])
        content["machine"] = Machine(**content["machine"])
        content["cgroups"] = tuple(content["cgroups"])
        for name in ("lent_by", "outputs_file", "outputs_parent"):
            if content.get(name) is not None:
                first, second = content[name]
                content[name] = (int(first), int(second))
        content["processes"] = {
            name: ProcessId(**process) for name, process in content["processes"].items()
        }
        return Record(**content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def sandbox_directories() -> list[Path]:
    """The directories of this user's sandboxes, oldest first. Raises StateError."""
    place = state_root() / "sandboxes"
    try:
        return sorted(path for path in place.iterdir() if path.is_dir())
    except OSError as error:
        raise StateError(f"The directory {place} cannot be read: {error.strerror}.") from error


def find_sandboxes() -> list[tuple[Path, Record]]:
    """Every sandbox of this user that has a record, oldest first. Raises StateError."""
    found = ((path, read_record(path)) for path in sandbox_directories())
    return [(path, record) for path, record in found if record is not None]


def images_in_use() -> set[str]:
    """Digests of the images from the store that sandboxes run in. Raises StateError."""
    records = (record for _, record in find_sandboxes() if not is_orphan(record))
    return {record.image for record in records if record.image is not None}


def this_process() -> ProcessId:
    """Who asks. Raises StateError."""
    process = identify(os.getpid())
    if process is None:
        raise StateError(
            "This process cannot look at itself in /proc.",
            "see whether /proc is mounted, and whether too many files are open (`ulimit -n`).",
        )
    return process


def is_of_this_boot(record: Record) -> bool:
    """Whether the numbers of devices and processes in it still mean what they did."""
    return record.machine.boot == this_machine().boot


def is_orphan(record: Record) -> bool:
    """Whether the owner is known to be gone.

    A home may be shared by machines and containers, and the owner of a sandbox on another one
    cannot be seen: such a record is left alone, unless it is of an earlier boot of this host.
    """
    here = this_machine()
    if not is_of_this_boot(record):
        return record.machine.host == here.host
    if record.machine.pid_namespace != here.pid_namespace:
        return False
    return not is_alive(record.owner)


def remove_directory(directory: Path) -> None:
    """Remove a sandbox's directory and all in it; what cannot be removed stays for the sweep."""
    shutil.rmtree(directory, ignore_errors=True)
