"""``launch``: one kernel in a sandbox behind a plain argv. The work is gvisor_kernel.launch's."""

from __future__ import annotations

import argparse


def run_launch(arguments: argparse.Namespace) -> int:
    from gvisor_kernel.launch import run_launcher

    status: int = run_launcher(arguments.connection_file, arguments.kernel)
    return status
