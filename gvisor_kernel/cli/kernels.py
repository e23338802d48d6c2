"""``start`` and ``launch``: run one kernel, to see how long that takes, or as a front end's kernel.

The kernel of a front end waits for the imports of this module: it has few.
"""

from __future__ import annotations

import argparse

from gvisor_kernel.tracing import Trace, tracing


def try_start(kernel_name: str) -> Trace:
    """Start a kernel of a kernelspec, run a cell in it and shut it down.

    :raises GvisorKernelError: when the kernel does not start, or does not reply
    """
    # What this needs takes half a second to import, which the command's help does not wait for.
    import asyncio

    from gvisor_kernel.jupyter.plan_factory import make_plan
    from gvisor_kernel.kernel.client import connect, private_connection_info, wait_for_reply
    from gvisor_kernel.kernel.session import SandboxedKernel

    plan = make_plan(kernel_name, private_connection_info(), "")
    kernel = SandboxedKernel(logs_death=False)
    with tracing() as trace:
        try:
            with connect(asyncio.run(kernel.launch(plan)), plan, kernel.find_end) as client:
                wait_for_reply(client, client.kernel_info())
                trace.note("kernel_info answered")
                wait_for_reply(client, client.execute("1 + 1"))
                trace.note("first cell run")
        finally:
            asyncio.run(kernel.close())
    return trace


def add_start(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``start``."""
    parser.epilog = (
        "Jupyter servers log the same steps with the logger gvisor_kernel.tracing at level DEBUG."
    )
    parser.add_argument(
        "--kernel",
        default="gvisor-python",
        metavar="NAME",
        help="the kernelspec to start (default: %(default)s)",
    )
    parser.add_argument("--trace", action="store_true", help="print each step, in milliseconds")


def run_start(arguments: argparse.Namespace) -> None:
    """``start``: run a cell in a new kernel, and print how long that took.

    :raises GvisorKernelError: when the kernel does not start, or does not reply
    """
    trace = try_start(arguments.kernel)
    if arguments.trace:
        last = 0.0
        print("   at ms  took ms")
        for words, seconds in trace.steps:
            print(f"{1e3 * seconds:8.0f} {1e3 * (seconds - last):8.0f}  {words}")
            last = seconds
    else:
        print(f"{arguments.kernel}: the first cell finished after {trace.steps[-1][1]:.2f} s")


def add_launch(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``launch``."""
    parser.epilog = (
        "SIGINT interrupts the kernel. SIGTERM, or the end of this process, ends the sandbox."
    )
    parser.add_argument(
        "-f",
        "--connection-file",
        required=True,
        metavar="FILE",
        help="the connection file that a Jupyter front end wrote",
    )
    parser.add_argument(
        "--kernel",
        default="gvisor-python",
        metavar="NAME",
        help="the kernelspec whose settings apply (default: %(default)s)",
    )


def run_launch(arguments: argparse.Namespace) -> int:
    """``launch``: run a kernel until it ends. Return its status, or 128 plus its signal.

    :raises GvisorKernelError: when it cannot be started
    """
    from gvisor_kernel.jupyter.launcher import run_launcher

    status: int = run_launcher(arguments.connection_file, arguments.kernel)
    return status
