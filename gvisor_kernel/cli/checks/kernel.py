"""The check of a whole kernel: start it as Jupyter does, run a cell, measure it while idle."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import suppress
from pathlib import Path

from jupyter_core.utils import ensure_event_loop
from traitlets import TraitError

from gvisor_kernel.bridge import Address, KernelIdentity
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import GvisorKernelError, LaunchError
from gvisor_kernel.jupyter.kernelspecs import find_kernelspecs
from gvisor_kernel.jupyter.plan_factory import make_provisioner, read_configuration
from gvisor_kernel.kernel.client import OwnClient, connect, new_key, wait_for_reply
from gvisor_kernel.kernel.plan import KernelPlan
from gvisor_kernel.kernel.session import SandboxedKernel
from gvisor_kernel.runtimes.base import LaunchRequest
from gvisor_kernel.runtimes.checks import Check, failed, ok, warning
from gvisor_kernel.runtimes.hints import ASK_DOCTOR
from gvisor_kernel.runtimes.state.records import read_record

CELL = "__import__('os').uname().release"
"""The expression that the cell evaluates: the release of the kernel that runs it."""
SAMPLE_SECONDS = 0.5
SAMPLES = 3
"""The lowest sample counts: a kernel still has work to do after its first cell."""
MAX_IDLE_SHARE = 0.01


def check_kernel() -> list[Check]:
    """Start a kernel and run a cell in it.

    The kernel sees nothing of the host but its Python environment. Call this in a thread of its
    own: it closes the event loop that the client makes in this thread.
    """
    started = time.monotonic()
    kernel = SandboxedKernel(logs_death=False, keeps_data=False)
    try:
        plan = _make_plan()
        address = asyncio.run(kernel.launch(plan))
        client = connect(address, plan, kernel.find_end)
        try:
            release = _run_cell(client)
            seconds = time.monotonic() - started
            fact = (
                f"a kernel started and ran a cell within {seconds:.1f} s,"
                f" on gVisor's Linux {release[:100]}"
            )
            return [ok(fact), *_check_idle(kernel)]
        finally:
            client.stop_channels()
    except GvisorKernelError as error:
        evidence = error.detail.splitlines()[-1:]
        fact = " ".join([error.fact, *evidence])
        is_known = error.hint not in ("", ASK_DOCTOR)
        hint = error.hint if is_known else "fix the failed checks above first"
        return [failed(fact[:500], hint)]
    finally:
        asyncio.run(kernel.close())
        ensure_event_loop().close()


def _make_plan() -> KernelPlan:
    """Plan a cold start with default settings, for the interpreter of the first kernelspec."""
    interpreters = [spec.interpreter for spec in find_kernelspecs() if spec.interpreter]
    python = next(iter(interpreters), sys.executable)
    spec = SandboxSpec(uploads=None, outputs=None, transcripts=False, snapshot="off")
    return KernelPlan(
        spec=spec,
        request=LaunchRequest("doctor", "", Path("/"), python, {}),
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
    names = _find_never_paused() if share > MAX_IDLE_SHARE else []
    if not names:
        return [ok(f"{fact} until it is paused", name="idle kernel")]
    return [
        warning(
            f"{fact}, and kernels of {', '.join(names)} are never paused, as idle_stop is false",
            "set idle_stop to true, or use a current gVisor, with which it is less than"
            f" {100 * MAX_IDLE_SHARE:.0f} %",
            name="idle kernel",
        )
    ]


def _find_never_paused() -> list[str]:
    """Return the names of the kernelspecs whose idle kernels are not paused."""
    found, config = [], read_configuration()
    for kernelspec in find_kernelspecs():
        with suppress(GvisorKernelError, TraitError):  # other checks tell of a wrong setting
            if not make_provisioner(kernelspec.settings, config).sandbox_spec().idle_stop:
                found.append(kernelspec.name)
    return found


def _cpu_seconds(pid: int) -> float:
    """Return the CPU time of ``pid`` and of its children, which are gVisor's stubs."""
    nanoseconds, waiting = 0, [pid]
    while waiting:
        tasks = Path(f"/proc/{waiting.pop()}/task")
        with suppress(OSError, ValueError):
            for task in tasks.iterdir():
                nanoseconds += int((task / "schedstat").read_text().split()[0])
                waiting += map(int, (task / "children").read_text().split())
    return nanoseconds / 1e9
