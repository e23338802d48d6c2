"""``install`` and ``uninstall``: add a kernelspec to Jupyter, remove it.

What they do is in ``kernelspecs.py``, whose imports their help does not wait for.
"""

from __future__ import annotations

import argparse
import sys

from gvisor_kernel.cli.arguments import add_settings

PLACES = """\
default place, without --user, --sys-prefix and --prefix:
  if this command is in a virtual or conda environment, that environment;
  otherwise, for root: the whole system; for other users: that user.
"""


def add_place(command: argparse.ArgumentParser) -> None:
    """Add the options that name a place of Jupyter's kernelspecs; at most one may be given."""
    place = command.add_mutually_exclusive_group()
    place.add_argument(
        "--user", action="store_true", help="in this user's data directory of Jupyter"
    )
    place.add_argument(
        "--sys-prefix", action="store_true", help=f"in this Python environment, {sys.prefix}"
    )
    place.add_argument("--prefix", metavar="P", help="in P/share/jupyter/kernels")


def add_install(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``install``."""
    parser.epilog = PLACES
    add_place(parser)
    parser.add_argument(
        "--update",
        action="store_true",
        help="keep the settings and names of the installed kernelspec, but for what is named here",
    )
    parser.add_argument(
        "--language",
        choices=("python", "bash", "typescript", "java"),
        help="the language of the kernel (default: python). Kernels of other languages have to"
        " be installed in this environment, or in the image: see docs/languages.md",
    )
    parser.add_argument(
        "--name", help="the name of the kernelspec, for programs (default: gvisor-LANGUAGE)"
    )
    parser.add_argument(
        "--display-name",
        metavar="TEXT",
        help="the name that people see in Jupyter's list of kernels",
    )
    add_settings(parser, "a setting of this kernelspec, such as memory_limit=16G", ", such as 8G")
    parser.add_argument(
        "--image",
        metavar="NAME",
        help='the image that kernels run in: a name that "gvisor-kernel image list" shows (default:'
        " the Python environment of this machine)",
    )
    parser.add_argument(
        "--egress",
        metavar="ROUTE",
        action="append",
        default=[],
        help='a route to the network that "gvisor-kernel egress list" shows, such as packages; may'
        " be repeated, and may be a list with commas (default: no network)",
    )
    parser.add_argument(
        "--with",
        metavar="PACKAGES",
        dest="packages",
        action="append",
        default=[],
        help='Python packages that the kernels have from their start, such as "polars duckdb>=1.1";'
        " they are installed once, in a sandbox, from the package indexes of this machine",
    )
    parser.add_argument(
        "--default",
        action="store_true",
        dest="is_default",
        help="also let servers start kernels in sandboxes whose kernelspec says nothing about it",
    )
    parser.add_argument(
        "--replace-python3",
        action="store_true",
        help="also replace the kernelspec python3, which most programs start; the original is kept",
    )
    parser.add_argument(
        "--yes",
        action="store_true",
        help="where there is no runsc, install a current gVisor without a question, as"
        ' "gvisor-kernel runsc install" does, which takes one to two minutes (default: ask at a'
        " terminal, before anything is fetched)",
    )
    parser.add_argument(
        "--no-snapshot",
        action="store_true",
        help="do not make the snapshot from which kernels start now, which takes seconds:"
        " it is then made in the background, after the first start or by a Jupyter server",
    )


def run_install(arguments: argparse.Namespace) -> None:
    """``install``: write a kernelspec and print where.

    :raises GvisorKernelError: see ``kernelspecs.install``
    """
    from gvisor_kernel.cli.kernelspecs import install

    install(arguments)


def add_uninstall(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``uninstall``."""
    parser.epilog = (
        "Without --user, --sys-prefix and --prefix, it removes every kernelspec of that name that\n"
        "Jupyter finds and that gvisor-kernel has installed."
    )
    add_place(parser)
    parser.add_argument(
        "--name", default="gvisor-python", help="the name of the kernelspec (default: %(default)s)"
    )
    parser.add_argument(
        "--default",
        action="store_true",
        dest="is_default",
        help="undo install --default and --replace-python3 instead",
    )


def run_uninstall(arguments: argparse.Namespace) -> None:
    """``uninstall``: remove every kernelspec of that name that is gvisor-kernel's.

    :raises KernelspecError: when there is none, or it cannot be removed
    """
    from gvisor_kernel.cli.kernelspecs import uninstall

    uninstall(arguments)
