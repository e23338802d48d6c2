"""The copy of a kernel's files on this node: made before its start, removed when it was fetched.

Each copy is a folder of its own in ``copies_root``, private to the user and outside the helpers'
state directories: it outlives a helper that is killed, until the host has its outputs. What is in
it was copied from the host, or a kernel has made it.

The command ``fetch`` sends its outputs to the host, as an archive: the host says on stdin which
copy it means, and whether it is the last time. The answer is a fact on stdout, then the archive,
and a fact with the number of files that are not in it. After the last time the copy is removed,
once the host has said that it has everything.
"""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from gvisor_kernel.archive.layers import MAX_ENTRIES
from gvisor_kernel.errors import ArchiveError, GvisorKernelError, LaunchError, StateError
from gvisor_kernel.host.folders import open_path
from gvisor_kernel.host.owners import restore_access
from gvisor_kernel.host.private_directories import (
    NotPrivate,
    make_directories,
    read_file,
    remove_at_any_depth,
)
from gvisor_kernel.host.processes import ProcessId, is_alive, kill_if
from gvisor_kernel.runtimes.copies.contents import Contents
from gvisor_kernel.runtimes.copies.outputs import OutputsCopy
from gvisor_kernel.runtimes.mounts.written_folders import forget_written
from gvisor_kernel.runtimes.nodes.orders import Files, Order, Sent, write_chunks, write_fact
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.runtimes.state.sweep import sweep_orphans
from gvisor_kernel.strict_json import JsonError
from gvisor_kernel.typed_json import read_json, write_json

KEPT_SECONDS = 7 * 24 * 3600
"""Seconds that a copy that nobody has fetched is kept."""
LINGER_SECONDS = 120.0
"""Seconds that a helper waits at its end for the host to fetch the outputs: a job lives as long."""
LINGER_STEP = 0.1
WORD_SECONDS = 60.0
"""Seconds that the host may take to say what it wants."""
DONE_SECONDS = 1800.0
"""Seconds that it may take to write what it was sent."""
END_SECONDS = 20.0
"""Seconds that a helper may take to end its sandbox."""
MAX_WORD = 100
LAST, NOW, DONE = "last", "now", "done"
NAME = re.compile(r"[a-z0-9]{1,40}")
MAX_OWNER = 4096
FILES, OUTPUTS = "files", "outputs"
OWNER, USED, ENDED = "owner", "used", "ended"
"""Files of a copy. ``OWNER``: the helper's process. ``USED``: a kernel may have written outputs.
``ENDED``: the sandbox is gone; since then the copy waits to be fetched."""


@dataclass(frozen=True)
class Owner:
    """The helper that has made a copy."""

    process: ProcessId
    machine: records.Machine


@dataclass(frozen=True)
class Copy:
    """One copy, which may be gone by now. ``left_out``: how many files of the host it lacks, as
    their names have control characters or are too long."""

    path: Path
    left_out: int = 0

    @property
    def files(self) -> Path:
        return self.path / FILES

    @property
    def outputs(self) -> Path:
        return self.files / OUTPUTS

    def mark(self, name: str) -> None:
        """Note USED or ENDED.

        :raises OSError: when that cannot be written
        """
        (self.path / name).touch(0o600)  # by path: below a private store of this user

    def mark_used(self) -> None:
        """Note USED.

        :raises LaunchError: when that cannot be written
        """
        try:
            self.mark(USED)
        except OSError as error:
            raise LaunchError(f"{self.path} could not be written: {error.strerror}.") from error

    def has(self, name: str) -> bool:
        """Return whether USED or ENDED was noted."""
        return (self.path / name).exists()

    def owner(self) -> ProcessId | None:
        """Return the helper's process if it lives, else None. A helper in another pid namespace
        counts as dead: its copy is only removed when it is old, or never was used."""
        with suppress(OSError, JsonError):
            owner = read_json(read_file(self.path / OWNER, MAX_OWNER), Owner, MAX_OWNER)
            if owner.machine == records.this_machine() and is_alive(owner.process):
                return owner.process
        return None

    def holds_outputs(self) -> bool:
        """Return whether there is something that a kernel may have written. A kernel may also have
        closed the folder, which is opened again."""
        with suppress(OSError):
            with open_path(str(self.outputs)) as outputs:
                restore_access(outputs)
            with os.scandir(self.outputs) as entries:
                return self.has(USED) and any(True for _ in entries)
        return False

    def finish(self) -> bool:
        """Note that the sandbox has ended; return whether outputs wait to be fetched. If none does,
        the copy is removed. Never raises."""
        if self.holds_outputs():
            with suppress(OSError):
                self.mark(ENDED)
                return True
        self.remove()
        return False

    def linger(self, wake: int) -> None:
        """Wait until the copy was fetched, for LINGER_SECONDS, or until a signal comes at
        ``wake``. Then nothing is left of it, also where the command that has fetched it was
        killed."""
        deadline = time.monotonic() + LINGER_SECONDS
        while self.holds_outputs() and time.monotonic() < deadline:
            if select.select([wake], [], [], LINGER_STEP)[0]:
                return
        if not self.holds_outputs():
            self.remove()

    def remove(self) -> None:
        """Remove the copy, however deep a kernel has nested folders in it. Never raises. Two
        processes may do it at once. What one that is killed leaves, the next sweep removes."""
        with suppress(OSError):
            # by path: below a private store of this user
            (self.path / USED).unlink()  # from now on nobody waits for it
        with suppress(OSError, GvisorKernelError):
            with suppress(OSError), open_path(str(self.outputs)) as outputs, records.locked():
                forget_written(outputs.identity)
            remove_at_any_depth(self.path)


def copies_root() -> Path:
    """Return the folder of all of this user's copies on this node, which may be missing.

    It lies beside what ``hide_also`` hides: a sandbox is shown its own copy.
    """
    base = Path(os.environ["XDG_STATE_HOME"]).parent.parent / "gvisor-kernel-copies"
    return base / os.uname().nodename


def find_copy(name: str) -> Copy | None:
    """Return the copy called ``name``; None if there is none."""
    copy = Copy(copies_root() / name)
    return copy if NAME.fullmatch(name) and copy.path.is_dir() else None


# -- before the start ------------------------------------------------------------------------------


def take_files(order: Order, archive: Iterator[bytes]) -> tuple[Copy, Order]:
    """Make the copy that ``order`` names from ``archive``; return it, and the order for its paths.

    Nothing is left of it after an error.

    :raises GvisorKernelError: when it cannot be made
    """
    copy = take_archive(order.copy, archive)
    return copy, place_order(order, copy)


def take_archive(name: str, archive: Iterator[bytes]) -> Copy:
    """Make the copy ``name`` from ``archive``. Nothing is left of it after an error.

    :raises GvisorKernelError: when it cannot be made
    """
    if not NAME.fullmatch(name):
        raise LaunchError("The host has sent no name of its files.")
    copy = Copy(copies_root() / name)
    try:
        make_copy(copy)
        try:
            with open_path(str(copy.files)) as opened:
                taken = OutputsCopy(opened, {})
                taken.take(archive)
        except BaseException:
            copy.remove()
            raise
    except ArchiveError as error:
        raise LaunchError(f"The host's files were refused: {error}.") from error
    except OSError as error:
        raise LaunchError(
            f"The host's files could not be copied to {copy.path}: {error}.",
            'check the disk there, or choose another folder as "state" of the setting.',
        ) from error
    return replace(copy, left_out=taken.left_out)


def make_copy(copy: Copy) -> None:
    """:raises StateError, OSError: when it cannot be made; nothing is left of it then"""
    root = copies_root()
    try:
        make_directories(root.parent, root)
    except NotPrivate as error:
        raise StateError(str(error), 'choose another folder as "state" of the setting.') from error
    owner = Owner(records.this_process(), records.this_machine())
    with records.locked():
        copy.path.mkdir(mode=0o700)  # by path: below a private store of this user
        try:
            (copy.path / OWNER).write_text(write_json(owner))
            copy.files.mkdir(mode=0o700)
            copy.outputs.mkdir(mode=0o755)
        except OSError:
            remove_at_any_depth(copy.path)
            raise


def place_order(order: Order, copy: Copy) -> Order:
    """Return ``order`` with the paths of the copy for those that are relative to it."""

    def place(path: str | None) -> str | None:
        return None if path is None else str(copy.files / path)

    spec = order.spec
    placed = replace(
        spec,
        uploads=place(spec.uploads),
        outputs=place(spec.outputs),
        skills=place(spec.skills),
        mounts=tuple(replace(mount, source=place(mount.source) or "") for mount in spec.mounts),
    )
    return replace(order, spec=placed, request=replace(order.request, folder=copy.files))


# -- at the end ------------------------------------------------------------------------------------


def sweep_copies() -> None:
    """Remove the copies of dead helpers that no kernel has used, or that nobody has fetched for
    KEPT_SECONDS.

    :raises StateError, OSError: when they cannot be looked at
    """
    root = copies_root()
    if not root.is_dir():
        return
    with records.locked():
        found = [Copy(path) for path in sorted(root.iterdir()) if path.is_dir()]
        left = [copy for copy in found if copy.owner() is None]
    for copy in left:
        with suppress(OSError):
            if copy.holds_outputs() and not copy.has(ENDED):
                copy.mark(ENDED)  # its helper was killed: from now on it waits
            elif not copy.holds_outputs() or time.time() - _ended_at(copy) > KEPT_SECONDS:
                copy.remove()


def _ended_at(copy: Copy) -> float:
    return (copy.path / ENDED).stat().st_mtime


# -- the command ``fetch`` -------------------------------------------------------------------------


def fetch() -> int:
    """Serve one host; return the exit status of this process: 1 if something was not sent."""
    try:
        word, _, name = read_word(WORD_SECONDS).partition(" ")
        copy = find_copy(name)
        if copy is not None and word == LAST:
            end_owner(copy)
        if copy is None or not copy.path.is_dir():
            write_out([write_fact(Files(found=False))])
            return 0
        write_out([write_fact(Files(found=True))])
        left_out = send_outputs(copy)
        write_out([write_fact(Sent(left_out))])
        if word == LAST and read_word(DONE_SECONDS) == DONE:
            copy.remove()
    except (GvisorKernelError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def read_word(seconds: float) -> str:
    """Return the next line of stdin.

    :raises OSError: when none comes within ``seconds``, or it is too long
    """
    deadline = time.monotonic() + seconds
    line = b""
    fd = sys.stdin.fileno()
    while not line.endswith(b"\n"):
        rest = max(0.0, deadline - time.monotonic())
        if not select.select([fd], [], [], rest)[0]:
            raise TimeoutError("the host has said nothing")
        data = os.read(fd, 1)  # no timeout: it is ready, or does not block
        if not data or len(line) > MAX_WORD:
            raise ConnectionError("the host has gone")
        line += data
    return line.decode(errors="replace").strip()


def send_outputs(copy: Copy) -> int:
    """Write the archive of the outputs as they are now; return how many are not in it.

    :raises GvisorKernelError, OSError: when they cannot be read to the end
    """
    with open_path(str(copy.outputs)) as outputs:
        restore_access(outputs)
        contents = Contents(folders=[(".", outputs, "outputs")])
        # The host refuses one entry more than it takes.
        write_out(write_chunks(contents.archive(sys.maxsize, 2 * MAX_ENTRIES)))
        return contents.left_out


def end_owner(copy: Copy) -> None:
    """End the sandbox of a helper that has lost its host, or was killed: then there is no more to
    come.

    :raises StateError: when the state directory cannot be read
    """
    owner = copy.owner()
    if copy.has(ENDED):
        return
    if owner is None:
        sweep_orphans("runsc")
        return
    kill_if(owner.pid, lambda _: is_alive(owner), signal.SIGTERM)
    deadline = time.monotonic() + END_SECONDS
    while _runs(copy, owner) and time.monotonic() < deadline:
        time.sleep(0.05)


def _runs(copy: Copy, owner: ProcessId) -> bool:
    return copy.path.is_dir() and not copy.has(ENDED) and is_alive(owner)


def write_out(pieces: Iterator[bytes] | list[bytes]) -> None:
    """Write to the host.

    :raises OSError: when it has gone
    """
    for piece in pieces:
        view = memoryview(piece)
        while view:
            view = view[os.write(sys.stdout.fileno(), view) :]
