"""What makes a kernel restored from an image another kernel than all others of that image.

Runs in the kernel's process, before any message of its new clients is read. Only what this process
has loaded is touched. What stays the same in all copies: the hash secret of ``str``, the layout of
the address space, and generators that a preloaded module made for itself.
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

if TYPE_CHECKING:
    from gvisor_kernel.link import Resume


def reseed(seed: bytes) -> None:
    """Give every generator that is loaded a state of its own. ``seed``: 64 random bytes."""
    modules = sys.modules
    if "_ssl" in modules:
        modules["_ssl"].RAND_add(seed + os.urandom(64), 64.0)
    if "random" in modules:
        modules["random"].seed(seed + os.urandom(64))
    if "numpy.random" in modules:
        modules["numpy.random"].seed(list(os.urandom(64)))
    if "torch" in modules:
        modules["torch"].manual_seed(int.from_bytes(os.urandom(8), "big") >> 1)
    if "tempfile" in modules:
        modules["tempfile"]._name_sequence = None  # type: ignore[attr-defined]
    if "uuid" in modules:
        renew_uuid(modules["uuid"])
    if "multiprocessing.process" in modules:
        modules["multiprocessing.process"].current_process().authkey = os.urandom(32)


def renew_uuid(module: Any) -> None:
    """Another node and sequence for ``uuid1``. libuuid, which would make them, keeps its own in a
    place that nobody can reach; so Python's own way is taken instead of it."""
    module._generate_time_safe = None
    module._last_timestamp = None
    module._node = int.from_bytes(os.urandom(6), "big") | 1 << 40  # RFC 4122: no address of a card


def settle_in(resume: Resume) -> None:
    """The environment and the working directory; what was known of files is looked up anew."""
    os.environ.update(resume.environment)
    if "TZ" in os.environ:
        time.tzset()
    if "TMPDIR" in os.environ and "tempfile" in sys.modules:
        sys.modules["tempfile"].tempdir = None  # type: ignore[attr-defined]
    with contextlib.suppress(OSError):
        os.chdir(resume.cwd)
    importlib.invalidate_caches()


def rename_kernel(application: Any) -> None:
    """A session and an identity that no copy of the image shares, for an IPKernelApp."""
    session = application.session
    session.session = str(uuid.uuid4())
    session.digest_history.clear()
    session.message_count = 0
    application.kernel.ident = str(uuid.uuid4())
    application.iopub_thread._pipe_uuid = os.urandom(16)


def rekey_kernel(application: Any, key: str) -> None:
    """``key`` for the messages of an IPKernelApp from here on, and in its connection file."""
    application.session.key = key.encode()
    with contextlib.suppress(OSError, ValueError):
        with open(application.connection_file, encoding="utf-8") as file:
            info = json.load(file)
        info["key"] = key
        with open(application.connection_file, "w", encoding="utf-8") as file:
            json.dump(info, file)


def renew() -> None:
    """For a kernel that is spoken to by the relay: run in it as code, as nothing else can."""
    reseed(os.urandom(64))
    importlib.invalidate_caches()
    kernelapp = sys.modules.get("ipykernel.kernelapp")
    if kernelapp is not None and kernelapp.IPKernelApp.initialized():
        rename_kernel(kernelapp.IPKernelApp.instance())
