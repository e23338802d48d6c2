"""Moves a kernel to another machine, or back: it hibernates, and goes on there.

It stays where it is until it goes on elsewhere: what the other machine lacks is asked before it is
saved, and if it does not go on there, it goes on as it was. Its clients stay connected.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gvisor_kernel.config.settings import DEFAULT_RUNTIME, SandboxSpec
from gvisor_kernel.errors import LaunchError, SnapshotError
from gvisor_kernel.kernel.needs import NEEDS, Needs, find_needs, read_needs, write_needs
from gvisor_kernel.kernel.saved_kernel import SavedKernel
from gvisor_kernel.kernel.session import SandboxedKernel
from gvisor_kernel.runtimes import get_runtime
from gvisor_kernel.runtimes.base import SavedSandbox
from gvisor_kernel.runtimes.clients import HOST
from gvisor_kernel.runtimes.state.kept_packages import find_packages
from gvisor_kernel.runtimes.state.records import read_record
from gvisor_kernel.runtimes.state.shown_files import find_sources
from gvisor_kernel.shown_text import printable_name
from gvisor_kernel.typed_json import write_json

LOCAL, SLURM, SSH = "local", "slurm", "ssh"  # no runtime: where kernels are moved to


def choose_place(spec: SandboxSpec, to: str, find_own: Callable[[str], Any]) -> SandboxSpec:
    """Return the settings of a kernel of ``spec`` at ``to``: LOCAL, SLURM, or a host of SSH.

    ``find_own``: returns the setting of a runtime, as its configuration and kernelspec say.

    :raises LaunchError: when it may not be moved there
    :raises SettingError: when a setting is wrong
    """
    if to == LOCAL:
        return replace(spec, runtime=DEFAULT_RUNTIME, own=None)
    if to == SLURM:
        return replace(spec, runtime=SLURM, own=find_own(SLURM))
    own = find_own(SSH)
    if not HOST.fullmatch(to) or to not in (own.hosts or (to,)):
        raise LaunchError(
            f"{printable_name(to)[:100]} is no host of the setting ssh.",
            f"name one of {', '.join(own.hosts)}." if own.hosts else "name it as for ssh.",
        )
    return replace(spec, runtime=SSH, own=replace(own, hosts=(to,)))


async def move(kernel: SandboxedKernel, to: str, find_own: Callable[[str], Any]) -> None:
    """Let the idle ``kernel`` go on at ``to``; see ``choose_place``.

    :raises NotIdle: when it has something to do
    :raises GvisorKernelError: when it does not go on there; it goes on as it was
    """
    facts = kernel.describe()
    if facts is None:
        raise LaunchError("There is no kernel.")
    spec = choose_place(facts.spec, to, find_own)
    if (spec.runtime, spec.own) == (facts.spec.runtime, facts.spec.own):
        raise LaunchError("The kernel is there already.")
    sandbox, known = kernel.sandbox, None
    is_here = facts.spec.runtime == DEFAULT_RUNTIME
    if is_here and sandbox is not None and isinstance(sandbox, SavedSandbox):
        known = await asyncio.to_thread(_find_present, sandbox)
        await asyncio.to_thread(_check_there, spec, known)

    def prepare(before: SavedKernel) -> SavedKernel:
        if not (before.files / NEEDS).exists():
            program = _find_program(before)
            write_needs(before.files, find_needs(program, before.libraries, before.packages))
        needs = read_needs(before.files)
        if needs != known and spec.runtime != DEFAULT_RUNTIME:
            _check_there(spec, needs)
        return replace(before, spec=spec)

    await kernel.hibernation.go_on_from(prepare, SavedKernel.discard)


def _find_present(sandbox: SavedSandbox) -> Needs:
    files = sandbox.find_shown_files()
    sources = find_sources(sandbox.view.mounts, sandbox.directory)
    return find_needs(_find_program(sandbox), files, find_packages(files, sources))


def _find_program(of: SavedSandbox | SavedKernel) -> str:
    record = read_record(of.directory)
    if record is None:
        raise SnapshotError(f"The record in {of.directory} cannot be read.")
    return record.program


def _check_there(spec: SandboxSpec, needs: Needs) -> None:
    from gvisor_kernel.runtimes.nodes.runtime import NodeRuntime

    runtime = get_runtime(spec.runtime)
    if isinstance(runtime, NodeRuntime):
        runtime.check_needs(spec, write_json(needs))
