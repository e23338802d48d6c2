"""``launch``: run one kernel in a sandbox in the foreground; see ``jupyter/launcher``."""

from __future__ import annotations

import argparse


def run_launch(arguments: argparse.Namespace) -> int:
    """``launch``: run a kernel until it ends. Return its status, or 128 plus its signal.

    :raises GvisorKernelError: when it cannot be started
    """
    from gvisor_kernel.jupyter.launcher import run_launcher

    status: int = run_launcher(arguments.connection_file, arguments.kernel)
    return status
