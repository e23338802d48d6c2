"""Moves a kernel to another machine, or back: it hibernates, and goes on there.

It stays where it is until it goes on elsewhere: what the other machine lacks is asked before it is
saved, and if it does not go on there, it goes on as it was. Its clients stay connected.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from gvisor_kernel.config.settings import DEFAULT_RUNTIME, SandboxSpec, find_entry
from gvisor_kernel.errors import LaunchError, SettingError
from gvisor_kernel.host.private_directories import read_file, write_file
from gvisor_kernel.host.workers import in_thread
from gvisor_kernel.kernel.plan import read_plan
from gvisor_kernel.kernel.saved_kernel import SavedKernel
from gvisor_kernel.kernel.session import SandboxedKernel
from gvisor_kernel.runtimes import get_runtime
from gvisor_kernel.runtimes.base import Runtime, SavedSandbox
from gvisor_kernel.runtimes.clients import HOST
from gvisor_kernel.runtimes.state.kept_packages import Packages, find_packages
from gvisor_kernel.runtimes.state.saved import MAX_NOTE, NEEDS
from gvisor_kernel.runtimes.state.shown_files import Stamps, find_sources
from gvisor_kernel.shown_text import printable_name

LOCAL, SLURM, SSH = "local", "slurm", "ssh"  # no runtime: where kernels are moved to


@runtime_checkable
class _Finder(Protocol):
    """The runtime of this machine."""

    def find_needs(self, directory: Path, files: Stamps, packages: Packages) -> str: ...


@runtime_checkable
class _Checker(Protocol):
    """A runtime of other machines, which are asked before a kernel is moved there."""

    def check_needs(self, spec: SandboxSpec, needs: str) -> None: ...


def choose_place(spec: SandboxSpec, to: str, find_own: Callable[[str], Any]) -> SandboxSpec:
    """Return the settings of a kernel of ``spec`` at ``to``: LOCAL, SLURM, or a host of SSH.

    ``find_own``: returns the setting of a runtime, as its configuration and kernelspec say.

    :raises LaunchError: when it may not be moved there
    :raises SettingError: when a setting is wrong
    """
    if to == LOCAL:
        return replace(spec, runtime=DEFAULT_RUNTIME, own=None)
    if to == SLURM:
        return _check_spec(replace(spec, runtime=SLURM, own=find_own(SLURM)))
    own = find_own(SSH)
    if not HOST.fullmatch(to) or to not in (own.hosts or (to,)):
        raise LaunchError(
            f"{printable_name(to)[:100]} is no host of the setting ssh.",
            f"name one of {', '.join(own.hosts)}." if own.hosts else "name it as for ssh.",
        )
    return _check_spec(replace(spec, runtime=SSH, own=replace(own, hosts=(to,))))


def _check_spec(spec: SandboxSpec) -> SandboxSpec:
    find_entry(spec.runtime).check(spec)
    return spec


def follow(spec: SandboxSpec, saved: SavedKernel, find_own: Callable[[str], Any]) -> SandboxSpec:
    """Return ``spec`` for where the kernel ``saved`` was moved to; as it is where ``find_own`` does
    not allow that, by raising LaunchError."""
    was = read_plan(saved.note.plan, b"").spec
    if was.runtime == spec.runtime:
        return spec
    places = {DEFAULT_RUNTIME: (LOCAL,), SLURM: (SLURM,), SSH: getattr(was.own, "hosts", ())}
    for to in places.get(was.runtime, ()):
        with suppress(LaunchError, SettingError):
            return choose_place(spec, to, find_own)
    return spec


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
    sandbox, there = kernel.sandbox, get_runtime(spec.runtime)
    is_here = facts.spec.runtime == DEFAULT_RUNTIME
    known = ""
    if is_here and sandbox is not None and isinstance(sandbox, SavedSandbox):
        known = await in_thread(_find_present, sandbox)
        await in_thread(_check, there, spec, known)

    def prepare(before: SavedKernel) -> SavedKernel:
        place, note = before.files / NEEDS, before.note
        if not place.exists():
            write_file(place, _find_needs(before.directory, note.files, note.packages))
        needs = read_file(place, MAX_NOTE).decode()
        if needs != known:
            _check(there, spec, needs)
        return replace(before, spec=spec)

    async def choose(before: SavedKernel) -> SavedKernel:
        return await in_thread(prepare, before)

    await kernel.hibernation.go_on_from(choose, SavedKernel.discard)


def _find_present(sandbox: SavedSandbox) -> str:
    files = sandbox.find_shown_files()
    sources = find_sources(sandbox.view.mounts, sandbox.directory)
    return _find_needs(sandbox.directory, files, find_packages(files, sources))


def _find_needs(directory: Path, files: Stamps, packages: Packages) -> str:
    runtime = get_runtime(DEFAULT_RUNTIME)
    assert isinstance(runtime, _Finder)
    return runtime.find_needs(directory, files, packages)


def _check(runtime: Runtime, spec: SandboxSpec, needs: str) -> None:
    if isinstance(runtime, _Checker):  # another one says so as the kernel goes on there
        runtime.check_needs(spec, needs)
