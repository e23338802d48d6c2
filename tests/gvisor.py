"""What the tests know of the runsc that they run with, whichever release it is."""

from __future__ import annotations

import subprocess
import tempfile
from functools import cache

from gvisor_kernel.runtimes.runsc.command_line import find_runsc


@cache
def gvisor_release() -> str:
    """What gVisor's kernel calls itself: asked in a sandbox of runsc's own making."""
    with tempfile.TemporaryDirectory() as root:
        argv = ["unshare", "-Ur", find_runsc().path, f"--root={root}", "--network=none"]
        argv += ["--ignore-cgroups", "--platform=systrap", "do", "-quiet", "-cwd", "/"]
        argv += ["/bin/uname", "-r"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.split()[-1]
