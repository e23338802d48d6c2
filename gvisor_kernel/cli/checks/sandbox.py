"""The check that counts: a sandbox started in the way in which a kernel's is, up to its guest."""

from __future__ import annotations

import select
import sys
import time
from pathlib import Path

from gvisor_kernel.cli.checks.base import Check
from gvisor_kernel.config import SandboxSpec
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.runtimes import get_runtime
from gvisor_kernel.runtimes.base import LaunchRequest

SECONDS = 20.0
"""How long the guest may take to say its first word."""


def check_sandbox() -> Check:
    """Nothing of the host is shown to this sandbox but the Python environment itself."""
    spec = SandboxSpec(uploads=None, outputs=None, transcripts=False)
    request = LaunchRequest("doctor", "", Path("/"), sys.executable, {})
    started = time.monotonic()
    try:
        sandbox = get_runtime(spec.runtime).start(spec, request)
    except GvisorKernelError as error:
        evidence = error.detail.splitlines()[-1:]
        return Check(
            "sandbox",
            "failed",
            " ".join([error.fact, *evidence]),
            error.hint or "see the lines above",
        )
    try:
        poller = select.poll()
        for descriptor in (sandbox.link_out, sandbox.exit_fd):
            poller.register(descriptor, select.POLLIN)
        ready = [descriptor for descriptor, _ in poller.poll(SECONDS * 1000)]
        if sandbox.link_out in ready and sandbox.poll() is None:
            seconds = time.monotonic() - started
            return Check("sandbox", "ok", f"its guest answered after {seconds:.1f} s")
        last = sandbox.stderr_tail().splitlines()[-1:] or ["it wrote nothing"]
        what = "ended" if ready else f"said nothing for {SECONDS:g} s"
        return Check(
            "sandbox", "failed", f"the sandbox {what}: {last[0][:300]}", "see the lines above"
        )
    finally:
        sandbox.close()
