"""Finds the files of an editable install ("pip install -e") that a sandbox is shown: those that are
imported.

Reads ``.pth`` files and import hooks in folders of packages, and the sources that they name, and
runs none of them. A repository contains more than packages: its history with the tokens of its
remotes, ``.env``, outputs of kernels. So it is never shown as a whole.
"""

from __future__ import annotations

import ast
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gvisor_kernel.config.validators import is_within

PACKAGE_FOLDERS = ("site-packages", "dist-packages")
"""A folder of this name contains only packages: it is another environment's, and shown whole."""
PROJECT_MARKS = (".git", "pyproject.toml", "setup.py", "setup.cfg")
PROJECT_DEPTH = 4
"""Number of folders above its sources in which a project is looked for."""
NOT_MODULES = ("setup.py", "conftest.py", "noxfile.py")
STRICT = "__editable__."
OUTPUTS = "outputs"
"""Never shown as a package: kernels write there, an ``__init__.py`` for instance."""
MODULES = (".py", ".so")
METADATA = (".egg-info", ".dist-info")

MAX_ENTRIES = 10_000
"""Entries that are looked at in one folder of sources."""
MAX_SHOWN = 100
"""Entries of one editable install that are shown: each is a mount of its own."""
MAX_BYTES = 4 * 1024 * 1024
"""Bytes of a file that are read."""


@dataclass(frozen=True)
class Editable:
    """The additions of one ``.pth`` file or import hook (``by``) to the import path. ``shown``:
    absolute paths, as spelled there.

    ``folder``: the folder that it puts on the import path, None for a hook. ``project``: where the
    repository begins, None if that is unknown. ``left_out``: how many entries exceed MAX_SHOWN.
    """

    by: str
    folder: str | None
    shown: tuple[str, ...]
    project: str | None = None
    left_out: int = 0


Resolve = Callable[[str], str | None]
"""Returns the real path of a path, or None where the path must not be followed."""


def find_editables(
    site_directories: Iterable[str], resolve: Resolve = os.path.realpath
) -> list[Editable]:
    """Return what lies outside of ``site_directories`` and is imported by way of them."""
    found: list[Editable] = []
    spelled: dict[str, str] = {}
    for directory in site_directories:
        spelled.setdefault(os.path.realpath(directory), directory)
    for directory in spelled.values():
        try:
            with os.scandir(directory) as entries:
                links = {entry.name: entry.is_symlink() for entry in entries}
        except OSError:
            continue
        installed = None
        for name in sorted(links):  # hundreds at every start, so only names are looked at first
            path = f"{directory}/{name}"
            if name.endswith(".pth"):
                for folder in read_pth(path):
                    if installed is None:
                        installed = list(_find_installed(directory, links))
                    found.append(_show_folder(path, folder, installed, resolve))
            elif name.endswith(".py") and "editable" in name:
                found.append(_show_hook(path))
            elif links[name] and name.isidentifier():  # as `flit install --symlink` makes it
                real = resolve(path)
                found.append(_show_mapped(path, [] if real is None else [real]))
    return found


def read_pth(path: str) -> Iterator[str]:
    """Yield each directory that a ``.pth`` file adds to the import path, once."""
    lines = (line.strip() for line in _read(path).splitlines())
    names = (line for line in lines if line and not line.startswith(("#", "import ", "import\t")))
    here = os.path.dirname(path)  # noqa: PTH120 - text
    for directory in dict.fromkeys(os.path.normpath(os.path.join(here, name)) for name in names):  # noqa: PTH118
        if directory != here and Path(directory).is_dir():
            yield directory


# -- a folder on the import path ------------------------------------------------------------------


@dataclass(frozen=True)
class _Installed:
    """A distribution whose metadata says that it is editable, and the names that it installs."""

    name: str
    files: str
    top_level: tuple[str, ...]


def _find_installed(directory: str, names: Iterable[str]) -> Iterator[_Installed]:
    for name in names:
        if not name.endswith(".dist-info"):
            continue
        info = f"{directory}/{name}"
        if '"editable"' in _read(f"{info}/direct_url.json"):
            top_level = tuple(_read(f"{info}/top_level.txt").split())
            yield _Installed(name.partition("-")[0], _read(f"{info}/RECORD"), top_level)


def _show_folder(
    by: str, folder: str, installed: Iterable[_Installed], resolve: Resolve
) -> Editable:
    if os.path.basename(folder) in PACKAGE_FOLDERS:  # noqa: PTH119 - text
        return Editable(by, folder, (folder,))
    project = find_project(folder)
    entries = _list(folder)
    named: set[str] = set()
    for distribution in installed:
        if os.path.basename(by) + "," in distribution.files:  # noqa: PTH119 - text
            named.update(distribution.top_level or _guess_packages(folder, distribution.name))
    named.update(_named_by_project(folder, project))
    for entry in entries:
        if entry.endswith(METADATA):
            named.update(_read(f"{folder}/{entry}/top_level.txt").split())
    shown = {entry for name in named for entry in _entries_of(folder, name, entries)}
    if folder != project or not shown:
        # A folder with sources only, or a repository without metadata that names its packages.
        shown.update(entry for entry in entries if _is_imported(folder, entry))
    shown.update(entry for entry in entries if entry.endswith(METADATA))
    paths = [f"{folder}/{entry}" for entry in shown]
    if os.path.basename(folder).startswith(STRICT):  # noqa: PTH119 - text
        reals = filter(None, map(resolve, _find_links(folder)))
        paths += [path for real in reals for path in _find_mapped(real)]
    return _limit(Editable(by, folder, tuple(paths), project))


def _find_links(folder: str) -> Iterator[str]:
    """Yield the symbolic links in a folder that setuptools has made in its mode ``strict``."""
    seen = 0
    for place, _, names in os.walk(folder):
        for name in names:
            seen += 1
            if seen > MAX_ENTRIES:
                return
            path = f"{place}/{name}"
            if Path(path).is_symlink():
                yield path


def _entries_of(folder: str, name: str, entries: Iterable[str]) -> Iterator[str]:
    """Yield the entries of ``folder`` that module ``name`` may be (namespace packages: a path)."""
    if not re.fullmatch(r"\w+(/\w+)*", name):
        return
    if Path(folder, name).is_dir():
        yield name
    for entry in entries:
        if entry.startswith(f"{name}.") and entry.endswith(MODULES):
            yield entry


def _is_imported(folder: str, entry: str) -> bool:
    if entry.endswith(MODULES):
        return entry not in NOT_MODULES and entry.partition(".")[0].isidentifier()
    return entry.isidentifier() and entry != OUTPUTS and _is_package(f"{folder}/{entry}")


def _guess_packages(folder: str, name: str) -> Iterator[str]:
    """Guess by a distribution's name: ``google_cloud_storage`` may be ``google/cloud/storage``."""
    parts = re.split(r"[-_.]+", name.lower())
    for count in range(len(parts)):
        guess = "/".join((*parts[:count], "_".join(parts[count:])))
        if _is_package(f"{folder}/{guess}") or Path(f"{folder}/{guess}.py").is_file():
            yield guess
            return


def _named_by_project(folder: str, project: str | None) -> Iterator[str]:
    """Yield the packages in ``folder`` that pyproject.toml names, for any build backend."""
    if project is None:
        return
    tools = _read_tools(f"{project}/pyproject.toml")
    place = "" if folder == project else folder[len(project) + 1 :] + "/"
    for where in (
        "hatch.build.packages",
        "hatch.build.targets.wheel.packages",
        "hatch.build.targets.wheel.only-include",
        "poetry.packages",
        "flit.module.name",
        "maturin.module-name",
        "uv.build-backend.module-name",
        "pdm.build.includes",
        "setuptools.packages",
        "setuptools.py-modules",
    ):
        value = tools
        for key in where.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        for item in value if isinstance(value, list) else [value]:
            text = item.get("include") if isinstance(item, dict) else item
            if isinstance(text, str):
                yield re.split(r"[/.]", text.removeprefix("./").removeprefix(place))[0]


_tools: dict[tuple[str, int, int], Any] = {}
"""Tables that were read, by path, modification time and size: reading one takes a millisecond."""


def _read_tools(path: str) -> Any:
    try:
        status = os.stat(path)  # noqa: PTH116 - text in, numbers out
        key = (path, status.st_mtime_ns, status.st_size)
        if key not in _tools:
            _tools[key] = tomllib.loads(_read(path)).get("tool")
        return _tools[key]
    except (OSError, ValueError, RecursionError):
        return None


# -- an import hook -------------------------------------------------------------------------------


def _show_hook(path: str) -> Editable:
    """Read the import hooks of setuptools, editables (hatchling, pdm) and scikit-build-core.

    Each has the paths of what it imports as constants in its code. The hook of meson-python has
    none: it gets them from a build, which it runs first.
    """
    constants = []
    with suppress(ValueError, SyntaxError, RecursionError):
        for node in ast.walk(ast.parse(_read(path))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                constants.append(node.value)
    paths = (text for text in dict.fromkeys(constants) if text.startswith("/"))
    return _show_mapped(path, paths)


def _show_mapped(by: str, paths: Iterable[str]) -> Editable:
    shown: dict[str, None] = {}
    project = None
    for path in paths:
        for entry in _find_mapped(path):
            shown[entry] = None
            project = project or find_project(entry)
    return _limit(Editable(by, None, tuple(shown), project))


def _find_mapped(path: str) -> Iterator[str]:
    """Yield what an import hook means by ``path``.

    It is a package's folder or file, or a module without its suffix. A package is shown whole, from
    its outermost folder, unless that is a repository as well.
    """
    if Path(path).is_dir():
        if _is_project(path):
            if _is_package(path):
                yield from (f"{path}/{e}" for e in _list(path) if _is_imported(path, e))
        elif _is_package(path) or any(e.endswith(MODULES) for e in _list(path)):
            yield _find_outermost_package(path)
    elif path.endswith(MODULES):
        if Path(path).is_file():
            folder = str(Path(path).parent)
            yield (
                _find_outermost_package(folder)
                if _is_package(folder) and not _is_project(folder)
                else path
            )
    else:
        folder, _, name = path.rpartition("/")
        yield from (f"{folder}/{e}" for e in _list(folder) if re.match(rf"{re.escape(name)}\.", e))


def _find_outermost_package(folder: str) -> str:
    parent = str(Path(folder).parent)
    while _is_package(parent) and not _is_project(parent):
        folder, parent = parent, str(Path(parent).parent)
    return folder


# -- what is on the disk --------------------------------------------------------------------------


def find_project(path: str) -> str | None:
    """Return the folder at or above ``path`` where its repository begins, or None."""
    folder = Path(path)
    for _ in range(PROJECT_DEPTH):
        if str(folder) == "/":
            break
        if _is_project(str(folder)):
            return str(folder)
        folder = folder.parent
    return None


def _is_project(folder: str) -> bool:
    return any(os.path.lexists(f"{folder}/{mark}") for mark in PROJECT_MARKS)


def _is_package(folder: str) -> bool:
    return Path(folder, "__init__.py").is_file() or any(
        name.startswith("__init__.") and name.endswith(MODULES) for name in _list(folder)
    )


def _list(folder: str) -> list[str]:
    names: list[str] = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if len(names) >= MAX_ENTRIES:
                break
            if not entry.name.startswith("."):
                names.append(entry.name)
    return sorted(names)


def _read(path: str) -> str:
    """Read a text file; empty if that fails.

    Does not wait: a kernel that may write to the repository could put a pipe there.
    """
    try:
        # by path: only read: paths in it are opened safely
        with open(path, "rb", opener=_open_at_once) as file:
            return (file.read(MAX_BYTES) or b"").decode(errors="replace")
    except OSError:
        return ""


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # by path: only read, likewise


def _limit(editable: Editable) -> Editable:
    """Drop entries that are inside another one, and those after MAX_SHOWN; folders come first."""
    entries = sorted(editable.shown, key=lambda path: (not Path(path).is_dir(), path))
    kept: list[str] = []
    for path in entries:
        if not any(is_within(path, other) for other in kept):
            kept.append(path)
    return Editable(
        editable.by,
        editable.folder,
        tuple(kept[:MAX_SHOWN]),
        editable.project,
        max(0, len(kept) - MAX_SHOWN),
    )
