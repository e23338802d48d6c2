"""Slurm: one job of one task for each kernel, started by ``srun``."""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.config.validators import MIB
from gvisor_kernel.runtimes.clients import Trouble, last_line, run
from gvisor_kernel.runtimes.nodes.engine import Engine
from gvisor_kernel.runtimes.nodes.settings import find_slurm
from gvisor_kernel.shown_text import printable

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

FIRST_WAIT = 3.0
"""Seconds between the first two looks; then twice as long each time."""
LONGEST_WAIT = 30.0
MAX_ASKED = 10_000
"""Jobs that are known to have been asked for."""
MAX_QUEUES = 100
"""Queues that are remembered: one for each partition and configuration."""

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
        r"due to preemption",
        "Slurm has ended the job: it was preempted by another one",
        "start the kernel again, or choose another partition or QOS in the setting slurm.",
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
        r"Unable to contact slurm controller|failed to fetch config|Connection refused|"
        r"Communication connection failure|Zero Bytes were transmitted|"
        r"Protocol authentication error|Munge",
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
        self._asked = find_slurm(spec)
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

    def describe_wait(self, words: Sequence[str], environment: Mapping[str, str]) -> str:
        job = find_waiting_job(words)
        if not job:
            return ""
        argv = ["squeue", "--noheader", "--states=PENDING", "--sort=-p,i", "--format=%A"]
        argv += [f"--partition={self._asked.partition}"] if self._asked.partition else []
        before = find_queue(argv, environment).count_before(job)
        rest = "" if before is None else f", {before} before it"
        return f"waiting for resources: job {job}{rest}"

    def explain_wait(
        self, words: Sequence[str], within: str, environment: Mapping[str, str]
    ) -> Trouble | None:
        job = find_waiting_job(words)
        if not job:
            return None
        done = run(["squeue", "--noheader", f"--jobs={job}", "--format=%r"], environment)
        reason = printable(last_line(done))[:100]
        why = f": {reason}" if reason else ""
        return Trouble(
            f"The job {job} of the kernel got no resources {within}{why}.",
            self.explain([*words, reason], 0, "").hint
            or 'wait for other jobs to end, or raise "wait" in the setting slurm.',
        )


def find_waiting_job(words: Sequence[str]) -> str:
    """Return the job that waits for resources, by the words of srun; empty if none does."""
    for line in reversed(words):
        if "has been allocated resources" in line:
            return ""
        found = re.search(r"\bjob (\d{1,20}) queued and waiting for resources", line)
        if found:
            return found[1]
    return ""


# -- the queue, as starts that wait for resources see it -------------------------------------------

Look = Callable[[], Sequence[str]]
"""Returns the jobs that wait, the next one first."""


class Queue:
    """The jobs that wait. Any thread. One look serves all starts of this process that wait in the
    same queue, and the looks become rarer: the controller of a large cluster must not feel that
    somebody waits.

    ``now()``: a clock that only goes forward.
    """

    def __init__(self, look: Look, now: Callable[[], float] = time.monotonic) -> None:
        self._look = look
        self._now = now
        self._turn = threading.Lock()  # no timeout: taken only where it is free
        self._jobs: Sequence[str] = ()
        self._asked: set[str] = set()
        self._wait = FIRST_WAIT
        self._last = self._due = float("-inf")

    def count_before(self, job: str) -> int | None:
        """Return how many jobs are before ``job``, by the last look; None if it is not there.

        Looks if that is due. A job that was not asked for before makes it due soon. Blocks for as
        long as the look takes; a caller that comes meanwhile gets the answer of the last one.
        """
        if self._turn.acquire(blocking=False):
            try:
                self._refresh(job)
            finally:
                self._turn.release()
        jobs = self._jobs
        return jobs.index(job) if job in jobs else None

    def _refresh(self, job: str) -> None:
        if job not in self._asked:
            if len(self._asked) >= MAX_ASKED:
                self._asked.clear()
            self._asked.add(job)
            self._due = min(self._due, self._last + FIRST_WAIT)
            self._wait = FIRST_WAIT
        if self._now() >= self._due:
            self._jobs = self._look()
            self._last = self._now()
            self._due = self._last + self._wait
            self._wait = min(2 * self._wait, LONGEST_WAIT)


_queues: dict[tuple[object, ...], Queue] = {}
_lock = threading.Lock()  # no timeout: held for a few steps that do not wait


def find_queue(argv: Sequence[str], environment: Mapping[str, str]) -> Queue:
    """Return the queue that the command ``argv`` prints: a job on a line, the next one first."""

    def look() -> Sequence[str]:
        return run(argv, environment).output.split()

    key = (*argv, *sorted(environment.items()))
    with _lock:
        if key not in _queues:
            if len(_queues) >= MAX_QUEUES:
                _queues.clear()
            _queues[key] = Queue(look)
        return _queues[key]
