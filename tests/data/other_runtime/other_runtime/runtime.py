"""Sandboxes on this machine whose processes have a niceness.

Runsc makes them. All that gvisor-kernel sees are this runtime and this sandbox, which have no
ability that an interface does not ask for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.environments.environment import Base
from gvisor_kernel.runtimes.base import LaunchRequest, Runtime, Sandbox
from gvisor_kernel.runtimes.checks import Check, RuntimeCheck, ok
from gvisor_kernel.runtimes.runsc.runtime import RunscRuntime
from gvisor_kernel.runtimes.state.records import Record, read_record


def check_levels(specs: Sequence[SandboxSpec]) -> list[Check]:
    return [ok(f"the level is {spec.own.level}") for spec in specs]


class NiceRuntime(Runtime):
    name = "nice"

    def __init__(self) -> None:
        self._runsc = RunscRuntime(name=self.name)

    def start(self, spec: SandboxSpec, request: LaunchRequest) -> Sandbox:
        return NiceSandbox(self._runsc.start(spec, request), spec.own.level)

    def find_checks(self) -> Sequence[RuntimeCheck]:
        return (RuntimeCheck(self.name, 5, check_levels),)

    def find_base(self, spec: SandboxSpec, request: LaunchRequest) -> Base:
        return self._runsc.find_base(spec, request)

    def end(self, directory: Path, record: Record) -> bool:
        return self._runsc.end(directory, record)

    def sweep(self) -> list[str]:
        return self._runsc.sweep()


class NiceSandbox(Sandbox):
    def __init__(self, made: Sandbox, level: int) -> None:
        self._made, self._level = made, level
        self.identity, self.directory, self.log_path = made.identity, made.directory, made.log_path
        self.view = made.view
        self.link_in, self.link_out, self.exit_fd = made.link_in, made.link_out, made.exit_fd

    def poll(self) -> int | None:
        return self._made.poll()

    def memory_used(self) -> int | None:
        return self._made.memory_used()

    def stderr_tail(self) -> str:
        return self._made.stderr_tail()

    def kill(self) -> None:
        self._made.kill()

    def verify(self, said: Mapping[str, str] | None = None) -> None:
        self._made.verify(said)
        record = read_record(self.directory)
        assert record is not None
        os.setpriority(os.PRIO_PROCESS, record.processes["sentry"].pid, self._level)

    def close(self) -> None:
        self._made.close()
