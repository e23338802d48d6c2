"""A kernel that is a fork of PID 1: its interpreter has started, and imported ipykernel, already.

So a start waits for neither, nor does a restart in the same sandbox; and what a kernel only reads
of the imported modules is in memory once. PID 1 cannot be changed by a kernel: its user namespace
is another one.
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
from typing import List, NoReturn, Optional

from gvisor_kernel.guest import python_kernel
from gvisor_kernel.guest.resume import reseed

EARLY_PREFIXES = ("PYTHON", "LD_", "LC_", "LANG", "MALLOC_", "GLIBC_")
"""Variables that an interpreter reads as it starts."""


def import_ahead(names: Sequence[str]) -> bool:
    """Import what a kernel will need. False, where it cannot be: then kernels start by exec."""
    if not names:
        return False
    try:
        for name in names:
            importlib.import_module(name)
        importlib.import_module("gvisor_kernel.guest.ipykernel_adapter")
    except Exception as error:
        print(f"{names[0]} cannot be imported: {error}", file=sys.stderr)
        return False
    gc.collect()
    gc.freeze()  # else the collector of each kernel would write to every page
    return True


def find_module(argv: Sequence[str], environment: Mapping[str, str]) -> Optional[List[str]]:
    """``sys.argv`` for ``python_kernel``, if a fork of this process can be what ``argv`` starts.

    It can where that is the same interpreter with the same options, running ``python_kernel``,
    and no variable differs that it would read as it starts.
    """
    own = [sys.executable, "-Xfrozen_modules=off", python_kernel.__file__]
    if list(argv[:3]) != own:
        return None
    for name in {*environment, *os.environ}:
        if name.startswith(EARLY_PREFIXES) and environment.get(name) != os.environ.get(name):
            return None
    return list(argv[2:])


def become(argv: List[str], environment: Mapping[str, str]) -> NoReturn:
    """Run the kernel in this process, a forked child that has its descriptors, and end with it."""
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
            status = _status_of(error)
        except BaseException:
            traceback.print_exc()
        # As an interpreter ends.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(status)


def _status_of(error: SystemExit) -> int:
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    print(error.code, file=sys.stderr)
    return 1
