"""Makes matplotlib's list of fonts before a snapshot is taken, in a process that then ends.

matplotlib looks at each font of the system the first time that it is imported, and keeps what it
found below the home. A kernel's home is empty, so each one would do it again: where a snapshot has
not imported pyplot itself, an import of numpy, pandas and pyplot takes 1.3 times the time and the
CPU time without the list (medians of 18 interleaved rounds). With it in the snapshot, a restored
kernel has it as a person's own home has it. matplotlib itself makes a new one when it is of another
version or names a font that is gone.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

SECONDS = 60.0
"""Seconds that the list may take. A thousand fonts take some seconds, on a busy machine ten times
that. After it the snapshot is taken without the list."""
PACKAGE = "matplotlib"
MODULE = "matplotlib.font_manager"
WHOLE = re.compile(r"fontlist-.*\.json|.*\.cache-\d+|CACHEDIR\.TAG")
"""Names of the files that matplotlib and fontconfig leave when they have ended well."""


def make(seconds: float = SECONDS) -> bool:
    """Make the list if this interpreter has matplotlib. Return whether there is one then.

    In a process of its own: this one would keep the modules, some 50 MiB. Blocks for ``seconds`` at
    most, leaves no process, and never raises.

    The list is written elsewhere, and its files are moved into the home when they are whole. Half
    of a list, or the lock of a process that was killed, would be in each kernel of the snapshot:
    there matplotlib waits 5 s for such a lock, and fontconfig reads all fonts again for minutes.
    """
    try:
        if MODULE in sys.modules:  # it was preloaded
            return True
        if importlib.util.find_spec(PACKAGE) is None:
            return False
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        home.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix="fonts-", dir=home))
    except (ImportError, OSError, RuntimeError, ValueError):
        return False
    try:
        if not _run(seconds, fresh):
            return False
        for name, place in (
            ("matplotlib", os.environ.get("MPLCONFIGDIR") or home / "matplotlib"),
            ("fontconfig", home / "fontconfig"),
        ):
            _move(fresh / name, Path(place))
        return True
    except OSError:
        return False
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _run(seconds: float, cache: Path) -> bool:
    """Have the list made in the folder ``cache``; return whether that went well."""
    inherited = {name: value for name, value in os.environ.items() if name != "MPLCONFIGDIR"}
    process = subprocess.Popen(
        [sys.executable, "-c", f"import {MODULE}"],
        env={**inherited, "XDG_CACHE_HOME": str(cache)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # it may start fc-list
    )
    try:
        return process.wait(seconds) == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        _end(process)


def _move(made: Path, place: Path) -> None:
    """Move the files that are whole, each at once."""
    whole = [path for path in made.glob("*") if WHOLE.fullmatch(path.name)]
    if whole:
        place.mkdir(parents=True, exist_ok=True)
    for path in whole:
        path.replace(place / path.name)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the process's group, and reap the process."""
    with contextlib.suppress(OSError):  # the group has ended, as it should
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
