"""Slurm: one job of one task for each kernel, started by ``srun``."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.config.validators import MIB
from gvisor_kernel.runtimes.nodes.engine import Engine, Trouble

OVERHEAD = 320 * MIB
"""Memory of a job beside the kernel's limit: the helper, runsc's own processes, and what a kernel
may exceed its limit by before it is killed."""
BUILD_MINUTES = 16
"""Minutes that a job that makes a snapshot may take; ``snapshot_builder.py`` gives up before."""
STEP = 128
"""Mebibytes of a step in a kernel's job, which count towards the job's."""
_JOB = re.compile(r"[0-9_.]{1,40}")
ASK_SECONDS = 30
"""Seconds that a short command may wait for its node."""

_NOT_SO = "Slurm cannot run such a job"
_TROUBLES: Sequence[tuple[str, str, str]] = (
    (
        r"execve\(\): .*(No such file or directory|Permission denied)|"
        r"No module named '?gvisor_kernel",
        "the node has no gvisor-kernel at that path",
        'install the same release there, and name its Python as "python" in the setting slurm.',
    ),
    (
        r"exceeded memory limit|oom[_-]kill",
        "Slurm has ended the job: it used more memory than was asked for",
        "raise the setting memory_limit.",
    ),
    (
        r"due to time ?limit|max wall clock limit",
        "Slurm has ended the job: its time is over",
        'raise "time" in the setting slurm, if the partition allows it.',
    ),
    (
        r"DUE TO NODE FAILURE|Node failure|NODE_FAIL",
        "the node has failed",
        "start the kernel again: Slurm chooses another node.",
    ),
    (
        r"CANCELLED|Job has been cancelled|Force Terminated|forcing job termination|REVOKED",
        "the job was cancelled",
        "start the kernel again; `sacct` may tell who has cancelled it.",
    ),
    (
        r"invalid ?(account|qos|wckey|or unknown association)|breached requested QOS",
        f"{_NOT_SO}: its account or QOS is not accepted",
        'name those that are yours as "account" and "qos" in the setting slurm:'
        " `sacctmgr show associations user=$USER`.",
    ),
    (
        r"violates accounting/QOS|insufficient priority|\b(Assoc|QOS)\w*(Limit|Max|Grp)",
        f"{_NOT_SO}: the limits of its account or QOS are reached",
        'end other jobs, ask for less (memory_limit, cpu_shares, and "time" in the setting slurm),'
        ' or name another "account" or "qos" there: `sacctmgr show qos`.',
    ),
    (
        r"invalid partition|no partition specified|to use this partition|not in this partition"
        r"|partition not available|partition in \w+ state|Partition(Down|Inactive)",
        f"{_NOT_SO}: its partition is not accepted",
        'name one that is up and that you may use as "partition" in the setting slurm:'
        " `sinfo --summarize`.",
    ),
    (
        r"time limit is invalid|time limit specification|invalid (--)?time",
        f"{_NOT_SO}: its time is not accepted",
        'set "time" in the setting slurm, such as "8:00:00"; `sinfo --format="%P %l"` shows the'
        " most.",
    ),
    (
        r"partition configuration not available|Partition(Time|Node)Limit|MaxMemPerLimit",
        f"{_NOT_SO}: the limits of its partition do not allow it",
        'compare "time" in the setting slurm, memory_limit and cpu_shares with'
        " `scontrol show partition`.",
    ),
    (
        r"\bgres\b|generic resource|trackable resource",
        f"{_NOT_SO}: no node has its generic resource",
        'compare "gres" in the setting slurm with `sinfo --format="%P %G"`.',
    ),
    (
        r"invalid (feature|preferred feature|license|node name|extra constraints|--[\w-]+)"
        r"|requested reservation|unrecognized option|option requires an argument"
        r"|option '[\w-]+' is ambiguous",
        f"{_NOT_SO}: its arguments are not accepted",
        'correct "arguments" in the setting slurm.',
    ),
    (
        r"node configuration is not available|more processors requested than permitted"
        r"|can not be satisfied|memory required by task|required node not available"
        r"|ReqNodeNotAvail",
        f"{_NOT_SO}: no node is large enough, or none is up",
        'compare memory_limit and cpu_shares with `sinfo --format="%P %c %m %T"`.',
    ),
    (
        r"Unable to contact slurm controller|Connection refused|Communication connection failure|"
        r"Zero Bytes were transmitted|Protocol authentication error|Munge",
        "Slurm's controller does not answer",
        "check it with `scontrol ping`, and munge with `munge -n | unmunge`.",
    ),
    (
        r"Unable to allocate resources|allocation failure",
        "Slurm has given no resources",
        "look at `sinfo` and `squeue`.",
    ),
    (
        r"Unable to confirm allocation|Unable to create step|Task launch .* failed|"
        r"Application launch failed",
        "Slurm could not start the job on its node",
        "start the kernel again; if it stays, look at the node with `scontrol show node`.",
    ),
)


class Slurm(Engine):
    """The cluster that ``srun`` of this machine belongs to."""

    name = "slurm"
    program = "srun"
    package = "Slurm's client (the package slurm-client of Debian)"

    def __init__(self, spec: SandboxSpec) -> None:
        self._spec = spec
        self._asked = spec.slurm
        self.python, self.state, self.wait = (
            self._asked.python,
            self._asked.state,
            self._asked.wait,
        )

    def hosts(self) -> Sequence[str]:
        return [""]

    def start_argv(self, host: str, command: Sequence[str]) -> list[str]:
        return [*self._job("partition", "account", "qos", "time", "gres"), *command]

    def build_argv(self, host: str, command: Sequence[str]) -> list[str]:
        """A job of its own, with the memory and the CPUs of a kernel's: the number of CPUs is part
        of the snapshot's key. It is given up if it cannot start soon."""
        options = (f"--nodelist={host}", f"--immediate={ASK_SECONDS}", f"--time={BUILD_MINUTES}")
        return [*self._job("partition", "account", "qos"), *options, "--nice", *command]

    def _job(self, *named: str) -> list[str]:
        spec, asked = self._spec, self._asked
        return [
            *self._common(math.ceil((spec.memory_limit + OVERHEAD) / MIB)),
            f"--cpus-per-task={max(1, math.ceil(spec.cpu_shares / 1024))}",
            *(f"--{name}={getattr(asked, name)}" for name in named if getattr(asked, name)),
            *asked.arguments,
        ]

    def ask_argv(self, host: str, command: Sequence[str]) -> list[str]:
        partition = [f"--partition={self._asked.partition}"] if self._asked.partition else []
        account = [f"--account={self._asked.account}"] if self._asked.account else []
        where = [f"--nodelist={host}"] if host else []
        options = [*partition, *account, *where, f"--immediate={ASK_SECONDS}", "--time=5"]
        return [*self._common(256), "--cpus-per-task=1", *options, *command]

    def step_argv(self, job: str, command: Sequence[str]) -> list[str]:
        if not _JOB.fullmatch(job):
            return []
        shared = [f"--jobid={job}", "--overlap", "--cpus-per-task=1"]
        return [*self._common(STEP), *shared, *command]

    @staticmethod
    def _common(mebibytes: int) -> list[str]:
        return [
            *("srun", "--nodes=1", "--ntasks=1", "--unbuffered", "--job-name=gvisor-kernel"),
            *("--export=NONE", "--chdir=/", "--input=all", "--mpi=none", "--kill-on-bad-exit=0"),
            f"--mem={mebibytes}M",
        ]

    def end_argv(self, job: str) -> list[str]:
        return ["scancel", "--quiet", job] if _JOB.fullmatch(job) else []

    def explain(self, words: Sequence[str], status: int, host: str) -> Trouble:
        text = "\n".join(words)
        for pattern, fact, hint in _TROUBLES:
            if re.search(pattern, text, re.IGNORECASE):
                return Trouble(fact, hint)
        if status < 0:
            return Trouble(f"its srun ended by signal {-status}")
        return Trouble(f"its srun ended with status {status}")

    def find_waiting_job(self, words: Sequence[str]) -> str:
        for line in reversed(words):
            if "has been allocated resources" in line:
                return ""
            found = re.search(r"\bjob (\d{1,20}) queued and waiting for resources", line)
            if found:
                return found[1]
        return ""

    def queue_argv(self) -> list[str]:
        partition = [f"--partition={self._asked.partition}"] if self._asked.partition else []
        return [
            *("squeue", "--noheader", "--states=PENDING", "--sort=-p,i", "--format=%A"),
            *partition,
        ]

    def reason_argv(self, job: str) -> list[str]:
        return ["squeue", "--noheader", f"--jobs={job}", "--format=%r"]
