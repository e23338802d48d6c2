"""The check of a whole kernel: start it as Jupyter does, run a cell, measure it while idle."""

from __future__ import annotations

import asyncio
import platform
import time
from functools import partial
from pathlib import Path

from jupyter_core.utils import ensure_event_loop

from gvisor_kernel.bridge import Address, KernelIdentity
from gvisor_kernel.cli.checks.jupyter import find_interpreters, read_specs
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import GvisorKernelError, LaunchError
from gvisor_kernel.host.bounded import call_within
from gvisor_kernel.host.processes import read_cpu_time, read_descendants
from gvisor_kernel.kernel.client import OwnClient, connect, new_key, wait_for_reply
from gvisor_kernel.kernel.plan import KernelPlan
from gvisor_kernel.kernel.session import SandboxedKernel
from gvisor_kernel.runtimes.base import LaunchRequest
from gvisor_kernel.runtimes.checks import Check, failed, ok, warning
from gvisor_kernel.runtimes.hints import ASK_DOCTOR
from gvisor_kernel.runtimes.state.records import read_record

CELL = "__import__('os').uname().release"
"""The expression that the cell evaluates: the release of the kernel that runs it."""
KERNEL_SECONDS = 35.0
"""Seconds that a kernel may take for its start and the cell."""
START_SECONDS = 15.0
"""Seconds that each step of its start may take. A start that is late is tried again once."""
SAMPLE_SECONDS = 0.5
SAMPLES = 3
"""The lowest sample counts: a kernel still has work to do after its first cell."""
MAX_IDLE_SHARE = 0.01
CHECKS_FIRST = "fix the failed checks above first"


def check_kernel(runsc: str = "") -> list[Check]:
    """Start a kernel and run a cell in it; with the setting ``runsc``, if it is given.

    The kernel sees nothing of the host but its Python environment. When this returns the kernel has
    ended, with all that belongs to it.
    """
    started = time.monotonic()
    kernel = SandboxedKernel(logs_death=False, keeps_data=False)
    try:
        release = call_within(KERNEL_SECONDS, partial(_start, kernel, _make_plan(runsc)))
        seconds = time.monotonic() - started
        if release == platform.release():
            return [
                failed(
                    "a cell ran on the host's kernel, not on gVisor's",
                    "gvisor-kernel runsc install",
                )
            ]
        fact = (
            f"a kernel started and ran a cell within {seconds:.1f} s,"
            f" on gVisor's Linux {release[:100]}"
        )
        return [ok(fact), *_check_idle(kernel)]
    except TimeoutError as error:
        return [failed(f"a kernel has not run a cell: {error}", CHECKS_FIRST)]
    except GvisorKernelError as error:
        evidence = error.detail.splitlines()[-1:]
        fact = " ".join([error.fact, *evidence])
        is_known = error.hint not in ("", ASK_DOCTOR)
        return [failed(fact[:500], error.hint if is_known else CHECKS_FIRST)]
    finally:
        asyncio.run(kernel.close())


def _start(kernel: SandboxedKernel, plan: KernelPlan) -> str:
    """Start ``kernel`` and return what its first cell evaluates.

    Call this in a thread of its own: it closes the event loop that the client makes in this thread.
    """
    try:
        address = asyncio.run(kernel.launch(plan))
        with connect(address, plan, kernel.find_end) as client:
            return _run_cell(client)
    finally:
        ensure_event_loop().close()


def _make_plan(runsc: str = "") -> KernelPlan:
    """Plan a cold start with default settings, for the interpreter of the first kernelspec."""
    spec = SandboxSpec(
        uploads=None,
        outputs=None,
        transcripts=False,
        snapshot="off",
        start_timeout=START_SECONDS,
        runsc=runsc,
    )
    return KernelPlan(
        spec=spec,
        request=LaunchRequest("doctor", "", Path("/"), find_interpreters()[0], {}),
        # An idle kernel that is paused would leave nothing to measure.
        identity=KernelIdentity(
            "doctor", new_key(), "hmac-sha256", spec.memory_limit, idle_stop=False
        ),
        address=Address("ipc", ""),
    )


def _run_cell(client: OwnClient) -> str:
    """Evaluate CELL in the kernel.

    :raises LaunchError: when the kernel ends, does not reply, or its reply has no result
    """
    wait_for_reply(client, client.kernel_info())
    message_id = client.execute("", silent=False, user_expressions={"release": CELL})
    content = wait_for_reply(client, message_id)
    try:
        return str(content["user_expressions"]["release"]["data"]["text/plain"]).strip("'")
    except (LookupError, TypeError) as error:
        raise LaunchError(
            f"The kernel's reply to a cell has no result: {str(content)[:300]}"
        ) from error


def _check_idle(kernel: SandboxedKernel) -> list[Check]:
    """Measure the CPU time of the idle sandbox; no result if its process cannot be found."""
    sandbox = kernel.sandbox
    record = None if sandbox is None else read_record(sandbox.directory)
    sentry = None if record is None else record.processes.get("sentry")
    if sentry is None:
        return []
    pid = sentry.pid
    shares: list[float] = []
    for _ in range(SAMPLES):
        before, since = _cpu_seconds(pid), time.monotonic()
        time.sleep(SAMPLE_SECONDS)  # not a wait for an event: the CPU time per second is measured
        shares.append((_cpu_seconds(pid) - before) / (time.monotonic() - since))
    share = max(min(shares), 0.0)
    fact = f"the sandbox of an idle kernel uses {100 * share:.1f} % of a CPU"
    names: list[str] = []
    if share > MAX_IDLE_SHARE:
        names = [name for name, spec in read_specs() if not spec.idle_stop]
    if not names:
        return [ok(f"{fact} until it is paused", name="idle kernel")]
    return [
        warning(
            f"{fact}, and kernels of {', '.join(names)} are never paused, as idle_stop is false",
            "gvisor-kernel runsc install   # a current gVisor, with which it is less than"
            f" {100 * MAX_IDLE_SHARE:.0f} %; or set idle_stop to true",
            name="idle kernel",
        )
    ]


def _cpu_seconds(pid: int) -> float:
    """Return the CPU time of ``pid`` and of its children, which are gVisor's stubs."""
    return (read_cpu_time([pid, *read_descendants(pid)]) or 0) / 1e9
