"""``launch``: run one kernel in a sandbox in the foreground; see ``jupyter/launcher``."""

from __future__ import annotations

import argparse


def add_launch(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``launch``."""
    parser.epilog = (
        "SIGINT interrupts the kernel. SIGTERM, or the end of this process, ends the sandbox."
    )
    parser.set_defaults(run=run_launch)
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
