"""The stop of a server: each signal in the same way, and whatever has failed before.

What its kernels do then is in ``hibernating``.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Any


def stop_on_signals() -> None:
    """Let SIGINT and SIGHUP stop the server as SIGTERM does, where nobody else handles them.

    Jupyter's server handles SIGINT only if its input is a terminal: a supervisor's, as that of
    JupyterHub, ended its loop without a stop, and the next server had no kernels. A signal that is
    ignored, as nohup has it, stays so; in a program that does not handle SIGTERM nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # only the main thread may set handlers
    if not callable(signal.getsignal(signal.SIGTERM)):
        return
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    for signum, handler in usual.items():
        if signal.getsignal(signum) == handler:
            signal.signal(signum, lambda *_: os.kill(os.getpid(), signal.SIGTERM))


def forget_failed_starts(manager: Any) -> None:
    """Let ``shutdown_all`` of the server's ``manager`` of kernels end after a failed start.

    jupyter_client (8.6 to 8.9) keeps the kernel of a start that failed among the pending ones;
    Jupyter's server then looks for it, "Kernel does not exist", and its stop is given up.
    """
    pending = getattr(manager, "_pending_kernels", {})
    for kernel_id, start in list(pending.items()):
        if start.done() and kernel_id not in manager:
            del pending[kernel_id]
