"""``launch``: run one kernel in a sandbox in the foreground; see ``jupyter/launcher``."""

from __future__ import annotations

import argparse


def run_launch(arguments: argparse.Namespace) -> int:
    from gvisor_kernel.jupyter.launcher import run_launcher

    status: int = run_launcher(arguments.connection_file, arguments.kernel)
    return status
