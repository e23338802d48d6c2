"""A Slurm cluster of this test run: munge, a controller and two nodes, all on this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..patience import scale_seconds
from .waiting import wait_until

SECONDS = scale_seconds(60)
PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "scancel", "sinfo", "scontrol", "squeue")
NODES = ("n1", "n2")

needs_slurm = [
    pytest.mark.once,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root starts a cluster"),
    pytest.mark.skipif(
        any(shutil.which(program) is None for program in PROGRAMS),
        reason="Slurm is not installed: install munge, slurmctld, slurmd and slurm-client",
    ),
]


class Cluster:
    """One cluster, whose parts a test stops and starts. ``folder`` holds everything it has."""

    def __init__(self, folder: Path, state: Path) -> None:
        self.folder = folder
        self.state = state
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.config = folder / "slurm.conf"
        folder.chmod(0o755)
        for name in ("ctld", *NODES):
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        self._write_config(*(_free_port() for _ in range(3)))

    def _write_config(self, controller: int, first: int, second: int) -> None:
        place = self.folder
        lines = [
            "ClusterName=tests",
            "SlurmctldHost=localhost(127.0.0.1)",
            "SlurmUser=root",
            "AuthType=auth/munge",
            f"AuthInfo=socket={place}/munge.sock",
            f"SlurmctldPort={controller}",
            f"StateSaveLocation={place}/ctld",
            f"SlurmdSpoolDir={place}/%n",
            f"SlurmctldPidFile={place}/slurmctld.pid",
            f"SlurmdPidFile={place}/slurmd.%n.pid",
            f"SlurmctldLogFile={place}/slurmctld.log",
            f"SlurmdLogFile={place}/slurmd.%n.log",
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "JobAcctGatherType=jobacct_gather/linux",
            "JobAcctGatherFrequency=task=1",
            "JobAcctGatherParams=OverMemoryKill",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_CPU_Memory",
            "SlurmdParameters=config_overrides",
            "SchedulerParameters=sched_interval=1,bf_interval=1",
            "InactiveLimit=30",
            "SlurmdTimeout=15",
            "KillWait=30",
            "ReturnToService=2",
            f"NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={first} CPUs=20"
            " RealMemory=10000",
            f"NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={second} CPUs=20"
            " RealMemory=10000",
            "PreemptType=preempt/partition_prio",
            "PreemptMode=CANCEL",
            "PartitionName=k Nodes=n1,n2 Default=YES State=UP PreemptMode=CANCEL GraceTime=60",
            "PartitionName=urgent Nodes=n1,n2 State=UP PriorityTier=10",
        ]
        self.config.write_text("\n".join(lines) + "\n")

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of kernels on this cluster."""
        slurm = {"state": str(self.state)}
        return {"runtime": "slurm", "snapshot": "off", "slurm": slurm}

    def environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "SLURM_CONF": str(self.config)}

    def start(self) -> None:
        place = self.folder
        self._spawn(
            "munged",
            *("munged", "--foreground", "--force", f"--key-file={place}/munge.key"),
            *(f"--socket={place}/munge.sock", f"--pid-file={place}/munged.pid"),
            *(f"--log-file={place}/munged.log", f"--seed-file={place}/munged.seed"),
        )
        wait_until((place / "munge.sock").exists, "munged", SECONDS)
        self.start_controller("-c")
        for node in NODES:
            self.start_node(node)
        self.wait_until_idle()

    def start_controller(self, *arguments: str) -> None:
        self._spawn("slurmctld", "slurmctld", "-D", *arguments)

    def start_node(self, node: str) -> None:
        self._spawn(node, "slurmd", "-D", "-N", node)

    def wait_until_idle(self) -> None:
        wait_until(lambda: self.states() == ["idle", "idle"], "two idle nodes", SECONDS)

    def states(self) -> list[str]:
        return self.ask("sinfo", "-hN", "-pk", "-o", "%T").split()

    def ask(self, *argv: str) -> str:
        done = subprocess.run(
            argv, env=self.environment(), capture_output=True, text=True, check=False
        )
        return done.stdout

    def jobs(self) -> list[str]:
        """Return the numbers of the jobs that wait or run."""
        return self.ask("squeue", "-h", "-o", "%A").split()

    def submit(self, *arguments: str) -> str:
        """Submit a job of somebody else: options, then a command; return its number."""
        *options, command = arguments
        argv = ["sbatch", "--parsable", "--output=/dev/null", *options, f"--wrap={command}"]
        return self.ask(*argv).strip()

    def kill(self, name: str) -> None:
        """Kill a part with SIGKILL, and wait for its end."""
        process = self.processes.pop(name)
        process.kill()
        process.wait(SECONDS)

    def stop(self) -> None:
        for job in self.jobs():
            self.ask("scancel", job)
        for name in (*NODES, "slurmctld", "munged"):
            process = self.processes.pop(name, None)
            if process is not None:
                process.send_signal(signal.SIGTERM)
                process.wait(SECONDS)

    def read_logs(self) -> str:
        return "\n".join(path.read_text()[-2000:] for path in self.folder.glob("*.log"))

    def _spawn(self, name: str, *argv: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                argv,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running_cluster(folder: Path, state: Path) -> Iterator[Cluster]:
    cluster = Cluster(folder, state)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
