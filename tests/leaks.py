"""Find what a test run left behind: processes, cgroups, mounts, files. Removes nothing.

Other runs of this project may run at the same time. So a process, mount or file counts only if the
folder of this run's world is in its name, argv or environment. A cgroup cannot contain that folder:
it counts if it is new, stays empty, and belongs to no sandbox of another run.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .patience import scale_seconds
from .world import PROJECT, World

GRACE_SECONDS = scale_seconds(10)
"""Seconds after the end of an owner within which everything must be gone."""

SEARCH_SECONDS = 0.5
"""Seconds after which an empty cgroup is looked for in other runs; until then their sandboxes that
start or end have usually ended or started, and the search takes long."""

CGROUP = "cgroup "
DEEPEST = 8
"""Maximum depth of sandbox directories below another run's world."""

Things = frozenset[str]

OURS = re.compile(r"gvisor[-_]kernel")
SANDBOX = re.compile(r"runsc|gvisor_kernel|ipykernel|unshare")
NOT_OURS = re.compile(r"pytest-of-|ipykernel_|jupyter_cookie_secret$|\.?org\.chromium")
"""Files of other programs, for example the cells that an unsandboxed ipykernel debugged."""
HARMLESS = re.compile(r"multiprocessing\.(resource_tracker|forkserver)")


def processes(world: World, only: re.Pattern[str] = re.compile("")) -> Things:
    """Return processes of this run whose argv matches ``only``, and zombie children."""
    mark = os.fsencode(world.base)
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        if pid == os.getpid():
            continue
        argv = _read(folder / "cmdline")
        shown = argv.replace(b"\0", b" ").decode(errors="replace").strip()
        if not argv:  # a zombie or a kernel thread
            stat = _read(folder / "stat").decode(errors="replace")
            name, _, rest = stat.rpartition(")")
            if rest.split()[:2] == ["Z", str(os.getpid())]:
                found.add(f"zombie {name})")
        elif (
            (mark in argv or mark in _read(folder / "environ"))
            # The clone itself may be called gvisor_kernel.
            and only.search(shown.replace(str(PROJECT), ""))
            and not HARMLESS.search(shown)
        ):
            found.add(f"process {pid} {shown[:200]}")
    return frozenset(found)


def cgroups(world: World) -> Things:
    return frozenset(
        f"{CGROUP}{folder}"
        for folder in _cgroup_folders(Path("/sys/fs/cgroup"))
        if _is_ours(folder)
    )


def mounts(world: World) -> Things:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return frozenset(f"mount {line}" for line in lines if str(world.base) in line)


def files(world: World) -> Things:
    """Return directories of sandboxes, sockets and connection files."""
    found = {path for folder in (world.runtime, world.run) for path in folder.iterdir()}
    found |= set(world.temporary.iterdir())
    found |= set(world.state.glob("gvisor-kernel/sandboxes/*"))
    return frozenset(f"file {path}" for path in found if not NOT_OURS.match(path.name))


def find_things(world: World, only: re.Pattern[str] = re.compile("")) -> Things:
    return processes(world, only) | cgroups(world) | mounts(world) | files(world)


def find_sandboxes(world: World) -> Things:
    """Return what is of sandboxes: a server may go on, and its files say how to reach it."""
    found = find_things(world, SANDBOX)
    return frozenset(it for it in found if not it.startswith(f"file {world.runtime}/jpserver-"))


def find_leftovers(before: Things, look: Callable[[], Things]) -> Things:
    """Return what ``look`` finds in addition to ``before``, after at most ``GRACE_SECONDS``."""
    now = time.monotonic()
    search, deadline = now + SEARCH_SECONDS, now + GRACE_SECONDS
    while (left := _but_busy_cgroups(look() - before)) and (now := time.monotonic()) < deadline:
        if now > search and not (left := _but_what_others_have(left)):
            return left
        time.sleep(0.05)  # processes that are not our children end without an event
    return _but_what_others_have(left)


def _but_what_others_have(things: Things) -> Things:
    """Leave out cgroups of other runs. A sandbox of theirs may end, with its state directory, while
    that is looked for: then its cgroup is gone as well."""
    return _but_busy_cgroups(_but_cgroups_of_other_runs(things))


def _but_busy_cgroups(things: Things) -> Things:
    """Leave out cgroups that are gone or have a live process: processes() finds this run's."""
    return frozenset(
        thing for thing in things if not thing.startswith(CGROUP) or _is_empty(_folder_of(thing))
    )


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(
        _read(path / "cgroup.procs").strip() for path in (folder, *_cgroup_folders(folder))
    )


def _but_cgroups_of_other_runs(things: Things) -> Things:
    wanted = {_folder_of(thing).name for thing in things if thing.startswith(CGROUP)}
    others = _sandboxes_of_other_runs(wanted) if wanted else set()
    return frozenset(
        thing
        for thing in things
        if not thing.startswith(CGROUP) or _folder_of(thing).name not in others
    )


def _folder_of(thing: str) -> Path:
    return Path(thing.removeprefix(CGROUP))


def _sandboxes_of_other_runs(wanted: set[str]) -> set[str]:
    """Return those of the identities ``wanted`` that are sandboxes of other runs.

    Their state directories may be anywhere in their worlds, which are large.
    """
    worlds = (path for path in Path("/tmp").glob("gk*-*") if str(path) not in os.environ["HOME"])
    folders = [(world, 0) for world in worlds]
    found: set[str] = set()
    while folders and found != wanted:
        folder, depth = folders.pop()
        try:
            inside = [
                Path(entry) for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)
            ]
        except OSError:
            continue
        if folder.name == "sandboxes":
            found |= wanted.intersection(path.name for path in inside)
        if depth < DEEPEST:  # kernels of such a run may make endlessly nested folders
            folders += [(path, depth + 1) for path in inside]
    return found


def _is_ours(folder: Path) -> bool:
    return bool(OURS.search(str(folder)))


def _cgroup_folders(root: Path) -> Iterator[Path]:
    for path, folders, _ in os.walk(root, onerror=lambda _: None):
        for name in folders:
            yield Path(path, name)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # gone, or not this user's
        return b""
