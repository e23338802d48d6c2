"""Starts the program that makes a sandbox in a mount namespace with that sandbox's mounts.

The mounts are made by ``host/stage``. Root's sandbox runs as an ordinary uid on the host: it can
neither enter a private home, nor write a user's files. So each source that belongs to a user is
mounted with its owner mapped: what the sandbox's root does there, the owner has done. A mount
namespace belongs to a thread: one thread makes it, mounts, starts the program and ends. The
namespace and its mounts end with the last process of the sandbox. The host's mount table never has
any of them.

An ordinary user also needs a user namespace, which no process with threads can make for itself.
There a small program makes both, mounts, and then executes the program that makes the sandbox
(``host/enter``).
"""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import gvisor_kernel
from gvisor_kernel.config.validators import is_within
from gvisor_kernel.errors import LaunchError
from gvisor_kernel.host import commands, enter, mounts, processes
from gvisor_kernel.host.descriptors import closing_fd, is_ready
from gvisor_kernel.host.folders import Opened
from gvisor_kernel.host.locks import ThreadLock
from gvisor_kernel.host.stage import (
    Source,
    attach,
    clone_all,
    clone_opened,
    make_mounts_slave,
    mount_meminfo,
    mount_overlay,
    place,
)
from gvisor_kernel.runtimes.hints import find_hint

COVERED = ("/mnt", "/media", "/srv", "/boot", "/opt")
"""Directories that every Linux system has. One of them is covered in the private namespace. What is
below it is bound before that, so only its name is lost."""
ENTER_SECONDS = 30.0
"""Seconds that the mounts may take: milliseconds, unless a network file system does not answer or
the machine is overloaded."""
MAX_ERROR = 65536
"""Bytes of an error report that are read at once."""

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Stage:
    """The directory in a private mount namespace where the sources of a sandbox are mounted."""

    directory: str

    def path(self, index: int) -> str:
        """Return where the source number ``index`` is mounted."""
        return place(self.directory, index)


def choose_stage(in_use: Sequence[str]) -> Stage:
    """Return a directory that can be covered: no path of ``in_use`` (programs, state) is below it.

    :raises LaunchError: when there is none
    """
    for directory in COVERED:
        try:
            searchable = Path(directory).stat().st_mode & stat.S_IXOTH
        except OSError:
            continue
        real = os.path.realpath(directory)
        if searchable and not any(is_within(os.path.realpath(path), real) for path in in_use):
            return Stage(real)
    raise LaunchError(
        f"None of {', '.join(COVERED)} is free for the sandbox's private mounts.",
        "move the state directory (XDG_STATE_HOME) or runsc out of at least one of them.",
    )


def run_staged(
    stage: Stage,
    sources: Sequence[Source],
    meminfo: Path,
    start: Callable[[], _Result],
    *,
    kernel_id: int,
    has_overlay: bool = False,
) -> _Result:
    """Call ``start`` as root in a mount namespace where ``stage`` holds ``sources``; return its
    result.

    Blocks until ``start`` has returned, in a thread that ends afterwards. ``kernel_id`` is the uid
    inside that a user's files belong to. ``has_overlay``: see ``host/stage.mount_overlay``.
    ``meminfo`` is seen there as /proc/meminfo.

    :raises LaunchError: when the mounts cannot be made; ``start`` was not called then
    :raises Exception: whatever ``start`` raises
    """
    results: list[_Result] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            _stage(stage, sources, meminfo, kernel_id)
            if has_overlay:
                mount_overlay(stage.directory, len(sources))
            results.append(start())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="gvisor-kernel-stage")
    thread.start()
    thread.join()  # no timeout: mounts, and the start of a program, bounded by wait_for_sentry
    if errors:
        raise errors[0]
    return results[0]


def _stage(stage: Stage, sources: Sequence[Source], meminfo: Path, kernel_id: int) -> None:
    try:
        mounts.unshare(mounts.CLONE_NEWNS)
        make_mounts_slave()
    except OSError as error:
        raise LaunchError(
            f"Could not make a private mount namespace: {error.strerror}.",
            "run Jupyter as an ordinary user; or, in a container, give root CAP_SYS_ADMIN"
            " (docker run --privileged).",
        ) from error
    mount_meminfo(str(meminfo))
    with ExitStack() as stack:
        attach(stage.directory, sources, clone_all(stack, sources, partial(_map_owner, kernel_id)))


def run_entered(
    stage: Stage,
    sources: Sequence[Source],
    meminfo: Path,
    spawn: Callable[[Sequence[str], Sequence[int]], subprocess.Popen[bytes]],
    *,
    state: Source,
    cgroups: Sequence[Path],
    file_size: int | None,
    has_overlay: bool = False,
) -> subprocess.Popen[bytes]:
    """Start a program as an ordinary user in namespaces where ``stage`` holds ``sources``.

    Blocks until that program runs; returns what ``spawn(argv, descriptors)`` returned. ``spawn``
    starts its program with ``argv`` put before its own command line, and lets it inherit
    ``descriptors``. ``state`` is a folder that the program may write, ``cgroups`` are those that it
    enters, ``file_size`` is its RLIMIT_FSIZE in bytes.

    :raises LaunchError: when the mounts cannot be made; nothing is left running then
    """
    errors, write_errors = os.pipe2(os.O_CLOEXEC)
    with closing_fd(errors):
        with (
            closing_fd(write_errors),
            closing_fd(os.memfd_create("gvisor-kernel-entry", os.MFD_CLOEXEC)) as task,
        ):
            entry = enter.Entry(
                stage=stage.directory,
                sources=tuple(sources),
                has_overlay=has_overlay,
                state=state,
                meminfo=str(meminfo),
                cgroups=tuple(str(directory / "cgroup.procs") for directory in cgroups),
                file_size=file_size,
                errors=write_errors,
            )
            os.write(task, entry.write())
            packages = str(Path(gvisor_kernel.__file__).parent.parent)
            program = [sys.executable, "-I", "-S", "-c", enter.CODE, packages, str(task)]
            started = spawn(program, (task, write_errors))
        try:
            _wait_for_entry(errors, started.pid)
        except BaseException:
            commands.kill_group(started)
            started.wait()  # no timeout: the process has ended
            raise
        return started


def _wait_for_entry(errors: int, pid: int) -> None:
    """Wait until the program ``pid`` runs: its exec closes the pipe.

    :raises LaunchError: when an error comes instead, or nothing within ENTER_SECONDS
    """
    content = b""
    while is_ready(errors, ENTER_SECONDS):
        data = os.read(errors, MAX_ERROR)  # no timeout: it is ready, or does not block
        if not data:
            break
        content += data
    else:
        raise LaunchError(
            f"The sandbox's mounts were not made within {ENTER_SECONDS:g} s.", _explain_wait(pid)
        )
    if content:
        answer = json.loads(content)
        raise LaunchError(answer["fact"], answer["hint"] or find_hint(answer["fact"]))


def _explain_wait(pid: int) -> str:
    """Return what holds up the mounts: a file system, in which the process hangs, or other work."""
    if processes.is_in_disk_wait(pid):
        return "check whether one of the folders is on a network file system that does not answer."
    load = os.getloadavg()[0]
    return f"the machine has too much to do ({os.cpu_count()} CPUs, load {load:.0f}): try it later."


def can_map_owner(folder: Opened) -> bool:
    """Return whether the file system of ``folder`` can be mounted with another owner.

    False also where the mount fails for another reason; the start then reports that reason.
    """
    source = Source(folder.path, folder.identity, read_only=False, foreign=True)
    try:
        os.close(clone_opened(folder, source, partial(_map_owner, 0)))
    except (LaunchError, OSError):
        return False
    return True


def _map_owner(kernel_id: int, tree: int, source: Source) -> None:
    """Map the owner of ``source`` to ``kernel_id`` inside, and the other way round."""
    status = os.fstat(tree)
    namespace = _owner_namespace(status.st_uid, status.st_gid, kernel_id)
    reason: str | None = None
    for recursive in (True, False):  # a file system mounted below may not support it
        try:
            mounts.set_attributes(
                tree, add=mounts.ATTR_IDMAP, namespace=namespace, recursive=recursive
            )
            return
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
                raise
            reason = os.strerror(error.errno)
    if not source.read_only:
        raise LaunchError(
            f"The file system of {source.path} does not support idmapped mounts ({reason}), so the"
            " sandbox could not write there.",
            "choose a folder on ext4, xfs, btrfs or tmpfs, or mount it read-only; or run Jupyter"
            " as an ordinary user, who needs no such mount.",
        )
    # Read-only: the sandbox can still read what everybody may read.


_namespaces: dict[tuple[int, int, int], int] = {}
_namespaces_lock = ThreadLock()


def _owner_namespace(uid: int, gid: int, kernel_id: int) -> int:
    """Return a file descriptor, kept for ever, of a user namespace that maps this owner."""
    with _namespaces_lock:
        key = uid, gid, kernel_id
        if key not in _namespaces:
            _namespaces[key] = _make_namespace(*key)
        return _namespaces[key]


def _make_namespace(uid: int, gid: int, kernel_id: int) -> int:
    try:
        child = subprocess.Popen(
            ["unshare", "--user", "sh", "-c", "echo; read -r _"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PATH": commands.PATH},  # a service's or an environment's PATH may lack the system
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise LaunchError(
            f"unshare does not exist in {commands.PATH}.", find_hint("unshare: not found")
        ) from error
    with child:
        assert child.stdout is not None  # it is a pipe
        if not child.stdout.read(1):  # no timeout: a program that writes a byte at once, or ends
            raise LaunchError(
                "A user namespace cannot be made.",
                "check `sysctl user.max_user_namespaces`; `gvisor-kernel doctor` says more.",
            )
        folder = Path(f"/proc/{child.pid}")
        # The gofer makes a file as the sandbox's root, before it changes the owner to the kernel.
        root = f"{processes.SUBUID_BASE} {processes.SUBUID_BASE} 1\n"
        for name, owner in (("uid_map", uid), ("gid_map", gid)):
            more = root if kernel_id and owner != processes.SUBUID_BASE else ""
            (folder / name).write_text(f"{owner} {processes.SUBUID_BASE + kernel_id} 1\n{more}")
        # by path: the kernel's own file systems, /proc, /sys and /dev
        return os.open(folder / "ns" / "user", os.O_RDONLY | os.O_CLOEXEC)
