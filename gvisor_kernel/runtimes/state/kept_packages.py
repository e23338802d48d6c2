"""The packages and libraries that a saved kernel goes on with, whatever is installed meanwhile.

A kernel maps its libraries again by their paths, and imports more of its packages later. So what it
had is copied after it was saved (``kept_copies``): folders of packages as a whole (site-packages,
dist-packages, a Python's own ``lib/pythonX.Y``), of anything else the programs and libraries that
it has open. What was changed meanwhile is shown to it as it was; new kernels get what is there.

    sandboxes/<id>/kept.json         the copies that its kernel runs with
    sandboxes/<id>/saved/kept.json   those that a saved kernel needs, by the paths of the host
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from gvisor_kernel.config.settings import DEFAULT_RUNTIME, DEFAULTS
from gvisor_kernel.config.validators import is_within
from gvisor_kernel.errors import GvisorKernelError, SnapshotError, StateError
from gvisor_kernel.host.folders import is_in_writable_folder
from gvisor_kernel.host.private_directories import own_state, read_file, replace_file
from gvisor_kernel.runtimes.mounts.written_folders import read_written
from gvisor_kernel.runtimes.state import lifeline, records
from gvisor_kernel.runtimes.state.kept_copies import (
    TREE,
    digest_tree,
    kept_root,
    locked_copies,
    make_copy,
    read_copy,
    remove_copies,
)
from gvisor_kernel.runtimes.state.saved import MAX_NOTE, NOTE
from gvisor_kernel.runtimes.state.sealed import read_note
from gvisor_kernel.runtimes.state.shown_files import Stamps, find_change, stamp
from gvisor_kernel.strict_json import parse_json
from gvisor_kernel.typed_json import read_json, read_value, write_json

log = logging.getLogger(__name__)

# by path: below the state directory, whose parents only this user can change

KEPT, THREAD = "kept.json", "gvisor-kernel-keep"
MAX_KEPT = 1024 * 1024
"""Bytes of kept.json. A kernel with pandas has 250 libraries open, most of them in one folder."""
LOCK_SECONDS = 600.0
"""Seconds that what is kept for another kernel may take, on a busy machine."""
NAMES = ("site-packages", "dist-packages")
PYTHON = re.compile(r"python3\.\d{1,3}t?")
INSTALLED = (".dist-info", ".egg-info")
PAUSE_SECONDS = 2.0
"""Seconds in which a kernel may go on at once, as a branch does: looking at 30,000 files takes a
half of one, and the interpreter's lock."""
MAX_ALONE = 1000
"""Files that are kept one by one: a kernel may open whatever it likes. Usual are 30."""
MAX_NAMED = 4
"""Packages that are named to a person."""
_ends = threading.Event()
"""Set when this process is about to end."""
_waiting: set[int] = set()
"""The processes, this one or those it was forked of, in which a thread is about to look at what was
saved."""
_missing: dict[Path, int] = {}
"""Saved kernels that had no copies when this process has last looked, and when each was saved."""
Packages: TypeAlias = dict[str, dict[str, tuple[int, int]]]
"""What is installed in folders of packages: time of change (ns) and inode of the folders that
installers make, by their names."""
LACKING = "install the version that was there, or restart the kernel to begin anew."


@dataclass(frozen=True)
class Substitutes:
    """Copies that a kernel is shown, by the ``paths`` of the host that they stand for. ``words``:
    the change, for a person, as a sentence without a full stop; empty if that was told before."""

    paths: Mapping[str, str]
    words: str = ""


# -- at a save -------------------------------------------------------------------------------------


def find_packages(files: Iterable[str], sources: Mapping[str, str]) -> Packages:
    """Return the folders of packages of ``files``, which were found in ``sources``. Takes
    milliseconds."""
    own, roots, found = str(kept_root()), sorted(set(sources.values())), set[str]()
    for path in files:
        folder = _find_folder(path, [root for root in roots if is_within(path, root)])
        if folder is not None and not is_within(path, own):
            found.add(folder)
    outermost = (one for one in found if not any(is_within(one, it) for it in found - {one}))
    return {folder: list_installed(folder) for folder in outermost}


def _find_folder(path: str, roots: Iterable[str]) -> str | None:
    parts = path.split("/")
    for index in range(1, len(parts) - 1):
        name, folder = parts[index], "/".join(parts[: index + 1])
        is_python = PYTHON.fullmatch(name) and parts[index - 1] in ("lib", "lib64")
        if (name in NAMES or is_python) and any(is_within(folder, root) for root in roots):
            return folder
    return None


def list_installed(folder: str) -> dict[str, tuple[int, int]]:
    """Return time of change (ns) and inode of the folders that installers make, by their names."""
    found = {}
    for place in (folder, *(f"{folder}/{name}" for name in NAMES)):
        with suppress(OSError), os.scandir(place) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if entry.name.endswith(INSTALLED):
                        status = entry.stat(follow_symlinks=False)
                        found[entry.name] = (status.st_mtime_ns, status.st_ino)
    return found


def begin_to_keep() -> None:
    """Keep soon what saved kernels need for which nobody has done so: those that were saved now,
    and those whose process was killed before it could. In a thread of the lowest priority, which no
    end of this process waits for; the process that it leaves then goes on with it."""
    pid = os.getpid()

    def work() -> None:
        try:
            lifeline.hold(records.this_process(), DEFAULT_RUNTIME)
            try:
                with suppress(OSError):
                    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)  # of this thread
                _ends.wait(PAUSE_SECONDS)
                _waiting.discard(pid)
                _keep_missing()
            finally:
                lifeline.release()
        except (OSError, GvisorKernelError) as error:
            _waiting.discard(pid)
            log.info("nothing is kept for saved kernels: %s", error)

    if pid in _waiting:
        return
    _waiting.add(pid)
    try:
        threading.Thread(target=work, name=THREAD, daemon=True).start()
    except RuntimeError:  # this user's processes, or memory
        _waiting.discard(pid)


def _keep_missing() -> None:
    """Look at all saved kernels of this user, each once in this process.

    :raises OSError, StateError: when the state directory cannot be read
    """
    global _missing
    root, before, found = own_state() / "sandboxes", _missing, dict[Path, int]()
    for depth in ("*/saved", "*/checkpoints/*"):
        for note in root.glob(f"{depth}/{NOTE}"):
            with suppress(FileNotFoundError):
                if not (note.parent / KEPT).exists():
                    found[note.parent] = note.parent.stat().st_mtime_ns
    _missing, since = found, time.monotonic()
    for place, made in found.items():
        if before.get(place) == made:
            continue
        with suppress(FileNotFoundError):  # it has gone on
            folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if os.fstat(folder).st_mtime_ns != made:  # it was saved again, or is kept
                    continue
                path = Path(f"/proc/self/fd/{folder}", NOTE)
                note = parse_json(read_note(path, place.relative_to(root).parts[0])[0], MAX_NOTE)
                files = read_value(note["files"], Stamps)
                packages = read_value(note["packages"], Packages)
                keep(folder, files, packages, note["sources"], since)
            except (OSError, ValueError, LookupError, TypeError, GvisorKernelError) as error:
                log.info("nothing is kept for a saved kernel: %s", error)
            finally:
                os.close(folder)


def wait_until_kept(seconds: float = LOCK_SECONDS) -> None:
    """Wait for the threads of ``begin_to_keep``: they end by themselves, in minutes."""
    _ends.set()
    deadline = time.monotonic() + seconds
    for thread in threading.enumerate():
        if thread.name == THREAD:
            thread.join(max(0.0, deadline - time.monotonic()))


def keep(
    folder: int, files: Stamps, packages: Packages, sources: Mapping[str, str], since: float
) -> None:
    """Keep what a kernel needs that was saved at the time ``since``, by ``time.monotonic``.

    ``folder``: a descriptor of what was saved; its name is that of the kernel's next save, too.
    ``files``: of ``find_shown_files``. Blocks for seconds. Never raises: what could not be kept
    must not be changed until the kernel goes on, which the log says.
    """

    def is_there() -> bool:
        with suppress(OSError):  # NFS has forgotten it
            return os.fstat(folder).st_nlink > 0
        return False

    lacking = ""
    try:
        root = str(kept_root())
        with locked_copies(LOCK_SECONDS):
            if not is_there():  # the kernel has gone on while others had their turn
                return
            written = read_written(DEFAULTS)
            kept = _find_shown(sources)
            alone = [path for path in files if not any(is_within(path, it) for it in packages)]
            for path in (*packages, *[it for it in alone if not is_within(it, root)][:MAX_ALONE]):
                if not is_there():
                    return
                try:
                    if is_in_writable_folder(path, written.has):
                        raise OSError(f"a kernel may write {path}")
                    tree = make_copy(path, since, is_there)
                    if path in packages and list_installed(path) != packages[path]:
                        raise OSError("packages were installed meanwhile")
                    _check_files(path, tree, files)
                    kept[path] = tree
                except OSError as error:
                    lacking = lacking or f"{path} is not kept for saved kernels: {error}"
            replace_file(Path(f"/proc/self/fd/{folder}", KEPT), write_json(kept))
    except (OSError, GvisorKernelError) as error:
        lacking = f"nothing is kept for a saved kernel: {error}"
    if lacking and is_there():  # it may have gone on meanwhile
        log.info("%s", lacking)


def _check_files(path: str, tree: str, files: Stamps) -> None:
    """Check that the programs and libraries below ``path`` are in its copy.

    :raises OSError: when one is not as it was, as if somebody had written into it
    """
    for file, before in files.items():
        copy = Path(tree + file.removeprefix(path))
        if is_within(file, path) and stamp(copy.stat())[:2] != before[:2]:
            raise OSError(f"{file} was changed in place")


# -- at a wake -------------------------------------------------------------------------------------


def find_substitutes(
    place: Path, saved: float, files: Stamps, packages: Packages, sources: Mapping[str, str]
) -> Substitutes:
    """Return what the kernel that was saved as ``place`` goes on with in place of what was changed.

    Blocks for milliseconds, and for a part of a second if something was.

    :raises SnapshotError: when something was changed that was not kept; it is named
    """
    kept, wanted, lines = dict[str, str](), _find_shown(sources), list[str]()
    with suppress(OSError, ValueError):
        kept = read_kept(place)
    for folder, had in packages.items():
        now = list_installed(folder)
        changed = [name for name, one in had.items() if now.get(name) != one]
        if changed and folder in kept:
            wanted[folder] = kept[folder]
            lines += _describe(changed, now)
        elif gone := [name for name in changed if name not in now]:  # not if it was installed again
            raise SnapshotError(
                "Packages of the kernel were changed before they were copied for it:"
                f" {_name(_describe(gone, now))}. It would import parts of two versions.",
                LACKING,
            )
    for path, before in files.items():
        change = find_change({path: before})
        if change is None or any(is_within(path, it) for it in wanted):
            continue
        known = next((it for it in kept if is_within(path, it)), None)
        if known is None:
            raise SnapshotError(
                f"{change} since the kernel was saved, and it would map half of another version.",
                LACKING,
            )
        wanted[known] = kept[known]
        lines.append(path.rpartition("/")[2])
    for path, tree in wanted.items():
        _check(path, tree, files, sources)
    if not lines:
        return Substitutes(wanted)
    date = time.strftime("%-d %b, %H:%M", time.localtime(saved))
    return Substitutes(
        wanted,
        f"this kernel goes on with what was installed on {date}: {_name(lines)}. Restart it for"
        " what is installed now",
    )


def read_kept(place: Path) -> dict[str, str]:
    """Return the copies for the kernel saved as ``place``, by the paths that they stand for.

    :raises OSError, ValueError: when that cannot be read
    """
    return read_json(read_file(place / KEPT, MAX_KEPT), dict[str, str], MAX_KEPT)


def _find_shown(sources: Mapping[str, str]) -> dict[str, str]:
    """Return the copies in ``sources``, by the paths of the host that they stand for.

    :raises SnapshotError: when one is gone
    """
    found, root = {}, kept_root()
    for source in sources.values():
        if is_within(source, str(root)):
            tree = str(root / Path(source).relative_to(root).parts[0] / TREE)
            copy = read_copy(tree)
            if copy is None:
                raise SnapshotError(f"The copy {tree} that the kernel runs with is gone.")
            found[copy.path] = tree
    return found


def _check(path: str, tree: str, files: Stamps, sources: Mapping[str, str]) -> None:
    """:raises SnapshotError: when a copy is not as it was, or cannot be shown at ``path``"""
    copy = read_copy(tree)
    try:
        _check_files(path, tree, files)
        if copy is None or copy.path != path or copy.digest != digest_tree(tree):
            raise OSError(f"a file in {path} was changed in place, or its copy is gone")
        is_mounted = any(is_within(path, source) for source in sources.values())
        if is_mounted and not os.path.lexists(path):
            raise OSError(f"{path} is gone")
    except OSError as error:
        raise SnapshotError(
            f"{error} since the kernel was saved, and it would map half of another version.",
            LACKING,
        ) from error


def _describe(changed: Iterable[str], now: Iterable[str]) -> Iterator[str]:
    """Yield the names and versions of packages that have changed."""
    later = dict(map(_split, now))
    for name, version in sorted(map(_split, changed)):
        instead = later.get(name, "")
        now_is = f" (now {instead})" if instead else " (now removed)"
        yield f"{name} {version}".strip() + (now_is if version != instead else "")


def _name(lines: Iterable[str]) -> str:
    named = list(lines)
    more = f" and {len(named) - MAX_NAMED} more" if len(named) > MAX_NAMED else ""
    return ", ".join(named[:MAX_NAMED]) + more


def _split(name: str) -> tuple[str, str]:
    """Return name and version of a package, whose folder is called NAME-VERSION.dist-info."""
    package, _, version = name.rpartition(".")[0].partition("-")
    return package, version.partition("-")[0]


def note_shown(directory: Path, substitutes: Substitutes) -> None:
    """Note the copies that the sandbox in ``directory`` runs with, so that they stay.

    :raises OSError: when that cannot be written
    """
    replace_file(directory / KEPT, write_json(substitutes.paths))


def sweep_kept() -> None:
    """Remove the copies that no kernel needs. Never raises: another sweep will come."""
    with suppress(OSError, StateError, ValueError):
        if not kept_root().is_dir():
            return
        with locked_copies(0):
            used = set[str]()
            for depth in ("*", "*/*", "*/*/*"):
                for file in (own_state() / "sandboxes").glob(f"{depth}/{KEPT}"):
                    with suppress(FileNotFoundError):
                        used.update(Path(it).parent.name for it in read_kept(file.parent).values())
            remove_copies(used)
