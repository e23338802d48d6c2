"""Runs a sandboxed kernel from a plain argv, for front ends that do not know provisioners.

Reads the connection file of the front end, serves the ports in it, and exits when the kernel ends.
SIGINT interrupts the kernel and SIGTERM ends it. At the end stderr names the files of /workspace
that were not kept. If this process is killed, the sandbox ends because its link is closed.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

from gvisor_kernel.changes.compare import find_unkept
from gvisor_kernel.changes.control import ControlSocket
from gvisor_kernel.changes.new_files import apply_new_files
from gvisor_kernel.errors import LaunchError
from gvisor_kernel.jupyter.plan_factory import make_plan
from gvisor_kernel.kernel.client import CHANNELS
from gvisor_kernel.kernel.plan import KernelPlan
from gvisor_kernel.kernel.session import SandboxedKernel

STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


def read_connection_file(path: str) -> dict[str, Any]:
    """Return the connection info in the file ``path``.

    :raises LaunchError: when the file cannot be read or lacks an entry
    """
    try:
        info = json.loads(Path(path).read_text())
        if info["transport"] not in ("tcp", "ipc") or not isinstance(info["key"], str):
            raise ValueError("its transport or its key is invalid")
        for name in CHANNELS:
            info[name] = int(info[name])
    except (OSError, ValueError, KeyError, TypeError) as error:
        is_missing = isinstance(error, KeyError)
        reason = f"it has no {error}" if is_missing else getattr(error, "strerror", None) or error
        raise LaunchError(
            f"The connection file {path} cannot be used: {reason}.",
            "pass a connection file that a Jupyter front end wrote (-f).",
        ) from error
    return dict(info)


def run_launcher(connection_file: str, kernel_name: str) -> int:
    """Run a kernel until it ends; return its exit status, or 128 plus its signal. Blocks.

    :raises GvisorKernelError: when it cannot be started
    """
    info = read_connection_file(connection_file)
    plan = make_plan(kernel_name, info, Path(connection_file).stem)
    return asyncio.run(_serve(plan))


async def _serve(plan: KernelPlan) -> int:
    loop = asyncio.get_running_loop()
    kernel = SandboxedKernel(judge_left=find_unkept, apply_new=apply_new_files)
    control = ControlSocket(kernel)
    parent = os.getppid()
    stopping = asyncio.Event()
    interrupts: set[asyncio.Task[None]] = set()

    def interrupt() -> None:
        task = loop.create_task(kernel.signal(signal.SIGINT))
        interrupts.add(task)
        task.add_done_callback(interrupts.discard)

    loop.add_signal_handler(signal.SIGINT, interrupt)
    for signum in STOP_SIGNALS:
        loop.add_signal_handler(signum, stopping.set)
    try:
        launching = asyncio.ensure_future(kernel.launch(plan))
        # no timeout: awaited together with the kernel's life, which is polled
        stopped = asyncio.ensure_future(stopping.wait())
        # no timeout: start_timeout bounds the first, a signal ends the second
        await asyncio.wait({launching, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not launching.done():
            launching.cancel()
            return 128 + signal.SIGTERM
        launching.result()  # no timeout: it is done
        with suppress(OSError):  # a kernel works without it
            await control.open()
        while (status := kernel.exit_status) is None and not stopping.is_set():
            await asyncio.wait({stopped}, timeout=0.1)
            if os.environ.get("JPY_PARENT_PID") and os.getppid() != parent:
                break  # a kernel ends with its front end, as with ipykernel
        if status is None:
            # PID 1 names the files that are not kept at the end of a kernel, not of a sandbox.
            await kernel.expect_end(restart=False)
            await kernel.kill()
            return 128 + signal.SIGTERM
        return status if status >= 0 else 128 - status
    finally:
        stopped.cancel()
        await control.close()
        await kernel.close()
