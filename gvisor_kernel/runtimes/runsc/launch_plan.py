"""The plan of a sandbox before it is started: what it is shown, and the files for it.

Starts nothing and mounts nothing. Which mounts there are is decided in ``mounts/plan``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import gvisor_kernel
from gvisor_kernel.config.settings import READ_ONLY
from gvisor_kernel.config.validators import is_within
from gvisor_kernel.errors import LaunchError
from gvisor_kernel.host.folders import LinkRefused, Opened, open_path
from gvisor_kernel.host.processes import SUBUID_BASE
from gvisor_kernel.host.stage import Source
from gvisor_kernel.runtimes.base import KernelView, MountView
from gvisor_kernel.runtimes.mounts.host_python import PythonTree
from gvisor_kernel.runtimes.mounts.plan import plan_mounts
from gvisor_kernel.runtimes.mounts.profile import MATPLOTLIBRC, read_profile
from gvisor_kernel.runtimes.mounts.rootfs import write_rootfs
from gvisor_kernel.runtimes.mounts.written_folders import WrittenFolders
from gvisor_kernel.runtimes.runsc.command_line import Runsc
from gvisor_kernel.runtimes.runsc.description import find_environment
from gvisor_kernel.runtimes.runsc.staging import Stage
from gvisor_kernel.runtimes.state.beginning import Beginning
from gvisor_kernel.runtimes.state.sweep import lend
from gvisor_kernel.spec.identity import format_info
from gvisor_kernel.spec.layout import OUTPUTS, UPLOADS, Bind, Mount
from gvisor_kernel.spec.limits import meminfo


@dataclass(frozen=True)
class LaunchPlan(Beginning):
    """Everything that was found out and decided before the sandbox is started."""

    runsc: Runsc
    python_tree: PythonTree
    kernel_id: int
    mounts: tuple[Mount, ...]
    profile: Mapping[str, bytes]
    """Files of the setting ``profile``, by their paths below /etc."""
    opened: Mapping[str, Opened]
    """The user's folders by mount target; their descriptors are held open."""

    def find_sources(self, written: WrittenFolders) -> list[Source]:
        """Return what is to be mounted, in the order of the binds.

        :raises LaunchError: when a path leads through a link that must not be followed
        """
        sources, kept = [], self.request.kept
        for bind in self.binds:
            if bind.target in self.opened:
                folder = self.opened[bind.target]
                reads = bind.read_only or (
                    bind.target == OUTPUTS and self.request.branch == READ_ONLY
                )
                source = Source(folder.path, folder.identity, reads, bind.foreign)
                if bind.target == UPLOADS:
                    source = replace(source, hidden=self.inputs.hidden or ())
            else:
                source = open_source(_find_kept(bind.source, kept), written, bind)
            replaced = [
                (path.removeprefix(bind.source).lstrip("/"), index)
                for index, path in enumerate(kept, len(self.binds))
                if path != bind.source and _is_seen(path, bind)
            ]
            sources.append(replace(source, replaced=tuple(replaced)))
        return sources

    def find_kept(self, written: WrittenFolders) -> list[Source]:
        """Return the copies that are shown in place of others; they come after the binds."""
        return [
            replace(
                open_source(tree, written),
                foreign=any(bind.foreign for bind in self.binds if _is_seen(path, bind)),
            )
            for path, tree in self.request.kept.items()
        ]

    def _show_kept(self) -> Iterator[MountView]:
        for path, tree in self.request.kept.items():
            for bind in self.binds:
                if _is_seen(path, bind):
                    target = bind.target.rstrip("/") + path.removeprefix(bind.source)
                    yield MountView(tree, target, read_only=True)

    @property
    def binds(self) -> list[Bind]:
        """The mounts whose source is on the host, in their order."""
        return [mount for mount in self.mounts if isinstance(mount, Bind)]

    def restage_mounts(self, stage: Stage) -> list[Mount]:
        """Return the mounts with the sources that they have in the private mount namespace."""
        places = {bind.target: stage.path(index) for index, bind in enumerate(self.binds)}
        return [
            replace(mount, source=places[mount.target]) if isinstance(mount, Bind) else mount
            for mount in self.mounts
        ]

    def show(self, sources: Sequence[Source]) -> KernelView:
        """Return what a kernel finds. ``sources``: of ``find_sources``."""
        return KernelView(
            mounts=tuple(
                MountView(source.path, bind.target, bind.read_only, source.identity)
                for bind, source in zip(self.binds, sources, strict=True)
            )
            + tuple(self._show_kept()),
            environment=find_environment(self.spec, self.request, self.python_tree, self.mounts)
            | ({"MATPLOTLIBRC": f"/etc/{MATPLOTLIBRC}"} if MATPLOTLIBRC in self.profile else {}),
            python=self.python_tree.python,
            workdir=self.workdir,
            transcripts=self.places.transcripts if self.spec.transcripts else None,
        )

    def write_files(self, *, as_root: bool) -> None:
        """Write the files that the runtime or the kernel reads."""
        places = self.places
        info = format_info(
            self.identity,
            self.spec,
            kernel_name=self.request.kernel_name,
            created=self.record.created,
            versions={
                "gvisor-kernel": gvisor_kernel.__version__,
                "runsc": self.runsc.version,
                "python": self.python_tree.version,
            },
            mounts=self.mounts,
            workdir=self.workdir,
        )
        # by path: below the state directory, whose parents only this user can change
        places.info.write_text(info)
        places.info.chmod(0o644)
        places.meminfo.write_text(meminfo(self.spec))
        places.meminfo.chmod(0o644)
        write_rootfs(
            places.rootfs,
            container_id=self.identity.container_id,
            links=self.python_tree.links,
            profile=self.profile,
            mounts=self.mounts,
            owner=SUBUID_BASE if as_root else None,
            host_etc=Path("/etc") if self.python_tree.tree is None else None,
        )


def make_plan(
    begun: Beginning, runsc: Runsc, python_tree: PythonTree, kernel_id: int
) -> LaunchPlan:
    """Return the plan of a sandbox that has begun. Lends its outputs, and makes its folders.

    :raises GvisorKernelError, OSError: see ``plan_mounts``
    """
    places, outputs = begun.places, begun.outputs
    if outputs.folder is not None and outputs.lent_by is not None:
        lend(outputs.folder, outputs.lent_by, SUBUID_BASE + kernel_id)
    for directory in (places.empty, places.transcripts, places.bundle, places.runsc):
        # by path: below the state directory, whose parents only this user can change
        directory.mkdir(exist_ok=True)
        directory.chmod(0o755)
    opened = begun.inputs.by_target(begun.spec)
    mounts = plan_mounts(
        begun.spec,
        python_tree,
        places,
        {target: folder.path for target, folder in opened.items()},
        outputs.path,
        lent=outputs.lent_by is not None,
        hidden=[hidden.path for hidden in begun.inputs.hidden or ()],
    )
    if outputs.folder is not None:
        opened[OUTPUTS] = outputs.folder
    return LaunchPlan(
        **vars(begun),
        runsc=runsc,
        python_tree=python_tree,
        kernel_id=kernel_id,
        mounts=mounts,
        profile=read_profile(begun.spec),
        opened=opened,
    )


def _find_kept(source: str, kept: Mapping[str, str]) -> str:
    """Return where ``source`` is in a copy; itself if it is in none."""
    found = (
        tree + source.removeprefix(path) for path, tree in kept.items() if is_within(source, path)
    )
    return next(filter(os.path.lexists, found), source)


def _is_seen(path: str, bind: Bind) -> bool:
    """Return whether a file or folder of the host is seen, read-only, by ``bind``."""
    return bind.read_only and is_within(path, bind.source)


def open_source(path: str, written: WrittenFolders, bind: Bind | None = None) -> Source:
    """Open ``path``, which is mounted read-only unless ``bind`` says otherwise.

    :raises LaunchError: when the path leads through a link that must not be followed
    """
    try:
        with open_path(path, written.has) as found:
            if bind is None:
                return Source(found.path, found.identity)
            return Source(found.path, found.identity, bind.read_only, bind.foreign)
    except LinkRefused as error:
        raise LaunchError(
            f"Could not mount {path}: {error.link} is a symbolic link (to {error.target}), and"
            f" {error.reason}.",
            "move the kernel's Python and the state directory to a folder where no kernel writes.",
        ) from error
