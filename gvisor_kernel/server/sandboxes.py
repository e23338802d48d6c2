"""Collects the facts of a server's kernels, and keeps them for a moment.

A flood of requests costs no more than one request: the facts are read at most twice a second, by
one thread that no kernel's message waits for.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.host import cgroups, processes
from gvisor_kernel.host.homes import find_home
from gvisor_kernel.host.log_files import NAMES, log_parts
from gvisor_kernel.jupyter.provisioner import GVisorProvisioner
from gvisor_kernel.kernel.facts import KernelFacts
from gvisor_kernel.kernel.session import SandboxedKernel
from gvisor_kernel.runtimes import get_runtime
from gvisor_kernel.runtimes.state.listed import find_all
from gvisor_kernel.runtimes.state.records import read_record
from gvisor_kernel.server.documents import Described, HostFacts, find_uploads, make_leftover

KEEP_SECONDS = 0.5
"""Seconds that facts are used again."""
LEFTOVER_SECONDS = 5.0
"""The same for sandboxes whose owner has died: all records of this user are read for them."""


@dataclass(frozen=True)
class Snapshot:
    """Facts of one moment, when the server had the kernels ``kernels`` of ours: their ids, and the
    start of each one that is starting."""

    kernels: frozenset[tuple[str, str | None]]
    sandboxes: Mapping[str, Described]
    """The sandboxes by kernel id."""
    leftovers: tuple[dict[str, Any], ...]


class Sandboxes:
    """The sandboxes of a server's kernels. On the server's loop."""

    def __init__(self, kernel_manager: Any, executor: Executor) -> None:
        self._manager = kernel_manager
        self._executor = executor
        self._known: Snapshot | None = None
        self._known_at = 0.0
        self._reading: asyncio.Task[Snapshot] | None = None
        self._leftovers: tuple[dict[str, Any], ...] = ()
        self._leftovers_at: float | None = None

    async def read(self) -> Snapshot:
        """Return what is known, at most KEEP_SECONDS old, of the kernels that there are now."""
        known, now = self._known, asyncio.get_running_loop().time()
        if (
            known is not None
            and now - self._known_at < KEEP_SECONDS
            and known.kernels == name_kernels(self._find_all())
        ):
            return known
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
        return await asyncio.shield(self._reading)  # no timeout: reads of /proc and of records

    def has(self, kernel_id: str) -> bool:
        """Return whether a kernel of this server is one of ours."""
        return kernel_id in self._find_provisioners()

    def facts(self) -> dict[str, KernelFacts]:
        """Return the facts of the kernels as they are now, by kernel id. Reads no file."""
        found = {id: one.describe() for id, one in self._find_provisioners().items()}
        return {kernel_id: facts for kernel_id, facts in found.items() if facts is not None}

    def find_kernel(self, kernel_id: str) -> SandboxedKernel | None:
        """Return a kernel of ours that has a sandbox; None if there is none."""
        provisioner = self._find_provisioners().get(kernel_id)
        kernel = None if provisioner is None else provisioner.sandboxed_kernel
        return kernel if kernel is not None and kernel.sandbox is not None else None

    def _find_provisioners(self) -> dict[str, GVisorProvisioner]:
        found = {}
        for kernel_id in self._manager.list_kernel_ids():
            with suppress(KeyError):
                provisioner = getattr(self._manager.get_kernel(kernel_id), "provisioner", None)
                if isinstance(provisioner, GVisorProvisioner):
                    found[str(kernel_id)] = provisioner
        return found

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
            kernels, provisioners = [], self._find_all()
            names = name_kernels(provisioners)
            for kernel_id, provisioner in provisioners.items():
                facts, spec = provisioner.describe(), provisioner.kernel_spec
                if facts is not None:
                    kernels.append((kernel_id, spec.display_name, spec.language, facts))
            hosts = await loop.run_in_executor(
                self._executor, lambda: [find_host_facts(kernel[-1]) for kernel in kernels]
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
    most starts take less time than facts are kept."""
    names: set[tuple[str, str | None]] = set()
    for kernel_id, provisioner in provisioners.items():
        facts, kind = provisioner.describe(), None
        if facts is not None and facts.state == "starting" and facts.start is not None:
            kind = facts.start.kind
        names.add((kernel_id, kind))
    return frozenset(names)


def find_host_facts(facts: KernelFacts) -> HostFacts:
    """Return what the host knows of a sandbox. Blocks for milliseconds."""
    runsc = ""
    with suppress(GvisorKernelError, OSError):
        runsc = get_runtime(facts.spec.runtime).find_version()
    if facts.directory is None:
        return HostFacts(runsc=runsc)
    hidden = facts.spec.uploads is not None and find_uploads(facts) is None
    is_home = hidden and find_home(os.path.realpath(facts.folder)) is not None
    has_log = any(part.exists() for name in NAMES for part in log_parts(facts.directory / name))
    record = read_record(facts.directory)
    if record is None:
        return HostFacts(runsc=runsc, is_home=is_home, has_log=has_log)
    seconds = cgroups.read_cpu_seconds(map(Path, record.cgroups))
    sentry = record.processes.get("sentry")
    if seconds is None and sentry is not None and processes.is_alive(sentry):
        pids = [sentry.pid, *processes.read_descendants(sentry.pid)]
        seconds = sum(map(processes.read_cpu_seconds, pids))
    return HostFacts(record.created, seconds, runsc, is_home, has_log)


def find_leftovers() -> tuple[dict[str, Any], ...]:
    """Return this user's sandboxes whose owner has died; none if they cannot be read."""
    try:
        found = find_all()
    except GvisorKernelError:
        return ()
    return tuple(
        make_leftover(listed.id, listed.record.folder, listed.record.created)
        for listed in found
        if listed.state == "orphaned"
    )
