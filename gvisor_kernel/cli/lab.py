"""``lab``: open a folder in a JupyterLab that has sandboxes alone."""

from __future__ import annotations

import argparse
import shlex
import sys
from importlib.util import find_spec

from gvisor_kernel.errors import GvisorKernelError


def run_lab(arguments: argparse.Namespace) -> int:
    """``lab``: run the server until it is ended. Return 0.

    :raises GvisorKernelError: when JupyterLab is missing, or the folder or an option is refused
    """
    if not (find_spec("jupyterlab") and find_spec("jupyter_server")):
        raise GvisorKernelError(
            f"JupyterLab is not installed in this environment ({sys.prefix}).",
            f"{shlex.quote(sys.executable)} -m pip install jupyterlab",
        )
    from gvisor_kernel.lab import application
    from gvisor_kernel.lab.policy import parse_options

    options = parse_options(arguments.rest)
    if arguments.port is not None:
        options.ServerApp.port = arguments.port
    if arguments.no_browser:
        options.ServerApp.open_browser = False
    if arguments.kernel:
        options.KernelSpecManager.allowed_kernelspecs = set(arguments.kernel)
    application.run_lab(application.check_folder(arguments.folder), options)
    return 0
