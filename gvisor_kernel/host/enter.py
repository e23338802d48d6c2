"""The first program of an ordinary user's sandbox: it sets limits, namespaces and mounts.

    python -I -S -c CODE PACKAGES FD PROGRAM ARGUMENT…

PACKAGES is the folder that contains this package. The program reads an ``Entry`` from the
descriptor FD, carries it out, and execs PROGRAM, which is runsc. If that fails, it writes the fact
and the hint of an error to the entry's ``errors`` and exits. In the new user namespace the user is
root, and all files of the host are read-only except those that the entry names.

``runtimes/runsc/staging.py`` starts it. It is single-threaded, because unshare(CLONE_NEWUSER) fails
in a process with several threads.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gvisor_kernel.errors import LaunchError
from gvisor_kernel.host import mounts
from gvisor_kernel.host.folders import Identity
from gvisor_kernel.host.stage import (
    Hidden,
    Source,
    attach,
    clone_all,
    clone_source,
    make_mounts_slave,
    mount_meminfo,
    mount_overlay,
)

# by path: the kernel's own file systems, /proc, /sys and /dev; the state directory, opened again
# and compared

FAILED = 125
"""The exit status when PROGRAM could not be executed."""
CODE = (
    "import sys; sys.path[:0] = [sys.argv.pop(1)];"
    " from gvisor_kernel.host.enter import main; sys.exit(main())"
)
IGNORED = (signal.SIGPIPE, signal.SIGXFSZ)
"""Signals that Python ignores; an exec would keep them ignored."""


@dataclass(frozen=True)
class Entry:
    """The setup that is made before the program starts.

    ``stage``: the directory where ``sources`` are attached, on a tmpfs; ``has_overlay``: see
    ``stage.mount_overlay``. ``state``: a folder of the host that the program may write, at its own
    path. ``meminfo``: the file to mount on /proc/meminfo. ``cgroups``: files to write this pid to.
    ``file_size``: RLIMIT_FSIZE in bytes. ``errors``: the descriptor to write an error to.
    """

    stage: str
    sources: tuple[Source, ...]
    has_overlay: bool
    state: Source
    meminfo: str
    cgroups: tuple[str, ...]
    file_size: int | None
    errors: int

    def write(self) -> bytes:
        """Return the bytes that ``read`` parses, for the other side of the pipe."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def read(cls, content: bytes) -> Entry:
        """Parse the result of ``write``. The content is trusted: the runtime has written it."""
        facts: dict[str, Any] = json.loads(content)
        facts["sources"] = tuple(map(_read_source, facts["sources"]))
        facts["state"] = _read_source(facts["state"])
        facts["cgroups"] = tuple(facts["cgroups"])
        return cls(**facts)


def _read_source(facts: dict[str, Any]) -> Source:
    hidden = tuple(
        Hidden(path, Identity(*identity), changed) for path, identity, changed in facts["hidden"]
    )
    return Source(**{**facts, "identity": Identity(*facts["identity"]), "hidden": hidden})


def main() -> int:
    """Carry out the entry and exec the program. Return the exit status if that fails."""
    entry, argv = _read_entry(int(sys.argv[1])), sys.argv[2:]
    os.set_inheritable(entry.errors, False)  # end of file tells the parent that the exec succeeded
    try:
        _apply_limits(entry)
        _enter_user_namespace()
        _attach_mounts(entry)
        for signum in IGNORED:
            signal.signal(signum, signal.SIG_DFL)
        os.execve(argv[0], argv, {"PATH": os.environ.get("PATH", os.defpath)})  # noqa: S606
    except LaunchError as error:
        answer = {"fact": error.fact, "hint": error.hint}
    except OSError as error:
        answer = {"fact": f"A sandbox could not be prepared: {error}.", "hint": ""}
    os.write(entry.errors, json.dumps(answer).encode())
    return FAILED


def _read_entry(fd: int) -> Entry:
    with os.fdopen(fd, "rb") as file:
        file.seek(0)
        return Entry.read(file.read())


def _apply_limits(entry: Entry) -> None:
    """Set limits before the namespaces change: afterwards the cgroups could not be written."""
    os.umask(0o022)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if entry.file_size is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        if hard != resource.RLIM_INFINITY and hard < entry.file_size:
            raise LaunchError(
                f"This user's programs may write files of at most {hard} bytes; the memory of this "
                f"sandbox is a file that may grow to {entry.file_size} bytes.",
                "raise the limit for the program that starts kernels (`ulimit -H -f` shows it, "
                "/etc/security/limits.conf sets it as fsize), or lower memory_limit or pids_limit.",
            )
        resource.setrlimit(resource.RLIMIT_FSIZE, (entry.file_size, entry.file_size))
    for path in entry.cgroups:
        Path(path).write_text(str(os.getpid()))


def _enter_user_namespace() -> None:
    """Become root of a new user namespace, in a new mount namespace.

    :raises LaunchError: when the namespaces cannot be created
    """
    uid, gid = os.geteuid(), os.getegid()
    try:
        mounts.unshare(mounts.CLONE_NEWUSER | mounts.CLONE_NEWNS)
        own = Path("/proc/self")
        (own / "setgroups").write_text("deny")
        (own / "uid_map").write_text(f"0 {uid} 1")
        (own / "gid_map").write_text(f"0 {gid} 1")
        make_mounts_slave()
    except OSError as error:
        raise LaunchError(
            f"A user namespace cannot be made: {error.strerror}.",
        ) from error


def _attach_mounts(entry: Entry) -> None:
    mount_meminfo(entry.meminfo)
    with ExitStack() as stack:
        trees = clone_all(stack, entry.sources)
        state = clone_source(entry.state)
        stack.callback(os.close, state)
        try:
            # The sandbox's own read-only mounts are not enough: code inside can remount them in a
            # new namespace, and runsc of 2024 truncates a file on a read-only mount before it
            # refuses to open it.
            mounts.set_attributes("/", add=mounts.ATTR_RDONLY, recursive=True)
            mounts.set_attributes("/proc", clear=mounts.ATTR_RDONLY, recursive=False)
            mounts.move_tree(state, entry.state.path)
        except OSError as error:
            raise LaunchError(
                f"The host's files cannot be mounted read-only: {error.strerror}.",
                "use Linux 5.12 or newer.",
            ) from error
        attach(entry.stage, entry.sources, trees)
        if entry.has_overlay:
            mount_overlay(entry.stage, len(entry.sources))
