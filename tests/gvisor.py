"""Facts about the runsc that the tests run with, for any release."""

from __future__ import annotations

import subprocess
import tempfile
from functools import cache

from gvisor_kernel.runtimes.runsc.command_line import find_runsc


@cache
def gvisor_release() -> str:
    """Return the release of gVisor's kernel, from ``uname -r`` in a sandbox of ``runsc do``."""
    with tempfile.TemporaryDirectory() as root:
        argv = ["unshare", "-Ur", find_runsc().path, f"--root={root}", "--network=none"]
        argv += ["--ignore-cgroups", "--platform=systrap", "do", "-quiet", "-cwd", "/"]
        argv += ["/bin/uname", "-r"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.split()[-1]
