"""A kernel that is a fork of PID 1, whose interpreter has already imported ipykernel.

So neither a start nor a restart in the same sandbox waits for the interpreter or the imports, and
kernels share the memory of imported modules that they only read. A kernel cannot change PID 1: PID
1 is in another user namespace.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import NoReturn

from gvisor_kernel.guest import python_kernel
from gvisor_kernel.guest.interpreter import lone_imports, with_stack_room
from gvisor_kernel.guest.resume import reseed

EARLY_PREFIXES = ("PYTHON", "LD_", "LC_", "LANG", "MALLOC_", "GLIBC_")
"""Prefixes of variables that an interpreter reads when it starts."""


def import_ahead(names: Sequence[str]) -> bool:
    """Import the modules ``names`` and the ipykernel adapter.

    Returns False if there are none, or one fails: kernels are then started by exec.
    """
    if not names:
        return False

    def import_all() -> None:
        for name in (*names, "gvisor_kernel.guest.ipykernel_adapter"):
            importlib.import_module(name)
        with contextlib.suppress(ImportError):
            importlib.import_module("pexpect")  # IPython's first !command would import it

    try:
        with lone_imports():
            with_stack_room(import_all)()
    except Exception as error:
        print(f"{names[0]} cannot be imported: {error}", file=sys.stderr)
        return False
    gc.collect()
    gc.freeze()  # otherwise the garbage collector of each kernel would write to every page
    return True


def find_forked_argv(argv: Sequence[str], environment: Mapping[str, str]) -> list[str] | None:
    """Return the ``sys.argv`` of ``python_kernel`` if a fork can replace the command ``argv``.

    It can if ``argv`` runs ``python_kernel`` with this interpreter and its options, and if no
    variable differs that an interpreter reads when it starts. Otherwise return None.
    """
    own = [sys.executable, "-Xfrozen_modules=off", python_kernel.__file__]
    if list(argv[:3]) != own:
        return None
    for name in {*environment, *os.environ}:
        if name.startswith(EARLY_PREFIXES) and environment.get(name) != os.environ.get(name):
            return None
    return list(argv[2:])


def run_in_fork(argv: list[str], environment: Mapping[str, str]) -> NoReturn:
    """Run the kernel in this process and exit with its status. Never returns.

    The process must be a forked child whose descriptors are set up.
    """
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        os.environ.clear()
        os.environ.update(environment)
        if "TZ" in environment:
            time.tzset()
        sys.argv[:] = argv
        with contextlib.suppress(ValueError):
            sys.path.remove(python_kernel.GUEST)
        reseed(os.urandom(64))
        try:
            python_kernel.main()
            status = 0
        except SystemExit as error:
            status = _find_exit_status(error)
        except BaseException:
            traceback.print_exc()
        # The same steps as at the end of an interpreter.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(status)


def _find_exit_status(error: SystemExit) -> int:
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    print(error.code, file=sys.stderr)
    return 1
