"""``lab``: open a folder in a JupyterLab that has sandboxes alone."""

from __future__ import annotations

import argparse
import shlex
import sys
from importlib.util import find_spec

from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.shown_text import printable_name

EPILOG = """\
The server shows this folder alone, without links and hidden files, starts no kernels but
sandboxes, has no terminals and no other extensions, and listens on this machine only. It reads
nothing of your Jupyter configuration but the sections GVisorProvisioner, GVisorEgress and
GVisorServer; settings that you change in its page end with it. More options are those of Jupyter,
as --ServerApp.base_url=/x/, but for those that could open the server again. Ctrl-C twice ends it.
"""


def add_lab(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``lab``; the others are those of Jupyter."""
    parser.epilog = EPILOG
    parser.add_argument(
        "folder", nargs="?", default=".", metavar="FOLDER", help="the folder (default: this one)"
    )
    parser.add_argument(
        "--kernel",
        action="append",
        default=[],
        metavar="NAME",
        help="a kernelspec that may be started; may be repeated (default: all of gvisor-kernel)",
    )
    parser.add_argument("--port", type=int, metavar="PORT", help="the port (default: a free one)")
    parser.add_argument("--no-browser", action="store_true", help="open no browser")


def run_lab(arguments: argparse.Namespace) -> None:
    """``lab``: run the server until it is ended.

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
    folder = application.check_folder(arguments.folder)
    if found := application.find_other_names(folder):
        more = f" and {len(found) - 1:,} more" if len(found) > 1 else ""
        print(
            f"gvisor-kernel: {printable_name(str(found[0]))}{more} is shown, and has another name"
            " elsewhere (a hard link): the file there can be read here, and changed.\nWhat to do:"
            " put a copy in its place, if that was not meant.",
            file=sys.stderr,
        )
    application.run_lab(folder, options)
