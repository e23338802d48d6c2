"""What makes a kernel restored from an image another kernel than all others of that image.

Runs in the kernel's process, before any message of its new host is read. Only what this process
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
from typing import Any

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
        modules["uuid"]._last_timestamp = None  # type: ignore[attr-defined]
    if "multiprocessing.process" in modules:
        modules["multiprocessing.process"].current_process().authkey = os.urandom(32)


def settle_in(resume: Resume) -> None:
    """The environment and the working directory; what was known of files is looked up anew."""
    os.environ.update(resume.environment)
    if "TZ" in os.environ:
        time.tzset()
    with contextlib.suppress(OSError):
        os.chdir(resume.cwd)
    importlib.invalidate_caches()


def rename_kernel(application: Any, resume: Resume) -> None:
    """A key, a session and an identity that no copy of the image shares, for an IPKernelApp."""
    session = application.session
    session.key = resume.key.encode()
    session.session = str(uuid.uuid4())
    session.digest_history.clear()
    session.message_count = 0
    application.kernel.ident = str(uuid.uuid4())
    application.iopub_thread._pipe_uuid = os.urandom(16)
    with contextlib.suppress(OSError, ValueError):
        with open(application.connection_file, encoding="utf-8") as file:
            info = json.load(file)
        info["key"] = resume.key
        with open(application.connection_file, "w", encoding="utf-8") as file:
            json.dump(info, file)
