"""Has matplotlib's list of fonts made before a snapshot is taken, by a process that then ends.

matplotlib looks at each font of the system the first time that it is imported, and keeps what it
found below the home. A kernel's home is empty, so each one would do it again: a fifth of the time
of an import of pyplot. With the list in the snapshot, a restored kernel has it as a person's own
home has it. matplotlib itself makes a new one when it is of another version or names a font that is
gone.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys

SECONDS = 60.0
"""How long the list may take. A thousand fonts take some seconds, on a busy machine ten times that.
After it the snapshot is taken without the list."""
PACKAGE = "matplotlib"
MODULE = "matplotlib.font_manager"


def make(seconds: float = SECONDS) -> bool:
    """Make the list if this interpreter has matplotlib. Return whether there is one then.

    In a process of its own: this one would keep the modules, some 50 MiB. Blocks for ``seconds`` at
    most, leaves no process, and never raises.
    """
    try:
        if MODULE in sys.modules:  # it was preloaded
            return True
        if importlib.util.find_spec(PACKAGE) is None:
            return False
        process = subprocess.Popen(
            [sys.executable, "-c", f"import {MODULE}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # it may start fc-list
        )
    except (ImportError, OSError, ValueError):
        return False
    try:
        return process.wait(seconds) == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the process's group, and reap the process."""
    with contextlib.suppress(OSError):  # the group has ended, as it should
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
