"""Collects the facts of a server's kernels, and the files that would end with them, for a moment.

A flood of requests costs no more than one request: the facts are read at most twice a second, by
one thread that no kernel's message waits for; there is one look at a time for a kernel's files.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gvisor_kernel.changes.kernel_changes import KernelChanges
from gvisor_kernel.config.validators import is_within
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.host import cgroups, processes
from gvisor_kernel.host.homes import find_home
from gvisor_kernel.host.log_files import NAMES, log_parts
from gvisor_kernel.jupyter.project_choices import remember
from gvisor_kernel.jupyter.provisioner import GVisorProvisioner
from gvisor_kernel.kernel.facts import KernelFacts, Left
from gvisor_kernel.kernel.saved_budget import KEEP_SECONDS as KEEP_SAVED_SECONDS
from gvisor_kernel.kernel.saved_budget import find_next, find_removed
from gvisor_kernel.kernel.session import SandboxedKernel
from gvisor_kernel.runtimes.mounts.folders import find_project_path
from gvisor_kernel.runtimes.state.listed import find_all
from gvisor_kernel.runtimes.state.records import is_orphan, read_record
from gvisor_kernel.server.documents import Described, HostFacts, find_uploads, make_leftover

KEEP_SECONDS = 0.5
"""Seconds that facts are used again."""
LEFTOVER_SECONDS = 5.0
"""The same for sandboxes whose owner has died: all records of this user are read for them."""


@dataclass(frozen=True)
class Snapshot:
    """Facts of one moment, when the server had the kernels ``kernels`` of ours: their ids, the
    start of each one that is starting, and which ones hibernate."""

    kernels: frozenset[tuple[str, str | None]]
    sandboxes: Mapping[str, Described]
    """The sandboxes by kernel id."""
    leftovers: tuple[dict[str, Any], ...]


class Sandboxes:
    """The sandboxes of a server's kernels. On the server's loop."""

    def __init__(
        self, kernel_manager: Any, executor: Executor, keep_seconds: float = KEEP_SECONDS
    ) -> None:
        self._manager = kernel_manager
        self._root = str(getattr(kernel_manager, "root_dir", ""))
        self._keep_seconds = keep_seconds
        self._executor = executor
        self._known: Snapshot | None = None
        self._known_at = 0.0
        self._reading: asyncio.Task[Snapshot] | None = None
        self._leftovers: tuple[dict[str, Any], ...] = ()
        self._leftovers_at: float | None = None

    async def read(self) -> Snapshot:
        """Return what is known, at most ``keep_seconds`` old, of the kernels that there are now."""
        known, now = self._known, asyncio.get_running_loop().time()
        names = name_kernels(self._find_all())
        is_new = now - self._known_at < self._keep_seconds
        if known is not None and is_new and known.kernels == names:
            return known
        if self._reading is not None:
            known = await asyncio.shield(self._reading)  # no timeout: as below
            if known.kernels == names:  # it may have begun before this was asked
                return known
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
        return await asyncio.shield(self._reading)  # no timeout: reads of /proc and of records

    def has(self, kernel_id: str) -> bool:
        """Return whether a kernel of this server is one of ours."""
        return self._find_provisioner(kernel_id) is not None

    def facts(self) -> dict[str, KernelFacts]:
        """Return the facts of the kernels as they are now, by kernel id. Reads no file."""
        found = {id: self._describe(id, one) for id, one in self._find_provisioners().items()}
        return {kernel_id: facts for kernel_id, facts in found.items() if facts is not None}

    def _describe(self, kernel_id: str, provisioner: GVisorProvisioner) -> KernelFacts | None:
        """Return the facts of a kernel; whether it is busy is what its own messages said last."""
        facts = provisioner.describe()
        if facts is None or facts.state not in ("idle", "busy"):
            return facts
        said = None
        with suppress(KeyError):  # it is being launched
            said = getattr(self._manager.get_kernel(kernel_id), "execution_state", None)
        return replace(facts, state="busy" if said == "busy" else "idle")

    def find_kernel(self, kernel_id: str) -> SandboxedKernel | None:
        """Return a kernel of ours that has a sandbox, or hibernates; None if there is none."""
        provisioner = self._find_provisioner(kernel_id)
        kernel = None if provisioner is None else provisioner.sandboxed_kernel
        has_any = kernel is not None and (kernel.sandbox or kernel.hibernation.saved)
        return kernel if has_any else None

    def find_directory(self, kernel_id: str) -> Path | None:
        """Return the state directory of a kernel's sandbox, also while it is being launched."""
        provisioner = self._find_all().get(kernel_id)
        facts = None if provisioner is None else provisioner.describe()
        return None if facts is None else facts.directory

    async def choose_project(self, folder: Path, *, shown: bool) -> bool:
        """Remember whether kernels of ``folder`` are shown the project around it; return False if
        there is none.

        :raises StateError: when it cannot be remembered
        """

        def choose() -> bool:
            project = find_choosable(str(folder), self._root) if shown else None
            if project is not None or not shown:
                remember(folder, project)
            return project is not None or not shown

        return await asyncio.get_running_loop().run_in_executor(self._executor, choose)

    def _find_provisioners(self) -> dict[str, GVisorProvisioner]:
        found = {str(it): self._find_provisioner(it) for it in self._manager.list_kernel_ids()}
        return {kernel_id: one for kernel_id, one in found.items() if one is not None}

    def _find_provisioner(self, kernel_id: str) -> GVisorProvisioner | None:
        has = kernel_id in self._manager
        found = getattr(self._manager.get_kernel(kernel_id), "provisioner", None) if has else None
        return found if isinstance(found, GVisorProvisioner) else None

    def _find_all(self) -> dict[str, GVisorProvisioner]:
        """Return also those that the manager does not list yet, as they are being launched."""
        found = {
            str(one.kernel_id): one
            for one in GVisorProvisioner.starting
            if getattr(one.parent, "parent", None) is self._manager
        }
        return found | self._find_provisioners()

    async def _read(self) -> Snapshot:
        loop = asyncio.get_running_loop()
        try:
            kernels, choices, provisioners = [], [], self._find_all()
            names = name_kernels(provisioners)
            for kernel_id, provisioner in provisioners.items():
                facts, spec = self._describe(kernel_id, provisioner), provisioner.kernel_spec
                if facts is not None:
                    kernels.append((kernel_id, spec.display_name, spec.language, facts))
                    choices.append(provisioner.may_choose_project(facts.spec))
            hosts = await loop.run_in_executor(
                self._executor,
                lambda: [
                    find_host_facts(kernel[-1], self._root if chooses else "")
                    for kernel, chooses in zip(kernels, choices, strict=True)
                ],
            )
            if self._leftovers_at is None or loop.time() - self._leftovers_at > LEFTOVER_SECONDS:
                self._leftovers = await loop.run_in_executor(self._executor, find_leftovers)
                self._leftovers_at = loop.time()
            described = (
                Described(*kernel, host) for kernel, host in zip(kernels, hosts, strict=True)
            )
            self._known = Snapshot(
                names,
                {one.kernel_id: one for one in described},
                self._leftovers,
            )
            self._known_at = loop.time()
            return self._known
        finally:
            self._reading = None


def name_kernels(
    provisioners: Mapping[str, GVisorProvisioner],
) -> frozenset[tuple[str, str | None]]:
    """Return what tells the kernels from those of a moment ago. Facts of a start are never old:
    most starts take less time than facts are kept. Nor are those of a kernel that has begun to
    hibernate, or to go on: clients are told of it, and ask then."""
    names: set[tuple[str, str | None]] = set()
    for kernel_id, provisioner in provisioners.items():
        facts = provisioner.describe()
        kind: str | None = None
        if facts is not None and facts.state == "starting" and facts.start is not None:
            kind = facts.start.kind
        elif facts is not None and facts.saved is not None:
            kind = "hibernated"
        names.add((kernel_id, kind))
    return frozenset(names)


def find_choosable(folder: str, root: str) -> str | None:
    """Return the project around the notebook's ``folder`` that clients of a server may choose.

    None if there is none but the folder itself, or if it is not below ``root``, the server's: no
    client sees more of this computer by it. Blocks for milliseconds.
    """
    found = find_project_path(folder)
    is_other = found is not None and found != os.path.realpath(folder)
    return found if is_other and is_within(str(found), os.path.realpath(root)) else None


def find_host_facts(facts: KernelFacts, root: str = "") -> HostFacts:
    """Return what the host knows of a sandbox. Blocks for milliseconds.

    ``root``: that of the server, if a person may choose whether the project is shown.
    """
    with suppress(GvisorKernelError):
        found = find_choosable(str(facts.folder), root) if root else None
        if found is not None:
            name = found.removeprefix(os.path.realpath(root)).strip("/") or Path(found).name
            return replace(_find_host_facts(facts), project=(found, name))
    return _find_host_facts(facts)


def _find_host_facts(facts: KernelFacts) -> HostFacts:
    if facts.directory is None:
        return HostFacts()
    hidden = facts.spec.uploads is not None and find_uploads(facts) is None
    is_home = hidden and find_home(os.path.realpath(facts.folder)) is not None
    has_log = any(part.exists() for name in NAMES for part in log_parts(facts.directory / name))
    record = read_record(facts.directory)
    if record is None:
        return HostFacts(is_home=is_home, has_log=has_log)
    seconds = cgroups.read_cpu_seconds(map(Path, record.cgroups))
    sentry = record.processes.get("sentry")
    if seconds is None and sentry is not None and processes.is_alive(sentry):
        pids = [sentry.pid, *processes.read_descendants(sentry.pid)]
        seconds = sum(map(processes.read_cpu_seconds, pids))
    return HostFacts(record.created, seconds, record.runsc, is_home, has_log)


def find_leftovers() -> tuple[dict[str, Any], ...]:
    """Return this user's sandboxes, and kernels that hibernate, whose owner has died, and what was
    removed of the latter; none if they cannot be read."""
    try:
        found = find_all()
    except GvisorKernelError:
        return ()
    left: list[dict[str, Any]] = []
    next_ones = find_next()
    for one in found:
        name = (one.id, one.state, one.record.folder, one.record.created)
        if one.state == "orphaned":
            left.append(make_leftover(*name))
        elif one.state == "hibernated" and is_orphan(one.record):
            removed = one.record.saved + KEEP_SAVED_SECONDS
            left.append(make_leftover(*name, removed=removed, is_next=one.id in next_ones))
    left += (
        make_leftover(it.id, "removed", it.folder, it.created, removed=it.removed)
        for it in find_removed()
    )
    return tuple(left)


LOOK_SECONDS = 0.7
"""Seconds after its begin in which a look is used again: clients ask that long after the end of a
cell, and what was seen before it is no answer."""
MAX_LOOKS = 200
"""Kernels whose answers are kept."""


class _Look:
    began = math.inf
    task: asyncio.Task[Left]


class UnkeptLooks:
    """The looks of one server. On its loop."""

    def __init__(self, make: Callable[[SandboxedKernel], KernelChanges] = KernelChanges) -> None:
        self._make = make
        self._looks: dict[str, _Look] = {}
        """The last look of each sandbox: it waits for the one before, is under way, or is over."""

    async def read(self, kernel: SandboxedKernel) -> Left | None:
        """Return the files that would end with the sandbox; up to LOOK_SECONDS old.

        Of a kernel that hibernates: what was seen last; None if nothing was.

        :raises GvisorKernelError: when the sandbox has ended, or does not answer
        """
        facts = kernel.describe()
        key = facts.identity or "" if facts is not None else ""
        look = before = self._looks.get(key)
        if facts is not None and facts.saved is not None and (look is None or look.task.done()):
            # Nothing has changed since then.
            if look is None or look.task.cancelled() or look.task.exception():
                return None
            return look.task.result()  # no timeout: it is done
        if look is None or asyncio.get_running_loop().time() - look.began >= LOOK_SECONDS:
            look = _Look()
            look.task = asyncio.create_task(self._look(look, before, kernel))
            if len(self._looks) >= MAX_LOOKS:
                self._looks.clear()
            self._looks[key] = look
        return await asyncio.shield(look.task)  # no timeout: SHORT_ANSWER_SECONDS of the look

    async def _look(self, look: _Look, before: _Look | None, kernel: SandboxedKernel) -> Left:
        if before is not None:
            try:
                # no timeout: SHORT_ANSWER_SECONDS of the look before
                await asyncio.wait([before.task])
            except asyncio.CancelledError:
                before.task.cancel()
                raise
        look.began = asyncio.get_running_loop().time()
        return await self._make(kernel).find_unkept()

    def end(self) -> None:
        """End all looks."""
        for look in self._looks.values():
            look.task.cancel()
