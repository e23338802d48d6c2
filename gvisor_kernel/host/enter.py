"""The program that an ordinary user's sandbox begins with: namespaces, limits, mounts, then runsc.

    python -I -S -c CODE PACKAGES FD PROGRAM ARGUMENT…

PACKAGES is the folder that has this package. Reads from the descriptor FD what is to be done
(``Entry``), does it, and becomes PROGRAM. Where it cannot, it writes an error's fact and hint to
the entry's ``errors`` and ends. In the new user namespace the user is root, and everything of the
host is read-only but what the entry names.

Started by ``runtimes/runsc/staging.py``. It is single-threaded, as a new user namespace demands.
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
    Source,
    attach,
    clone_all,
    clone_source,
    cover_meminfo,
    enter_namespace,
    merge,
)

UNDONE = 125
"""The exit status where it could not become PROGRAM."""
CODE = (
    "import sys; sys.path[:0] = [sys.argv.pop(1)];"
    " from gvisor_kernel.host.enter import main; sys.exit(main())"
)
IGNORED = (signal.SIGPIPE, signal.SIGXFSZ)
"""By any Python, and then by what it becomes."""


@dataclass(frozen=True)
class Entry:
    """What is to be done before the program starts.

    ``stage``: the directory to be covered, where ``sources`` are found afterwards; ``merges``: see
    ``stage.merge``. ``state``: a folder of the host that the program may write at its own path.
    ``meminfo``: the file that is seen as /proc/meminfo. ``cgroups``: files to write the own pid to.
    ``file_size``: RLIMIT_FSIZE in bytes. ``errors``: the descriptor for an error.
    """

    stage: str
    sources: tuple[Source, ...]
    merges: bool
    state: Source
    meminfo: str
    cgroups: tuple[str, ...]
    file_size: int | None
    errors: int

    def write(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def read(cls, content: bytes) -> Entry:
        facts: dict[str, Any] = json.loads(content)
        facts["sources"] = tuple(map(_read_source, facts["sources"]))
        facts["state"] = _read_source(facts["state"])
        facts["cgroups"] = tuple(facts["cgroups"])
        return cls(**facts)


def _read_source(facts: dict[str, Any]) -> Source:
    return Source(**{**facts, "identity": Identity(*facts["identity"])})


def main() -> int:
    """Returns only where it could not become the program: the exit status."""
    entry, argv = _read_entry(int(sys.argv[1])), sys.argv[2:]
    os.set_inheritable(entry.errors, False)  # its end tells that the program runs
    try:
        _limit(entry)
        _enter()
        _mount(entry)
        for signum in IGNORED:
            signal.signal(signum, signal.SIG_DFL)
        os.execve(argv[0], argv, {"PATH": os.environ.get("PATH", os.defpath)})  # noqa: S606
    except LaunchError as error:
        answer = {"fact": error.fact, "hint": error.hint}
    except OSError as error:
        answer = {"fact": f"A sandbox could not be prepared: {error}.", "hint": ""}
    os.write(entry.errors, json.dumps(answer).encode())
    return UNDONE


def _read_entry(fd: int) -> Entry:
    with os.fdopen(fd, "rb") as file:
        file.seek(0)
        return Entry.read(file.read())


def _limit(entry: Entry) -> None:
    """Outside: cgroups belong to the user there."""
    os.umask(0o022)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if entry.file_size is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        if hard != resource.RLIM_INFINITY and hard < entry.file_size:
            raise LaunchError(
                f"This user's programs may write files of at most {hard} bytes; the memory of this "
                f"sandbox is a file that may grow to {entry.file_size} bytes.",
                "raise the limit for the program that starts kernels (`ulimit -H -f` shows it, "
                "/etc/security/limits.conf sets it as fsize), or lower memory_limit.",
            )
        resource.setrlimit(resource.RLIMIT_FSIZE, (entry.file_size, entry.file_size))
    for path in entry.cgroups:
        Path(path).write_text(str(os.getpid()))


def _enter() -> None:
    """Be root of a user namespace, in a mount namespace of its own. Raises LaunchError."""
    uid, gid = os.geteuid(), os.getegid()
    try:
        mounts.unshare(mounts.CLONE_NEWUSER | mounts.CLONE_NEWNS)
        own = Path("/proc/self")
        (own / "setgroups").write_text("deny")
        (own / "uid_map").write_text(f"0 {uid} 1")
        (own / "gid_map").write_text(f"0 {gid} 1")
        enter_namespace()
    except OSError as error:
        raise LaunchError(
            f"A user namespace cannot be made: {error.strerror}.",
        ) from error


def _mount(entry: Entry) -> None:
    cover_meminfo(entry.meminfo)
    with ExitStack() as stack:
        trees = clone_all(stack, entry.sources)
        state = clone_source(entry.state)
        stack.callback(os.close, state)
        try:
            # The sandbox's own read-only mounts are no substitute: code inside can remount them in
            # a namespace of its own, and runsc of 2024 truncates a file on a read-only mount
            # before it refuses to open it.
            mounts.set_attributes("/", add=mounts.ATTR_RDONLY, recursive=True)
            mounts.set_attributes("/proc", clear=mounts.ATTR_RDONLY, recursive=False)
            mounts.move_tree(state, entry.state.path)
        except OSError as error:
            raise LaunchError(
                f"The host's files cannot be made read-only: {error.strerror}.",
                "this kernel must be Linux 5.12 or newer.",
            ) from error
        attach(entry.stage, entry.sources, trees)
        if entry.merges:
            merge(entry.stage, len(entry.sources))
