"""The mounts of a sandbox, put together: its layout, its scratch, the host's Python or an image.

Looks at the host, and makes places for covers; mounts nothing. The folders of a person are
``shown``'s affair.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import gvisor_kernel
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import LaunchError, SettingError
from gvisor_kernel.host import log_files
from gvisor_kernel.host.folders import Identity, Opened
from gvisor_kernel.runtimes.mounts.covers import (
    Cover,
    find_cover,
    find_jupyters,
    make_places,
    put_covers,
    put_ways,
)
from gvisor_kernel.runtimes.mounts.host_python import World
from gvisor_kernel.runtimes.runsc.rootfs import find_etc_binds, make_readable
from gvisor_kernel.spec import layout
from gvisor_kernel.spec.layout import Bind, Mount, Tmpfs, is_within

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


@dataclass(frozen=True)
class Outputs:
    """The folder that a kernel may write; None: one in the sandbox's memory.

    ``parent``: the folder that it is in. ``made``: it was not there before. ``lent_by``: its owner,
    where the sandbox has to own it meanwhile.
    """

    folder: Opened | None
    parent: Identity | None = None
    made: bool = False
    lent_by: tuple[int, int] | None = None

    @property
    def path(self) -> str | None:
        return None if self.folder is None else self.folder.path


@dataclass(frozen=True)
class Places:
    """Files and directories of one sandbox, below its state directory."""

    directory: Path

    @property
    def info(self) -> Path:
        return self.directory / "container_info.json"

    @property
    def empty(self) -> Path:
        return self.directory / "empty"

    @property
    def covers(self) -> Path:
        return self.directory / "covers"

    @property
    def transcripts(self) -> Path:
        return self.directory / "transcripts"

    @property
    def rootfs(self) -> Path:
        return self.directory / "rootfs"

    @property
    def bundle(self) -> Path:
        return self.directory / "bundle"

    @property
    def runsc(self) -> Path:
        return self.directory / "runsc"

    @property
    def pid_file(self) -> Path:
        return self.runsc / "sentry.pid"

    @property
    def meminfo(self) -> Path:
        return self.directory / "meminfo"

    @property
    def panic_log(self) -> Path:
        return self.runsc / "panic.log"

    @property
    def log(self) -> Path:
        return self.directory / log_files.EVENTS

    @property
    def stderr_log(self) -> Path:
        return self.directory / log_files.STDERR


def plan_mounts(
    spec: SandboxSpec,
    world: World,
    places: Places,
    shown: Mapping[str, str],
    outputs: str | None,
    *,
    lent: bool = False,
) -> tuple[Mount, ...]:
    """Every mount of a sandbox, in order. Raises LaunchError, SettingError.

    ``shown``: real paths of uploads, skills and the setting's mounts, by where they are seen; what
    is missing is empty. ``outputs``: None for one in memory; ``lent``: the sandbox owns it.
    """
    empty = os.path.realpath(places.empty)
    transcripts = str(places.transcripts) if spec.transcripts else empty
    mounts: list[Mount] = [
        Bind(str(places.info), layout.CONTAINER_INFO),
        Bind(shown.get(layout.SKILLS_PUBLIC, empty), layout.SKILLS_PUBLIC, foreign=True),
        Bind(shown.get(layout.SKILLS_EXAMPLES, empty), layout.SKILLS_EXAMPLES, foreign=True),
        Tmpfs(layout.OUTPUTS, spec.disk_limit)
        if outputs is None
        else Bind(outputs, layout.OUTPUTS, read_only=False, foreign=not lent),
        Bind(shown.get(layout.UPLOADS, empty), layout.UPLOADS, foreign=True),
        Bind(transcripts, layout.TRANSCRIPTS, foreign=True),
    ]
    mounts += layout.scratch_mounts(spec)
    if world.tree is None:
        mounts += find_etc_binds()
    mounts += [_show(root, root) for root in world.roots]
    mounts += [_show(real, path) for path, real in world.aliases]
    mounts += list(put_ways(mounts, places.covers))
    package = Path(gvisor_kernel.__file__).parent
    mounts += [
        Bind(str(package / part), f"{layout.GUEST}/gvisor_kernel/{part}", foreign=True)
        for part in GUEST_PARTS
    ]
    jupyters = find_jupyters(world.prefixes)
    for extra in layout.extra_binds(spec):
        real = replace(extra, source=shown.get(extra.target, extra.source))
        _check_extra(real, world, jupyters)
        mounts.append(real)
    for covers in (world.covers, jupyters):
        mounts += list(put_covers(mounts, covers, empty, places.covers))
    if places.directory.is_dir():
        make_places(mounts, places.covers)
        make_readable(places.covers)
    return layout.order_mounts(mounts)


def _show(root: str, path: str) -> Bind:
    for place in OWN_PLACES:
        if is_within(path, place):
            raise LaunchError(
                f"The kernel's Python needs {path}, but {place} is the sandbox's own.",
                "let the Python environment, and packages that are installed as editable, lie"
                " somewhere else.",
            )
    # The system's files are shown as everybody may read them, a person's as that person may.
    return Bind(root, path, foreign=not any(is_within(root, system) for system in SYSTEM_ROOTS))


def _check_extra(extra: Bind, world: World, jupyters: Sequence[Cover]) -> None:
    check_source(extra.source, jupyters)
    links = (link for link, _ in world.links)
    aliases = (path for path, _ in world.aliases)
    own = () if world.tree is None else (world.python,)
    for path in (*world.roots, *links, *aliases, *own):
        if is_within(extra.target, path) or is_within(path, extra.target):
            raise SettingError(
                "mounts", extra.target, f"a list whose targets keep off {path}, which Python needs"
            )


def check_source(source: str, jupyters: Sequence[Cover]) -> None:
    """Raise SettingError where the source of an extra mount is one of Jupyter's own folders."""
    cover = find_cover(jupyters, source)
    if cover is not None:
        raise SettingError(
            "mounts",
            source,
            f"a list whose sources keep off {cover}, where Jupyter has its keys and tokens",
        )
