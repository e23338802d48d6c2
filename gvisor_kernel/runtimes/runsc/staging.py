"""Starting the program that makes a sandbox where that sandbox's mounts are (``host/stage``).

Root's sandbox runs as an ordinary uid on the host: it cannot walk through a private home, nor write
a person's files. So each source that belongs to a person is mounted with its owner mapped: what the
sandbox's root does there, the owner did. A mount namespace belongs to a thread. One thread makes
it, mounts, starts the program in it and ends; the namespace, and every mount in it, goes with the
last process of the sandbox. The host's mount table never holds any of it.

An ordinary user's needs a user namespace, which no process with threads can make for itself: there
a small program makes both, mounts, and becomes the one that makes the sandbox (``host/enter``).
"""

from __future__ import annotations

import errno
import json
import os
import select
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
from gvisor_kernel.errors import LaunchError
from gvisor_kernel.host import commands, enter, mounts
from gvisor_kernel.host.folders import Opened
from gvisor_kernel.host.locks import ThreadLock
from gvisor_kernel.host.processes import SUBUID_BASE
from gvisor_kernel.host.stage import (
    Source,
    attach,
    clone_all,
    clone_opened,
    cover_meminfo,
    enter_namespace,
    merge,
    place,
)
from gvisor_kernel.runtimes.hints import find_hint
from gvisor_kernel.spec.layout import is_within

COVERED = ("/mnt", "/media", "/srv", "/boot", "/opt")
"""Directories of every Linux system, one of which is covered in the private namespace. What is
below it is bound before that, so nothing is lost but the name."""
ENTER_SECONDS = 30.0
"""How long the mounts may take: milliseconds, unless a network file system does not answer."""
MAX_ERROR = 65536
"""Bytes of what is said when they cannot be made."""

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Stage:
    """Where the sources of a sandbox are found in its private namespace."""

    directory: str

    def path(self, index: int) -> str:
        """The place of the ``index``-th source."""
        return place(self.directory, index)


def choose_stage(in_use: Sequence[str]) -> Stage:
    """A directory that is safe to cover: nothing ``in_use`` (programs, state) is below it."""
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
    merges: bool = False,
) -> _Result:
    """As root: run ``start`` where ``stage`` holds ``sources``, in their order.

    ``kernel_id``: of whom a person's files are to belong to, as the sandbox counts its uids.
    ``merges``: see ``stage.merge``. ``meminfo`` is seen as /proc/meminfo there. ``start`` runs in a
    thread that ends afterwards. Raises what ``start`` raises, and LaunchError where the mounts
    cannot be made: nothing has run then.
    """
    results: list[_Result] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            _stage(stage, sources, meminfo, kernel_id)
            if merges:
                merge(stage.directory, len(sources))
            results.append(start())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="gvisor-kernel-stage")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _stage(stage: Stage, sources: Sequence[Source], meminfo: Path, kernel_id: int) -> None:
    try:
        mounts.unshare(mounts.CLONE_NEWNS)
        enter_namespace()
    except OSError as error:
        raise LaunchError(
            f"A private mount namespace cannot be made: {error.strerror}.",
            "run Jupyter as an ordinary user; or, in a container, give root CAP_SYS_ADMIN"
            " (docker run --privileged).",
        ) from error
    cover_meminfo(str(meminfo))
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
    merges: bool = False,
) -> subprocess.Popen[bytes]:
    """As an ordinary user: what ``spawn(argv, descriptors)`` returns.

    ``spawn`` starts its program behind ``argv``, and lets it have ``descriptors``. ``state``: a
    folder that the program may write; ``cgroups``: those that it is to enter; ``file_size``: its
    RLIMIT_FSIZE. Raises LaunchError where the mounts cannot be made: nothing has run then, or is
    left. Blocks until it is known.
    """
    errors, write_errors = os.pipe2(os.O_CLOEXEC)
    try:
        task = os.memfd_create("gvisor-kernel-entry", os.MFD_CLOEXEC)
        try:
            entry = enter.Entry(
                stage=stage.directory,
                sources=tuple(sources),
                merges=merges,
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
        finally:
            os.close(task)
            os.close(write_errors)
        try:
            _wait_for_entry(errors)
        except BaseException:
            commands.end_group(started)
            started.wait()
            raise
        return started
    finally:
        os.close(errors)


def _wait_for_entry(errors: int) -> None:
    """Until the program runs: then nobody has the pipe any more. Raises LaunchError."""
    poller = select.poll()
    poller.register(errors, select.POLLIN)
    content = b""
    while poller.poll(ENTER_SECONDS * 1000):
        data = os.read(errors, MAX_ERROR)
        if not data:
            break
        content += data
    else:
        raise LaunchError(
            f"The sandbox's mounts were not made within {ENTER_SECONDS:g} s.",
            "a network file system among the folders may not answer.",
        )
    if content:
        answer = json.loads(content)
        raise LaunchError(answer["fact"], answer["hint"] or find_hint(answer["fact"]))


def can_map_owner(folder: Opened) -> bool:
    """Whether the file system of ``folder`` can show its owner as somebody else.

    False also where the mount cannot be made at all: the start says why.
    """
    source = Source(folder.path, folder.identity, read_only=False, foreign=True)
    try:
        os.close(clone_opened(folder, source, partial(_map_owner, 0)))
    except (LaunchError, OSError):
        return False
    return True


def _map_owner(kernel_id: int, tree: int, source: Source) -> None:
    """Let the owner of ``source`` be ``kernel_id`` inside, and the other way round."""
    status = os.fstat(tree)
    namespace = _owner_namespace(status.st_uid, status.st_gid, kernel_id)
    reason: str | None = None
    for recursive in (True, False):  # a file system mounted below may not be able to
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
            f"The file system of {source.path} cannot map owners ({reason}), so the sandbox"
            " could not write there.",
            "choose a folder on ext4, xfs, btrfs or tmpfs, or let it be read-only; or run"
            " Jupyter as an ordinary user, who needs no mapping.",
        )
    # Read-only: what everybody may read can be read.


_namespaces: dict[tuple[int, int, int], int] = {}
_namespaces_lock = ThreadLock()


def _owner_namespace(uid: int, gid: int, kernel_id: int) -> int:
    """A file descriptor of a user namespace that maps an owner; one an owner for ever."""
    with _namespaces_lock:
        key = uid, gid, kernel_id
        if key not in _namespaces:
            _namespaces[key] = _make_namespace(*key)
        return _namespaces[key]


def _make_namespace(uid: int, gid: int, kernel_id: int) -> int:
    child = subprocess.Popen(
        ["unshare", "--user", "sh", "-c", "echo; read -r _"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    with child:
        assert child.stdout is not None  # it is a pipe
        if not child.stdout.read(1):
            raise LaunchError(
                "A user namespace cannot be made.",
                "look at `sysctl user.max_user_namespaces`; `gvisor-kernel doctor` says more.",
            )
        folder = Path(f"/proc/{child.pid}")
        # The gofer makes a file as the sandbox's root, before it gives it to the kernel.
        root = f"{SUBUID_BASE} {SUBUID_BASE} 1\n"
        for name, owner in (("uid_map", uid), ("gid_map", gid)):
            more = root if kernel_id and owner != SUBUID_BASE else ""
            (folder / name).write_text(f"{owner} {SUBUID_BASE + kernel_id} 1\n{more}")
        return os.open(folder / "ns" / "user", os.O_RDONLY | os.O_CLOEXEC)
