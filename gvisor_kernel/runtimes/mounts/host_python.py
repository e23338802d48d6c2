"""Finds what the host's Python environment consists of: what image ``host`` has to show of it.

Only reads. Nothing of a home is shown except what the interpreter imports from.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import site
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.config.validators import HOST_IMAGE, is_within
from gvisor_kernel.errors import LaunchError, RootImageError
from gvisor_kernel.host.folders import (
    LinkRefused,
    Writable,
    is_in_writable_folder,
    never_writable,
    resolve_links,
)
from gvisor_kernel.host.homes import find_home
from gvisor_kernel.host.open_files import explain_scarce_files
from gvisor_kernel.images import RootImage, Store
from gvisor_kernel.runtimes.base import LaunchRequest
from gvisor_kernel.runtimes.mounts.covers import (
    Cover,
    find_cover,
    find_jupyter_covers,
    find_repositories,
)
from gvisor_kernel.runtimes.mounts.editable_installs import find_editables
from gvisor_kernel.spec.environment import image_paths
from gvisor_kernel.spec.layout import SCRATCH

log = logging.getLogger(__name__)

PROBE_SECONDS = 10.0
"""Seconds that an interpreter may take to describe itself."""
PREFIX_PARTS = ("bin", "lib", "lib64", "include", "share", "etc", "pyvenv.cfg", "conda-meta")
"""Parts that are shown of a prefix that is a home, or contains one."""


@dataclass(frozen=True)
class PythonTree:
    """An interpreter and the paths that it imports from, by their names on the host.

    - ``roots``: real directories and files to show at their own paths, none inside another.
    - ``links``: symbolic links on the way to them, with their targets.
    - ``aliases``: paths that have to show a real path, as a link on the way lies where the sandbox
      has an empty directory of its own.
    - ``prefixes``: where the interpreter is installed.
    - ``covers``: repositories of editable installs in a root, of which only the packages are shown.

    The last five fields belong to a root image: its digest, its root file system on the host, its
    PATH, its environment, and those of its paths that decide on environment variables.
    """

    python: str
    version: str
    bin_directory: str
    roots: tuple[str, ...]
    links: tuple[tuple[str, str], ...]
    aliases: tuple[tuple[str, str], ...]
    user_base: str | None
    prefixes: tuple[str, ...] = ()
    covers: tuple[Cover, ...] = ()
    image: str | None = None
    tree: str | None = None
    path: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    present: tuple[str, ...] = ()


@dataclass(frozen=True)
class Interpreter:
    """An interpreter's report about itself."""

    version: str
    prefixes: tuple[str, ...]
    site_directories: tuple[str, ...]
    user_site: str | None
    user_base: str | None


_PROBE = """
import json, site, sys, sysconfig
user = site.ENABLE_USER_SITE
print(json.dumps({
    "version": "%d.%d.%d" % sys.version_info[:3],
    "prefixes": [sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix],
    "site_directories": site.getsitepackages() + [sysconfig.get_path(n) for n in
                        ("stdlib", "platstdlib", "purelib", "platlib")],
    "user_site": site.getusersitepackages() if user else None,
    "user_base": site.getuserbase() if user else None,
}))
"""

_probed: dict[tuple[str, int], Interpreter] = {}


def ask_interpreter(python: str, writable: Writable = never_writable) -> Interpreter:
    """Return what ``python`` reports about itself. Blocks for up to PROBE_SECONDS the first time.

    It is asked in this process if it is this process's interpreter, otherwise in a process of its
    own.

    :raises LaunchError: when it does not answer, or lies where a sandbox can write (``writable``)
    """
    _check_interpreter(python, writable)
    if python == sys.executable:
        user = bool(site.ENABLE_USER_SITE)
        paths = [sysconfig.get_path(n) for n in ("stdlib", "platstdlib", "purelib", "platlib")]
        return Interpreter(
            version="{}.{}.{}".format(*sys.version_info),
            prefixes=(sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix),
            site_directories=(*site.getsitepackages(), *paths),
            user_site=site.getusersitepackages() if user else None,
            user_base=site.getuserbase() if user else None,
        )
    try:
        key = (python, Path(python).stat().st_mtime_ns)
        if key not in _probed:
            _probed[key] = _probe(python)
        return _probed[key]
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        scarce = isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
        raise LaunchError(
            f"The interpreter {python} does not answer: {error}.",
            explain_scarce_files()
            if scarce
            else f"check that `{python} -c pass` works; install the kernelspec again with the"
            " interpreter to use.",
        ) from error


def _probe(python: str) -> Interpreter:
    keep = ("HOME", "PATH", "PYTHONHOME", "PYTHONUSERBASE", "LD_LIBRARY_PATH")
    environment = {name: os.environ[name] for name in keep if name in os.environ}
    answer = subprocess.run(
        [python, "-c", _PROBE],
        env=environment,
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PROBE_SECONDS,
        check=True,
    ).stdout
    content = json.loads(answer.splitlines()[-1])
    return Interpreter(
        version=content["version"],
        prefixes=tuple(content["prefixes"]),
        site_directories=tuple(content["site_directories"]),
        user_site=content["user_site"],
        user_base=content["user_base"],
    )


def find_host_python(python: str, writable: Writable = never_writable) -> PythonTree:
    """Return everything that ``python`` needs to run as it does on the host.

    A link of an editable install that lies where a sandbox can write (``writable``) is not
    followed: its target is left out, and a warning is logged.

    :raises LaunchError: when the interpreter does not answer, or needs a path behind such a link
    """
    interpreter = ask_interpreter(python, writable)
    paths: list[str] = ["/usr"]
    # Where /usr is not merged these are directories, and needed as such.
    paths += [p for p in ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32") if _exists(p)]
    for prefix in interpreter.prefixes:
        paths.extend(_show_prefix(prefix))
    paths += [path for path in interpreter.site_directories if _exists(path)]
    site_directories = dict.fromkeys(interpreter.site_directories)
    user_base = None
    if interpreter.user_site is not None and _exists(interpreter.user_site):
        user_base = interpreter.user_base
        paths.append(interpreter.user_site)
        site_directories[interpreter.user_site] = None
    jupyters = find_jupyter_covers(interpreter.prefixes)

    def resolve(path: str) -> str | None:
        try:
            _, real = resolve_links(path, writable)
        except LinkRefused as error:
            log.warning(
                "%s is not mounted: %s is a symbolic link, and %s", path, error.link, error.reason
            )
            return None
        except OSError:
            return None
        private = find_home(real) is not None or find_cover(jupyters, real) is not None
        return None if private else real

    editables = find_editables(site_directories, resolve)
    packages = [path for editable in editables for path in editable.shown]
    paths += [path for path in packages if resolve(path) is not None]
    real_python = os.path.realpath(python)
    if not any(is_within(real_python, os.path.realpath(path)) for path in paths):
        paths.extend(_show_prefix(str(Path(real_python).parent.parent)))
    paths.append(python)
    links: dict[str, str] = {}
    reals: list[str] = []
    spelled: dict[str, str] = {}
    for path in paths:
        try:
            crossed, real = resolve_links(path, writable)
        except LinkRefused as error:
            raise LaunchError(
                f"The kernel's Python needs {path}: {error.link} on the way is a symbolic link (to"
                f" {error.target}), and {error.reason}.",
                "move the Python environment to a folder where no kernel writes.",
            ) from error
        except OSError:
            continue  # it was removed, or is a broken link
        links.update(crossed)
        reals.append(real)
        if any(is_within(link, scratch) for link in crossed for scratch in SCRATCH):
            spelled[path] = real
    roots = outermost(reals)
    shown = (*roots, *SCRATCH)
    visible = {
        link: target
        for link, target in links.items()
        if not any(is_within(link, directory) for directory in shown)
    }
    hidden = [path for path in spelled if not any(is_within(path, root) for root in roots)]
    return PythonTree(
        python=python,
        version=interpreter.version,
        bin_directory=str(Path(python).parent),
        roots=roots,
        links=tuple(sorted(visible.items())),
        aliases=tuple((path, spelled[path]) for path in outermost(hidden)),
        user_base=user_base,
        prefixes=tuple(dict.fromkeys(interpreter.prefixes)),
        covers=find_repositories(
            (editable.project for editable in editables if editable.project is not None),
            # Also what lies in /usr, which is shown as a whole.
            [*reals, *map(os.path.realpath, (*interpreter.prefixes, *site_directories))],
        ),
    )


def _check_interpreter(python: str, writable: Writable) -> None:
    """Refuse an interpreter that a kernel may have made: it is run outside of any sandbox.

    :raises LaunchError: when ``python`` lies where a sandbox can write
    """
    if python == sys.executable:
        return
    with suppress(OSError):
        if is_in_writable_folder(python, writable):
            raise LaunchError(
                f"The interpreter {python} lies where a kernel can write, or behind a symbolic"
                " link there, and this server would have to run it.",
                "move the Python environment to a folder where no kernel writes.",
            )


def _exists(path: str) -> bool:
    return os.path.lexists(path)


def _show_prefix(prefix: str) -> Iterator[str]:
    if is_within(prefix, "/usr"):
        return
    if find_home(os.path.realpath(prefix)) is None:
        yield prefix
        return
    for part in PREFIX_PARTS:
        path = os.path.join(prefix, part)  # noqa: PTH118 - text, as the interpreter spells it
        if prefix != "/" and _exists(path):
            yield path


def outermost(paths: Iterable[str]) -> tuple[str, ...]:
    """Return those of ``paths`` that exist and are not inside another one of them."""
    kept: list[str] = []
    for path in sorted(set(paths), key=lambda path: path.split("/")):
        if _exists(path) and not any(is_within(path, root) for root in kept):
            kept.append(path)
    return tuple(kept)


def find_python_tree(spec: SandboxSpec, request: LaunchRequest, writable: Writable) -> PythonTree:
    """Return the Python of ``spec``'s image. ``writable``: see ``find_host_python``.

    :raises LaunchError: when the image or its Python cannot be used
    """
    if spec.image == HOST_IMAGE:
        return find_host_python(request.python, writable)
    try:
        return _make_python_tree(Store.open().find(spec.image))
    except RootImageError as error:
        raise LaunchError(error.fact, error.hint) from error


def _make_python_tree(image: RootImage) -> PythonTree:
    """Return the Python of a root image.

    :raises LaunchError: when the image has no Python that can run a sandbox
    """
    python = image.require_python()
    return PythonTree(
        python=python,
        version=image.inside.version if image.inside is not None else "",
        bin_directory=str(Path(python).parent),
        roots=(),
        links=(),
        aliases=(),
        user_base=None,
        image=image.digest,
        tree=str(image.tree),
        path=image.path,
        environment=tuple(sorted(image.environment.items())),
        present=tuple(sorted(image.find_existing(image_paths()))),
    )


def check_image_exists(python_tree: PythonTree) -> None:
    """Check that the root image was not removed since it was looked at.

    :raises LaunchError: when it was
    """
    if python_tree.tree is not None and not Path(python_tree.tree).is_dir():
        raise LaunchError(
            "The image was removed while a kernel was being started in it.",
            "import it again, or choose another one: gvisor-kernel image list",
        )
