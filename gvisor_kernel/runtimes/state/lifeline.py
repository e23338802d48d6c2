"""Starts a process that removes this process's sandboxes when this process is killed.

A shell waits at the end of a pipe that only this process holds open. While there are sandboxes it
costs a megabyte and no CPU time. It is told to end when the last sandbox is closed. When this
process dies, in whatever way, the pipe ends, and the shell executes ``after_owner``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import gvisor_kernel
from gvisor_kernel.config.settings import find_entry
from gvisor_kernel.host.processes import ProcessId

_SCRIPT = 'read -r word && exit 0; exec "$@"'
KEPT = (
    *("HOME", "PATH", "XDG_STATE_HOME", "PYTHONHOME", "LD_LIBRARY_PATH", "TMPDIR"),
    # To find the person's keyring, of ``hibernate_key``.
    *("DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR", "XDG_DATA_HOME", "XDG_CONFIG_HOME"),
    "PYTHON_KEYRING_BACKEND",
)
"""Variables of this process that the sweep has beside those that a runtime's entry names."""

_lock = threading.Lock()  # no timeout: held while a shell ends, at most 5 s
_held = 0
_kept = set(KEPT)
_process: subprocess.Popen[bytes] | None = None


def hold(owner: ProcessId, runtime: str) -> None:
    """Count one more sandbox, and start the shell if it does not run, or lacks variables.

    ``owner`` is this process, ``runtime`` the sandbox's.

    Never raises: without the shell the next sweep removes the sandbox. Any thread.
    """
    global _held, _process
    with _lock:
        _held += 1
        lacks = set(find_entry(runtime).variables) - _kept
        _kept.update(lacks)
        if lacks or _process is None or _process.poll() is not None:
            _end_shell()
            with suppress(OSError):
                _process = _start_shell(owner)


def release() -> None:
    """Count one sandbox less; the last one ends the shell. Never raises. Any thread."""
    global _held
    with _lock:
        _held = max(_held - 1, 0)
        if _held == 0:
            _end_shell()


def _end_shell() -> None:
    global _process
    process, _process = _process, None
    if process is not None and process.stdin is not None:
        with suppress(OSError):
            process.stdin.write(b"done\n")
        with suppress(OSError):
            process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)


def _start_shell(owner: ProcessId) -> subprocess.Popen[bytes]:
    environment = {name: os.environ[name] for name in _kept if name in os.environ}
    # The shell's Python imports the same copy of this package.
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(Path(gvisor_kernel.__file__).parent.parent), *(path for path in sys.path if path)]
    )
    sweep = [sys.executable, "-P", "-m", "gvisor_kernel.runtimes.state.after_owner"]
    return subprocess.Popen(
        ["/bin/sh", "-c", _SCRIPT, "gvisor-kernel", *sweep, str(owner.pid), str(owner.started)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd="/",
        bufsize=0,
        start_new_session=True,
    )


def _reset_after_fork() -> None:
    """Close the pipe in a forked child, so that the end of its parent is noticed."""
    global _held, _process, _lock
    _lock = threading.Lock()  # no timeout: held while a shell ends, at most 5 s
    process, _process, _held = _process, None, 0
    if process is not None and process.stdin is not None:
        with suppress(OSError):
            process.stdin.close()
        process.returncode = 0  # not this process's child


os.register_at_fork(after_in_child=_reset_after_fork)
