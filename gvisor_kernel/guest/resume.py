"""Makes a kernel that was restored from a snapshot different from all other copies of it.

Runs in the kernel process before any message of its new clients is read. Only modules that are
loaded are touched. These stay the same in all copies: the hash secret of ``str``, the layout of the
address space, and generators that a preloaded module created for itself.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import time
import uuid
from typing import TYPE_CHECKING, Any

from gvisor_kernel.guest import installed

if TYPE_CHECKING:
    from gvisor_kernel.link import Resume


def reseed(seed: bytes) -> None:
    """Reseed every random generator that is loaded. ``seed``: 64 random bytes."""
    renew_secrets(seed)
    modules = sys.modules
    if "random" in modules:
        modules["random"].seed(seed + os.urandom(64))
    if "numpy.random" in modules:
        modules["numpy.random"].seed(list(os.urandom(64)))
    if "torch" in modules:
        modules["torch"].manual_seed(int.from_bytes(os.urandom(8), "big") >> 1)


def renew_secrets(seed: bytes) -> None:
    """Renew what no other copy may have. Generators whose numbers code may have asked to be the
    same again, those of ``random``, NumPy and torch, go on as they were."""
    modules = sys.modules
    if "_ssl" in modules:
        modules["_ssl"].RAND_add(seed + os.urandom(64), 64.0)
    if "tempfile" in modules:
        modules["tempfile"]._name_sequence = None  # type: ignore[attr-defined]
    if "uuid" in modules:
        renew_uuid(modules["uuid"])
    if "multiprocessing.process" in modules:
        modules["multiprocessing.process"].current_process().authkey = os.urandom(32)


def renew_uuid(module: Any) -> None:
    """Give ``uuid1`` a new node and sequence.

    libuuid keeps its state where nobody can reach it, so Python's own implementation is used."""
    module._generate_time_safe = None
    module._last_timestamp = None
    module._node = int.from_bytes(os.urandom(6), "big") | 1 << 40  # RFC 4122: not a MAC address


def apply_environment(resume: Resume) -> None:
    """Apply environment and working directory. Caches of file names are cleared."""
    os.environ.update(resume.environment)
    installed.activate(os.environ)
    if "TZ" in os.environ:
        time.tzset()
    if "TMPDIR" in os.environ and "tempfile" in sys.modules:
        sys.modules["tempfile"].tempdir = None  # type: ignore[attr-defined]
    with contextlib.suppress(OSError):
        os.chdir(resume.cwd)
    importlib.invalidate_caches()


def renew_session(application: Any) -> None:
    """Give an IPKernelApp a session and an identity that no other copy has."""
    session = application.session
    session.session = str(uuid.uuid4())
    session.digest_history.clear()
    session.message_count = 0
    application.kernel.ident = str(uuid.uuid4())


def rekey_kernel(application: Any, key: str) -> None:
    """Sign the messages of an IPKernelApp with ``key``, and write it to its connection file."""
    application.session.key = key.encode()
    with contextlib.suppress(OSError, ValueError):
        with open(application.connection_file, encoding="utf-8") as file:
            info = json.load(file)
        info["key"] = key
        with open(application.connection_file, "w", encoding="utf-8") as file:
            json.dump(info, file)


def renew(*, branches: bool = False) -> None:
    """Reseed a relayed kernel; or renew the secrets alone of one that ``branches``. The host
    executes this in it as code: nothing else can reach it."""
    (renew_secrets if branches else reseed)(os.urandom(64))
    importlib.invalidate_caches()
    kernelapp = sys.modules.get("ipykernel.kernelapp")
    if kernelapp is not None and kernelapp.IPKernelApp.initialized():
        renew_session(kernelapp.IPKernelApp.instance())
