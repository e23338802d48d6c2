"""The version of this package that is on the disk, beside the one that this process has loaded.

A server may run for weeks while its environment is upgraded. What it starts then, such as the
program in a sandbox, would be of the new version, with orders of the old one.
"""

from __future__ import annotations

import re
from pathlib import Path

import gvisor_kernel
from gvisor_kernel import __version__
from gvisor_kernel.errors import LaunchError

_VERSION = re.compile(r'^__version__ = "([^"\n]{1,64})"$', re.MULTILINE)


def check_installed() -> None:
    """Check that what is installed is what this process has loaded. Reads one small file.

    :raises LaunchError: when it is another version, or is not there any more
    """
    try:
        text = Path(gvisor_kernel.__file__).read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = _VERSION.search(text)
    if found is not None and found[1] == __version__:
        return
    now = "is not installed any more" if found is None else f"{found[1]} is installed now"
    raise LaunchError(
        f"This process runs gvisor-kernel {__version__}, and"
        f" {'it ' if found is None else ''}{now}: no kernel can be started.",
        "restart the server or the program. Kernels that run go on until then.",
    )
