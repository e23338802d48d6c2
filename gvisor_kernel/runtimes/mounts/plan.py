"""Puts the mounts of a sandbox together: its layout, scratch, the host's Python or a root image.

Reads the host and makes mount points for covers; mounts nothing. The user's folders are opened in
``folders`` and ``outputs``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import gvisor_kernel
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.config.validators import is_within
from gvisor_kernel.environments.environment import Base, Environment, Store
from gvisor_kernel.errors import LaunchError, PackagesError, SettingError
from gvisor_kernel.host import log_files
from gvisor_kernel.host.folders import Identity, Opened
from gvisor_kernel.runtimes.mounts.covers import (
    Cover,
    add_covers,
    add_scratch_parents,
    find_cover,
    find_jupyter_covers,
    make_mount_points,
)
from gvisor_kernel.runtimes.mounts.host_python import PythonTree
from gvisor_kernel.runtimes.mounts.rootfs import find_etc_binds, make_readable
from gvisor_kernel.spec import layout
from gvisor_kernel.spec.layout import Bind, Mount, Tmpfs


def find_base(python_tree: PythonTree) -> Base:
    """Return what packages for a sandbox of ``python_tree`` lie on.

    A Python of the host is told by its ``sys.prefix``, which has its packages, not by its name:
    ``bin/python`` and ``bin/python3`` are one. The programs of all virtual environments, without
    their links, may be one, too.
    """
    image = python_tree.image
    if image is None:
        image = f"host:{os.path.realpath(python_tree.prefixes[0])}"
    return Base(image, ".".join(python_tree.version.split(".")[:2]))


def open_packages(spec: SandboxSpec, base: Base) -> Environment | None:
    """Return the environment of the setting ``packages``; None without that setting.

    :raises LaunchError: when it is not in the store, or was made for another Python or image
    """
    if spec.packages is None:
        return None
    try:
        store = Store.open()
    except PackagesError as error:
        raise LaunchError(error.fact, error.hint) from error
    found = store.find(spec.packages.environment, spec.packages.requirements)
    found.check(base)
    return found


GUEST_PARTS = ("__init__.py", "strict_json.py", "link", "guest")
SYSTEM_ROOTS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
OWN_PLACES = (
    layout.WORKSPACE,
    "/mnt/user-data",
    "/mnt/skills",
    layout.TRANSCRIPTS,
    layout.RUN,
    layout.GUEST,
)
"""Paths inside that belong to the sandbox: the host's Python cannot be shown there."""


@dataclass(frozen=True)
class Outputs:
    """The folder that a kernel may write. ``folder`` is None where outputs are in the sandbox's
    memory.

    ``parent``: the folder that it is in. ``made``: it did not exist before. ``lent_by``: the uid
    and gid of its owner, where the sandbox has to own it meanwhile. ``place``: the path at which
    it will be, and the folder that this is in, while it is aside (``outputs.place_outputs``).
    """

    folder: Opened | None
    parent: Identity | None = None
    made: bool = False
    lent_by: tuple[int, int] | None = None
    place: tuple[str, Identity] | None = None

    @property
    def path(self) -> str | None:
        """The folder's path on the host; None where ``folder`` is None."""
        return None if self.folder is None else self.folder.path


@dataclass(frozen=True)
class Places:
    """The paths of one sandbox's files, below its state directory."""

    directory: Path

    @property
    def info(self) -> Path:
        """The file that the kernel sees as /container_info.json."""
        return self.directory / "container_info.json"

    @property
    def empty(self) -> Path:
        """An empty folder, which covers folders that must not be seen."""
        return self.directory / "empty"

    @property
    def covers(self) -> Path:
        """Files and folders that are mounted over what must not be seen."""
        return self.directory / "covers"

    @property
    def transcripts(self) -> Path:
        """The folder of the transcript, which the kernel sees read-only."""
        return self.directory / "transcripts"

    @property
    def rootfs(self) -> Path:
        """The sandbox's root directory, on which everything is mounted."""
        return self.directory / "rootfs"

    @property
    def bundle(self) -> Path:
        """The OCI bundle, which contains ``config.json``."""
        return self.directory / "bundle"

    @property
    def runsc(self) -> Path:
        """runsc's own state, and what it writes."""
        return self.directory / "runsc"  # no runtime: the folder that a process names

    @property
    def pid_file(self) -> Path:
        """The file to which runsc writes the pid of the sentry."""
        return self.runsc / "sentry.pid"

    @property
    def meminfo(self) -> Path:
        """The file that is mounted on /proc/meminfo for an ordinary user's runsc."""
        return self.directory / "meminfo"

    @property
    def panic_log(self) -> Path:
        """The file to which gVisor writes why it failed."""
        return self.runsc / "panic.log"

    @property
    def log(self) -> Path:
        """The bridge's log of events."""
        return self.directory / log_files.EVENTS

    @property
    def stderr_log(self) -> Path:
        """Return the file to which runsc and the guest write their stderr."""
        return self.directory / log_files.STDERR


def plan_mounts(
    spec: SandboxSpec,
    python_tree: PythonTree,
    places: Places,
    shown: Mapping[str, str],
    outputs: str | None,
    *,
    lent: bool = False,
    hidden: Sequence[str] = (),
) -> tuple[Mount, ...]:
    """Return every mount of a sandbox, in order.

    ``shown``: real paths of uploads, skills and extra mounts, by target; a missing one is empty.
    ``outputs``: the real path of the folder, None for outputs in memory. ``lent``: the sandbox owns
    it. ``hidden``: paths in the uploads that nobody sees, so that nothing is mounted there.

    :raises LaunchError: when the Python environment needs a path that belongs to the sandbox, or
        the packages of the setting ``packages`` do not fit
    :raises SettingError: when an extra mount cannot be used
    :raises OSError: when the mount points of covers cannot be made
    """
    empty = os.path.realpath(places.empty)
    sources = {
        layout.CONTAINER_INFO: str(places.info),
        layout.TRANSCRIPTS: str(places.transcripts) if spec.transcripts else empty,
        **shown,
    }
    own = {layout.CONTAINER_INFO, *([layout.OUTPUTS] if lent else [])}
    if outputs is not None:
        sources[layout.OUTPUTS] = outputs
    mounts: list[Mount] = [
        Tmpfs(target, spec.disk_limit)
        if target == layout.OUTPUTS and outputs is None
        else Bind(sources.get(target, empty), target, place.read_only, foreign=target not in own)
        for target, place in layout.LAYOUT.items()
    ]
    mounts += layout.scratch_mounts(spec)
    packages = open_packages(spec, find_base(python_tree))
    if packages is not None:
        mounts.append(Bind(str(packages.tree), layout.ENVIRONMENT, foreign=True))
    if python_tree.tree is None:
        mounts += find_etc_binds()
    mounts += [_show(root, root) for root in python_tree.roots]
    mounts += [_show(real, path) for path, real in python_tree.aliases]
    mounts += list(add_scratch_parents(mounts, places.covers))
    package = Path(gvisor_kernel.__file__).parent
    mounts += [
        Bind(str(package / part), f"{layout.GUEST}/gvisor_kernel/{part}", foreign=True)
        for part in GUEST_PARTS
    ]
    jupyters = find_jupyter_covers(python_tree.prefixes)
    unseen = [f"{shown[layout.UPLOADS].rstrip('/')}/{path}" for path in hidden]
    for extra in layout.extra_binds(spec):
        real = replace(extra, source=shown.get(extra.target, extra.source))
        _check_extra(real, python_tree, jupyters)
        mounts.append(real)
    for covers in (python_tree.covers, jupyters):
        mounts += list(add_covers(mounts, covers, empty, places.covers, unseen))
    if places.directory.is_dir():
        make_mount_points(mounts, places.covers)
        make_readable(places.covers)
    return layout.order_mounts(mounts)


def _show(root: str, path: str) -> Bind:
    for place in OWN_PLACES:
        if is_within(path, place):
            raise LaunchError(
                f"The kernel's Python needs {path}, but {place} belongs to the sandbox.",
                "move the Python environment, and editable installs, to another folder.",
            )
    # System files are shown with the rights of everybody, a user's files with the user's rights.
    return Bind(root, path, foreign=not any(is_within(root, system) for system in SYSTEM_ROOTS))


def _check_extra(extra: Bind, python_tree: PythonTree, jupyters: Sequence[Cover]) -> None:
    check_source(extra.source, jupyters)
    links = (link for link, _ in python_tree.links)
    aliases = (path for path, _ in python_tree.aliases)
    own = () if python_tree.tree is None else (python_tree.python,)
    for path in (*python_tree.roots, *links, *aliases, *own):
        if is_within(extra.target, path) or is_within(path, extra.target):
            raise SettingError(
                "mounts", extra.target, f"a list without a target at {path}, which Python needs"
            )


def check_source(source: str, jupyters: Sequence[Cover]) -> None:
    """Check that the source of an extra mount is none of Jupyter's own folders.

    :raises SettingError: when it is
    """
    cover = find_cover(jupyters, source)
    if cover is not None:
        raise SettingError(
            "mounts",
            source,
            f"a list without a source in {cover}, where Jupyter keeps its keys and tokens",
        )
