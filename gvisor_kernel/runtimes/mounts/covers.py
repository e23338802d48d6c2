"""Hides files inside folders that are shown: Jupyter's keys and tokens, repositories of packages,
files of an environment with a person's settings and credentials.

A cover is an empty directory or file that is mounted over one of the host, wherever a sandbox is
shown that. This module finds the covers, tells which folders hold keys, and adds the covers to the
mounts; it mounts nothing.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from platformdirs import user_config_path, user_data_path

from gvisor_kernel.config.validators import is_within
from gvisor_kernel.host.homes import own_homes
from gvisor_kernel.host.private_directories import own_cache, own_data, own_state
from gvisor_kernel.releases.release_store import own_store
from gvisor_kernel.spec.layout import SCRATCH, UPLOADS, Bind, Mount

KEPT = ("kernels", "nbconvert", "voila")
"""Folders of Jupyter's data directory that stay visible: programs and templates that a kernel may
need. Beside them are the keys that sign notebooks, tokens of servers, and whatever extensions keep,
such as keys of services."""
SYSTEM_PREFIXES = ("/usr", "/usr/local")
"""Shown in every sandbox for the most part; Jupyter looks here for what is set for all users."""
SETTINGS = (
    # Of package indexes and repositories, of services, and what `python-dotenv` reads.
    *("pip.conf", ".condarc", "condarc", ".npmrc", "etc/npmrc", ".pypirc", ".netrc"),
    *(".git-credentials", ".env", ".aws"),
    # Variables of conda's environment, the scripts that set them, and JupyterLab's settings.
    *("conda-meta/state", "etc/conda", "share/jupyter/lab/settings"),
)
"""Files and folders of a prefix that may have settings or credentials of a person."""
OWN_SETTINGS = (
    *("etc/pip.conf", "etc/uv", "etc/gitconfig", "etc/wgetrc", "etc/aws", "etc/containers"),
    *("lib/R/etc/Renviron.site", "bin/postactivate", "bin/preactivate"),
    *("credentials.json", "secrets.env"),
)
"""The same, but for ``/usr``, where they are the distribution's. Not ``etc/profile.d``: a shell
needs conda's script there for ``conda activate``. Beside all of these each hidden name at a
prefix's top is covered, but for:"""
HARMLESS = (".gitignore", ".lock", ".nonadmin", ".python-version")
"""Files of tools that make environments, and others that have no secret."""
EMPTY_FILE = "empty-file"
"""Name of the file, among the covers, that hides a file."""


@dataclass(frozen=True)
class Cover:
    """A directory or file of the host (real path) that is hidden, and the paths in it that stay
    visible."""

    path: str
    kept: tuple[str, ...] = ()
    settled: bool = False
    """Nobody is known to keep a secret there, as where only installed packages have written. In
    uploads it is shown like everything else."""


_also_hidden: list[str] = []


def hide_also(paths: Iterable[str]) -> None:
    """Hide ``paths`` as well, for the life of this process.

    Called by the helper on a node: what the server keeps may lie on a file system that both share.
    """
    _also_hidden.extend(paths)


def find_jupyter_covers(prefixes: Iterable[str]) -> tuple[Cover, ...]:
    """Return covers for Jupyter's runtime, data and configuration, and for this package's own
    state.

    Those of this user, below ``prefixes``, below this process's prefix, and of the system. None of
    them is inside another one.
    """
    environ, prefixes = os.environ, {*prefixes, sys.prefix, *SYSTEM_PREFIXES}
    data = environ.get("JUPYTER_DATA_DIR") or user_data_path("jupyter")
    places = [
        environ.get("JUPYTER_RUNTIME_DIR") or Path(data, "runtime"),
        environ.get("JUPYTER_CONFIG_DIR") or os.path.expanduser("~/.jupyter"),  # noqa: PTH111
        *(path for path in environ.get("JUPYTER_CONFIG_PATH", "").split(os.pathsep) if path),
        user_config_path("jupyter"),
        *_own_places(),
        *_also_hidden,
    ]
    installed = [os.path.realpath(Path(prefix, "etc", "jupyter")) for prefix in prefixes]
    shared = [Path(prefix, "share", "jupyter") for prefix in prefixes]
    # A data directory that a server has used contains its runtime directory.
    datas = [data, *(path for path in shared if Path(path, "runtime").is_dir())]
    covers = [Cover(os.path.realpath(place)) for place in places]
    covers += [Cover(place, settled=not _has_files(place)) for place in installed]
    for place in dict.fromkeys(map(os.path.realpath, datas)):
        kept = (f"{place}/{name}" for name in KEPT)
        covers.append(Cover(place, tuple(path for path in kept if Path(path).is_dir())))
    others = [path for prefix in prefixes for path in _list(Path(prefix, "envs"))]
    needed = [os.path.realpath(prefix) for prefix in prefixes]
    covers += (
        cover
        for place in (*prefixes, *others)
        for cover in _find_settings(place)
        if not any(is_within(prefix, cover.path) for prefix in needed)
    )
    return _outermost(cover for cover in covers if cover.path != "/")


def _find_settings(prefix: str) -> Iterator[Cover]:
    """Yield covers for the settings in a prefix."""
    own = () if os.path.realpath(prefix) == SYSTEM_PREFIXES[0] else OWN_SETTINGS
    for name in (*SETTINGS, *own):
        path = Path(prefix, name)
        if os.path.exists(path):  # noqa: PTH110 - what this user cannot look at is no error
            settled = path.is_dir() and not any(files for *_, files in os.walk(path))
            yield Cover(os.path.realpath(path), settled=settled)
    if any(is_within(home, prefix) for home in own_homes()):
        return  # nothing of its top is shown
    for place in _list(prefix):
        name = Path(place).name
        if name.startswith(".") and name not in (*SETTINGS, *HARMLESS):
            yield Cover(os.path.realpath(place), settled=True)


def _list(folder: str | Path) -> list[str]:
    """Return the paths in a folder that are no links, whose targets have names of their own; none
    if it cannot be read."""
    with suppress(OSError), os.scandir(folder) as entries:
        return [entry.path for entry in entries if not entry.is_symlink()]
    return []


def _has_files(folder: str) -> bool:
    """Return whether ``folder`` has files of its own: packages only add directories to it."""
    with suppress(OSError), os.scandir(folder) as entries:
        return any(not entry.is_dir(follow_symlinks=False) for entry in entries)
    return False


def find_repositories(projects: Iterable[str], shown: Iterable[str]) -> tuple[Cover, ...]:
    """Return covers for the repositories at ``projects``; every path of ``shown`` stays visible."""
    reals = sorted(set(shown))
    found = []
    for project in map(os.path.realpath, projects):
        kept: list[str] = []
        for path in reals:
            if _is_inside(path, project) and not any(is_within(path, other) for other in kept):
                kept.append(path)
        if kept and project not in reals:
            found.append(Cover(project, tuple(kept)))
    return _outermost(found)


def _outermost(covers: Iterable[Cover]) -> tuple[Cover, ...]:
    found: dict[str, Cover] = {}
    for cover in sorted(covers, key=lambda cover: (cover.path, not cover.kept)):
        if cover.path not in found and not any(is_within(cover.path, path) for path in found):
            found[cover.path] = cover
    return tuple(found.values())


def find_cover(covers: Iterable[Cover], path: str) -> str | None:
    """Return the hidden directory that is ``path`` (real) or contains it, or None."""
    for cover in covers:
        if is_within(path, cover.path) and not any(is_within(path, kept) for kept in cover.kept):
            return cover.path
    return None


def is_private(path: str) -> bool:
    """Return whether ``path`` is, contains or lies in a folder with keys of kernels or servers."""
    places = (*map(os.path.realpath, _own_places()), _runtime_directory())
    return any(is_within(place, path) or is_within(path, place) for place in places)


def _own_places() -> tuple[Path, ...]:
    """Return the folders of this package that no kernel may see."""
    return own_state(), own_cache(), own_data() / "artifacts", own_store()


def _runtime_directory() -> str:
    """Return where Jupyter servers write their tokens, and managers the connection files."""
    data = os.environ.get("JUPYTER_DATA_DIR") or user_data_path("jupyter")
    return os.path.realpath(os.environ.get("JUPYTER_RUNTIME_DIR") or Path(data, "runtime"))


def holds_keys(path: str) -> bool:
    """Return whether ``path`` contains or lies in a folder of Jupyter's or of this package's own.

    A folder in this package's cache is allowed: snapshots are made there, by kernels of their own.
    """
    covers = find_jupyter_covers(())
    cache = os.path.realpath(own_cache())
    return any(is_within(cover.path, path) for cover in covers) or bool(
        find_cover((cover for cover in covers if cover.path != cache), path)
    )


def hides(covers: Iterable[Cover], uploads: str) -> bool:
    """Return whether something inside the uploads folder ``uploads`` (real) is hidden."""
    return any(
        _is_inside(cover.path, uploads) and not cover.settled and Path(cover.path).exists()
        for cover in covers
    )


def identify(covers: Iterable[Cover]) -> frozenset[tuple[int, int]]:
    """Return device and inode of the covers that hide something in uploads.

    For runtimes that copy, where no mount can cover anything.
    """
    found = set()
    for cover in covers:
        with suppress(OSError):
            if not cover.settled:
                status = os.stat(cover.path)  # noqa: PTH116 - text in, numbers out
                found.add((status.st_dev, status.st_ino))
    return frozenset(found)


def add_covers(
    mounts: Sequence[Mount],
    covers: Iterable[Cover],
    empty: str,
    places: Path,
    unseen: Sequence[str] = (),
) -> Iterator[Bind]:
    """Yield the mounts that cover what ``mounts`` show.

    ``empty``: an empty directory of the host. ``places``: the directory with a subdirectory for
    each cover that keeps something visible, and with an empty file (see ``make_mount_points``). All
    are bind mounts: the host knows nothing of a tmpfs inside, and an overlay inside would show what
    is below one. ``unseen``: paths of uploads that are hidden already (``host/stage``).
    """
    for cover in covers:
        if not Path(cover.path).exists():
            continue
        nothing = empty if Path(cover.path).is_dir() else str(places / EMPTY_FILE)
        for mount in mounts:
            if not isinstance(mount, Bind) or not _is_inside(cover.path, mount.source):
                continue
            if mount.target == UPLOADS and (
                cover.settled or any(is_within(cover.path, path) for path in unseen)
            ):
                continue
            target = mount.target + cover.path[len(mount.source) :]
            if any(
                _is_inside(m.target, mount.target) and is_within(target, m.target) for m in mounts
            ):
                continue  # another mount covers it there
            kept = [path for path in cover.kept if os.path.lexists(path)]
            yield _find_place(target, places) if kept else Bind(nothing, target, foreign=True)
            for path in kept:
                place = mount.target + path[len(mount.source) :]
                yield replace(mount, source=path, target=place)


def add_scratch_parents(mounts: Iterable[Mount], places: Path) -> Iterator[Bind]:
    """Yield read-only directories with the mount points below a folder of scratch.

    A kernel may write to scratch. Without these it could rename a folder on the way to its
    interpreter, so that a later kernel of the same sandbox would run another one. ``places``: as in
    ``add_covers``.
    """
    for mount in mounts:
        for scratch in SCRATCH:
            if isinstance(mount, Bind) and _is_inside(mount.target, scratch):
                first, _, more = mount.target[len(scratch) + 1 :].partition("/")
                if more:
                    yield _find_place(f"{scratch}/{first}", places)


def _find_place(target: str, places: Path) -> Bind:
    name = hashlib.sha256(os.fsencode(target)).hexdigest()
    return Bind(str(places / name), target, foreign=True)


def make_mount_points(mounts: Sequence[Mount], places: Path) -> None:
    """Make the directories that ``add_covers`` and ``add_scratch_parents`` named, with the points
    of their mounts.

    :raises OSError: when one could not be made
    """
    binds = [mount for mount in mounts if isinstance(mount, Bind)]
    covers = [bind for bind in binds if Path(bind.source).parent == places]
    for cover in covers:
        place = Path(cover.source)
        if place.name == EMPTY_FILE:
            # by path: below the state directory, whose parents only this user can change
            places.mkdir(mode=0o755, parents=True, exist_ok=True)
            place.touch()
            place.chmod(0o644)
        else:
            place.mkdir(mode=0o755, parents=True, exist_ok=True)
    for cover in covers:
        for kept in binds:
            if _is_inside(kept.target, cover.target):
                place = Path(cover.source, kept.target[len(cover.target) + 1 :])
                if Path(kept.source).is_dir():
                    place.mkdir(mode=0o755, parents=True, exist_ok=True)
                else:
                    place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                    place.touch()


def _is_inside(path: str, folder: str) -> bool:
    return path != folder and is_within(path, folder)
