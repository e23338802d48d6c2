"""``version``: the versions that a bug report should name."""

from __future__ import annotations

import argparse
import platform
from importlib import metadata

from gvisor_kernel import __version__
from gvisor_kernel.config.settings import DEFAULT_RUNTIME
from gvisor_kernel.errors import RuntimeMissing
from gvisor_kernel.runtimes import get_runtime

LIBRARIES = ("ipykernel", "jupyter_client", "pyzmq", "traitlets")


def add_version(parser: argparse.ArgumentParser) -> None:
    """Declare that ``version`` has no arguments."""


def run_version(arguments: argparse.Namespace) -> None:
    """``version``: print a line for each program and library. A missing one is no error."""
    print(f"gvisor-kernel {__version__}")
    try:
        print(f"{DEFAULT_RUNTIME} {get_runtime(DEFAULT_RUNTIME).find_version()}")
    except RuntimeMissing as error:
        print(f"{DEFAULT_RUNTIME}: {error.fact}")
    print(f"python {platform.python_version()} on Linux {platform.release()}")
    for library in LIBRARIES:
        print(f"{library} {metadata.version(library)}")
