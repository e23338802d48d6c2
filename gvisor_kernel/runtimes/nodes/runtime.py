"""The runtimes ``slurm`` and ``ssh``: sandboxes on other machines, each owned by a helper there.

The host starts a client (srun or ssh) whose stdio is the sandbox's link. The helper on the node
makes the sandbox with that machine's runsc, watches it and removes it (``gvisor_kernel/node``).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.environments.environment import Base
from gvisor_kernel.errors import LaunchError, SnapshotError
from gvisor_kernel.runtimes.base import LaunchRequest, Runtime, Sandbox
from gvisor_kernel.runtimes.checks import RuntimeCheck
from gvisor_kernel.runtimes.clients import make_control
from gvisor_kernel.runtimes.nodes.attempt import Attempt, Elsewhere, NodeStart
from gvisor_kernel.runtimes.nodes.copies import copies_files, pack_files, sync_outputs
from gvisor_kernel.runtimes.nodes.engine import Engine
from gvisor_kernel.runtimes.nodes.node_sandbox import NodeSandbox
from gvisor_kernel.runtimes.nodes.removal import end_client
from gvisor_kernel.runtimes.nodes.slurm import Slurm
from gvisor_kernel.runtimes.nodes.ssh import Ssh
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.runtimes.state.beginning import FirstSweep, begin, predict_outputs
from gvisor_kernel.runtimes.state.records import Record
from gvisor_kernel.runtimes.state.sweep import sweep_orphans
from gvisor_kernel.spec.identity import new_identity


class NodeRuntime(Runtime):
    """Makes sandboxes on the nodes of an engine; ``name`` is the engine's."""

    finds_snapshots = True

    def __init__(self, name: str) -> None:
        self.name = name
        self._first_sweep: FirstSweep[str] = FirstSweep(name)

    def start(self, spec: SandboxSpec, request: LaunchRequest) -> Sandbox:
        engine = make_engine(spec)
        engine.check()
        awaited = predict_outputs(spec, request) if copies_files(spec) else None
        self._first_sweep.run("", outputs=awaited)
        identity = new_identity(request.kernel_name, spec, engine.name)
        with begin(spec, request, identity, {"runtime": self.name}) as begun:
            asked, files = pack_files(begun) if copies_files(spec) else (spec, None)
            start = NodeStart(**vars(begun), engine=engine, asked=asked, files=files)
            return _start_somewhere(start)

    def explain_no_snapshots(self) -> SnapshotError:
        return SnapshotError(
            "Snapshots of kernels on other machines are made there, after a cold start.",
            "start a kernel: the next one on its node is restored from a snapshot.",
        )

    def find_base(self, spec: SandboxSpec, request: LaunchRequest) -> Base:
        raise LaunchError(
            f"Packages are not installed by the runtime {self.name}.",
            "install the kernelspec with runtime=runsc on this machine, or put the packages into"
            " an image.",
        )

    def find_checks(self) -> tuple[RuntimeCheck, ...]:
        from gvisor_kernel.runtimes.nodes.checks import SECONDS, check_specs

        return (RuntimeCheck(self.name, SECONDS, check_specs),)

    def end(self, directory: Path, record: Record) -> bool:
        return end_client(record)

    def sync_outputs(
        self, directory: Path, record: Record, folder: str | None
    ) -> tuple[int, int] | None:
        return sync_outputs(directory, record, folder) if record.fetch_argv else None

    def sweep(self) -> list[str]:
        return sweep_orphans(self.name)


def make_engine(spec: SandboxSpec) -> Engine:
    """Return the engine of ``spec.runtime``.

    :raises StateError: when the folder for connections cannot be made
    """
    if spec.runtime == "slurm":
        return Slurm(spec)
    return Ssh(spec, make_control(), count_kernels())


def count_kernels() -> dict[str, int]:
    """Return how many sandboxes of this user run on each node."""
    return Counter(record.node for _, record in records.find_sandboxes() if record.node)


def _start_somewhere(start: NodeStart) -> NodeSandbox:
    """Start on the first host that can.

    :raises LaunchError: when none can; the reasons of all are in its detail
    """
    failures: list[str] = []
    for host in start.engine.hosts():
        attempt = Attempt(start, host)
        try:
            return attempt.run()
        except Elsewhere as error:
            failures.append(str(error))
    raise LaunchError(
        f"No host of the setting {start.engine.name} could start the kernel.",
        "see the reasons below.",
        "\n".join(failures),
    )
