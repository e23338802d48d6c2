"""The state directories of this user's sandboxes, and the records in them.

Each sandbox has one directory below ``sandboxes/``, private to the user. Its record names the
owner; ``is_orphan`` decides whether that has died. Nothing here ends a process.

    sandboxes/<id>/record.json
    sandboxes/<id>/claim        locked by whoever saves, ends, removes or takes over what a dead
                                owner has left. A living owner needs no claim: who has got it asks
                                ``is_orphan`` again
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from gvisor_kernel.config.settings import DEFAULT_RUNTIME
from gvisor_kernel.errors import StateError
from gvisor_kernel.host.locks import MAX_LOCK_SECONDS
from gvisor_kernel.host.private_directories import lock, replace_file, state_root
from gvisor_kernel.host.processes import ProcessId, identify, is_alive
from gvisor_kernel.spec.identity import Identity
from gvisor_kernel.strict_json import parse_json
from gvisor_kernel.typed_json import read_value, write_json

# by path: below the state directory, whose parents only this user can change

RECORD, CLAIM = "record.json", "claim"
Keeper = Literal["server", "program", "nobody"]
MAX_RECORD = 1024 * 1024
"""Bytes. A record has some 2 kB, and more with long paths and commands."""
SHORT_SECONDS = 0.2
"""Longer than somebody has the claim who only looks at it."""


@dataclass(frozen=True)
class Machine:
    """The machine on which a pid is valid: one boot of one host, and one pid namespace."""

    host: str
    boot: str
    pid_namespace: str


@dataclass(frozen=True)
class Record:
    """The facts of a sandbox that are known from outside, for ``list``, ``kill`` and the sweep."""

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
    """Device and inode of the outputs folder: its name may lead to another folder later."""
    outputs_parent: tuple[int, int] | None = None
    """Device and inode of the folder that the outputs folder is in."""
    made_outputs: bool = False
    made_above: bool = False
    """Of a branch: its source, which has ended, has made the outputs that those of branches are
    in."""
    branch: tuple[str, str] | None = None
    """The name of a branch, and the id of the sandbox from whose state it went on."""
    lent_by: tuple[int, int] | None = None
    """Uid and gid that everything in outputs gets back when the sandbox has ended."""
    image: str | None = None
    """The digest of the root image that it runs in."""
    environment: str | None = None
    """The digest of the environment whose packages it has."""
    runsc: str = ""
    """The release of runsc that it runs with, where that is known."""
    program: str = ""
    """The very program, if it is of this machine; see ``runsc/kept_programs``."""
    cgroups: tuple[str, ...] = ()
    processes: dict[str, ProcessId] = field(default_factory=dict)
    spare: bool = False
    """Restored ahead, and not assigned to a kernel yet."""
    runtime: str = DEFAULT_RUNTIME
    engine: str | None = None
    """The address of the Docker engine that runs it, if one does."""
    ready: bool = False
    """The engine has started it, and it was verified."""
    unmade: bool = False
    """The engine has refused to make it, so nothing is there; it may also refuse to say so."""
    ended: bool = False
    """It has ended in the engine. Its outputs must still be copied, and the rest removed."""
    killed: bool = False
    """A person has ended it, by `gvisor-kernel kill`."""
    saved: float = 0.0
    """When its kernel was saved in its directory, and it was ended; 0 while it runs."""
    keeper: Keeper = "server"
    """Who takes over a kernel that is saved, once its owner has ended: the next server of its root
    folder, a program that asks for it by its id, or nobody, so that it is removed."""
    given_back: int = 0
    """Bytes by which its memory fell when its kernel rested for the last time."""
    node: str | None = None
    """The machine on which it runs, if that is another one."""
    end_argv: tuple[str, ...] = ()
    """The command that ends it there, if its client does not."""
    sweep_argv: tuple[str, ...] = ()
    """The command that removes there what has no owner any more."""
    fetch_argv: tuple[str, ...] = ()
    """The command that sends its outputs from there, if they are copied."""
    step_argv: tuple[str, ...] = ()
    """The same while its job runs, if that is another command."""
    copy: str | None = None
    """The folder on the node with the copy of its files."""


_FACTS = frozenset(fact.name for fact in dataclasses.fields(Record))


@cache
def this_machine() -> Machine:
    """Return what tells this machine, boot and pid namespace from others that share a home."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return Machine(socket.gethostname(), boot, str(Path("/proc/self/ns/pid").readlink()))


def state_id() -> str:
    """Return the random name of this state directory, by which things in a Docker engine belong to
    it.

    It is made at its first use, and never changes.

    :raises StateError: when its file cannot be read or written
    """
    path = state_root() / "id"
    try:
        with locked():
            with contextlib.suppress(FileNotFoundError):
                return path.read_text()
            replace_file(path, secrets.token_hex(16))
            return path.read_text()
    except OSError as error:
        raise StateError(f"Could not use the file {path}: {error.strerror}.") from error


def make_directory(container_id: str) -> Path:
    """Make the directory of one sandbox.

    :raises StateError: when that fails
    """
    path = state_root() / "sandboxes" / container_id
    try:
        path.mkdir(mode=0o700)
    except OSError as error:
        raise StateError(
            f"Could not make the directory {path}: {error.strerror}.",
            "check whether the disk is full or read-only; or set XDG_STATE_HOME to another"
            " directory.",
        ) from error
    return path


def find_identity(directory: Path) -> Identity:
    """Return the identity of the sandbox in ``directory``.

    :raises StateError: when it has no record
    """
    record = read_record(directory)
    if record is None:
        raise StateError(f"The record of the saved kernel in {directory} cannot be read.")
    return Identity.parse(record.identity)


@contextlib.contextmanager
def locked(seconds: float = MAX_LOCK_SECONDS) -> Iterator[None]:
    """Hold this user's lock while directories of sandboxes are made or removed. Blocks for seconds.

    :raises StateError: when the lock cannot be opened, or another process does not release it
    """
    path = state_root() / "lock"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock(path, fcntl.LOCK_EX, create=True, seconds=seconds))
        except TimeoutError as error:
            raise StateError(
                f"Could not lock the file {path}: {error.strerror}.",
                "check what that process does; if it was stopped (Ctrl-Z), let it continue.",
            ) from error
        except OSError as error:
            raise StateError(f"Could not open the file {path}: {error.strerror}.") from error
        yield


@contextlib.contextmanager
def claimed(directory: Path, seconds: float = SHORT_SECONDS) -> Iterator[None]:
    """Hold the claim of a sandbox's directory. Blocks.

    What was known of the sandbox before may have changed meanwhile.

    :raises TimeoutError: when another process has it for ``seconds``
    :raises OSError: when the directory is gone, or cannot be written
    """
    with lock(directory / CLAIM, fcntl.LOCK_EX, create=True, seconds=seconds):
        yield


def is_claimed(directory: Path) -> bool:
    """Return whether another process works on what a dead owner has left in ``directory``."""
    try:
        with claimed(directory, 0):
            return False
    except TimeoutError:
        return True
    except OSError:
        return False


def write_record(directory: Path, record: Record) -> None:
    """Write the record to a new file and rename it into place, so that no reader sees half of it.

    :raises StateError: when it cannot be written
    """
    temporary = directory / f"{RECORD}.new"
    try:
        temporary.write_text(write_json(record) + "\n")
        temporary.replace(directory / RECORD)
    except OSError as error:
        raise StateError(
            f"Could not write the file {directory / RECORD}: {error.strerror}.",
            "check whether the disk is full or read-only; or set XDG_STATE_HOME to another"
            " directory.",
        ) from error


def change_record(directory: Path, record: Record, **facts: Any) -> Record:
    """Change ``facts`` of the record as it is now, or of ``record`` if there is none; return it.

    :raises StateError: when it cannot be written
    """
    with locked():
        record = dataclasses.replace(read_record(directory) or record, **facts)
        write_record(directory, record)
    return record


def note_facts(directory: Path, record: Record, **facts: Any) -> Record:
    """Do as ``change_record``; return ``record`` if that fails. Never raises."""
    with contextlib.suppress(OSError, StateError):
        return change_record(directory, record, **facts)
    return record


def note_kill(directory: Path) -> None:
    """Note that a person ends the sandbox: its owner, which sees only the end, says so. Never
    raises: the sandbox is ended even where that cannot be written."""
    record = read_record(directory)
    if record is not None:
        note_facts(directory, record, killed=True)


def find_killer(directory: Path) -> str:
    """Return that a person has ended the sandbox, as a clause; empty where nobody has."""
    record = read_record(directory)
    return "it was ended by `gvisor-kernel kill`" if record is not None and record.killed else ""


def read_record(directory: Path) -> Record | None:
    """Return the record in ``directory``, or None if there is none that can be read.

    One of a later release may have further facts: its sandbox is not removed for that.
    """
    with contextlib.suppress(OSError, ValueError):
        facts = parse_json((directory / RECORD).read_bytes(), MAX_RECORD)
        if isinstance(facts, dict):
            return read_value({it: facts[it] for it in _FACTS & facts.keys()}, Record)
    return None


def sandbox_directories() -> list[Path]:
    """Return the directories of this user's sandboxes, oldest first.

    :raises StateError: when they cannot be read
    """
    place = state_root() / "sandboxes"
    try:
        return sorted(path for path in place.iterdir() if path.is_dir())
    except OSError as error:
        raise StateError(f"Could not read the directory {place}: {error.strerror}.") from error


def find_sandboxes() -> list[tuple[Path, Record]]:
    """Return the directory and record of each sandbox of this user that has a record, oldest first.

    :raises StateError: when the state directory cannot be read
    """
    found = ((path, read_record(path)) for path in sandbox_directories())
    return [(path, record) for path, record in found if record is not None]


def find_used(use: Callable[[Record], str | None]) -> set[str]:
    """Return what running sandboxes, and saved kernels, use: the digests of root images, or of
    environments.

    :raises StateError: when the state directory cannot be read
    """
    records = (record for _, record in find_sandboxes() if record.saved or not is_orphan(record))
    return {used for used in map(use, records) if used is not None}


def this_process() -> ProcessId:
    """Return the id of this process, the owner of the sandboxes that it starts.

    :raises StateError: when /proc cannot be read
    """
    process = identify(os.getpid())
    if process is None:
        raise StateError(
            "This process could not read /proc/self.",
            "check that /proc is mounted, and that not too many files are open (`ulimit -n`).",
        )
    return process


def is_of_this_boot(record: Record) -> bool:
    """Return whether the device numbers and pids in the record are still valid."""
    return record.machine.boot == this_machine().boot


def is_orphan(record: Record) -> bool:
    """Return whether the owner is known to have died.

    Machines and containers may share a home, and the owner of a sandbox on another machine cannot
    be seen from here. Such a record is left alone, unless it is of an earlier boot of this host.
    """
    here = this_machine()
    if not is_of_this_boot(record):
        return record.machine.host == here.host
    if record.machine.pid_namespace != here.pid_namespace:
        return False
    return not is_alive(record.owner)


def disown(directory: Path) -> None:
    """Leave a saved kernel of this process to others, as if the process had ended.

    :raises StateError: when that cannot be written
    """
    record = read_record(directory)
    if record is not None:
        change_record(directory, record, owner=ProcessId(0, 0))


def remove_directory(directory: Path) -> None:
    """Remove a sandbox's directory and all in it; what cannot be removed is left to the sweep."""
    shutil.rmtree(directory, ignore_errors=True)
