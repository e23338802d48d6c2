"""What a runsc wants of a sandbox without saying so: tried once in a small sandbox, and remembered.

A release is known here by what it does, never by its number. What runsc says of itself, its flags
and its version, is ``runsc_cli``'s.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from gvisor_kernel.errors import StateError
from gvisor_kernel.host import commands, processes
from gvisor_kernel.host.locks import ThreadLock
from gvisor_kernel.host.private_directories import read_file, write_file
from gvisor_kernel.runtimes.runsc.command_line import Runsc
from gvisor_kernel.runtimes.state.records import state_root
from gvisor_kernel.spec.oci import CAPABILITIES, SETFCAP

log = logging.getLogger(__name__)

PROBE_SECONDS = 20.0
"""A sandbox of runsc's own making takes a fifth of a second, on a busy machine some."""
PROBE_BYTES = 65536
FILE = "features.json"
FILE_BYTES = 65536
MAX_REMEMBERED = 8
"""Files that were runsc on this machine; the oldest are forgotten."""

PROBE = """
import ctypes, os, struct
libc = ctypes.CDLL(None, use_errno=True)

def may_map():
    unshared, over = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        libc.unshare(0x10000000)
        os.write(unshared[1], b".")
        os.read(over[0], 1)
        os._exit(0)
    os.read(unshared[0], 1)
    try:
        with open(f"/proc/{pid}/uid_map", "w") as file:
            file.write("1000 0 1")
        return "yes"
    except PermissionError:
        return "no"
    finally:
        os.write(over[1], b".")
        os.waitpid(pid, 0)

with_it = may_map()
header = struct.pack("=II", 0x20080522, 0)
sets = ctypes.create_string_buffer(24)
assert libc.capget(header, sets) == 0
masks = [mask & ~(1 << 31) for mask in struct.unpack("=6I", sets)[:3]]
assert libc.capset(header, struct.pack("=6I", *masks, *struct.unpack("=6I", sets)[3:])) == 0
print(f"maps uid 0 with CAP_SETFCAP: {with_it}, without: {may_map()}")
"""
"""What PID 1 does for a kernel, as root with all capabilities and as one that lacks CAP_SETFCAP."""

_ANSWER = re.compile(r"^maps uid 0 with CAP_SETFCAP: (yes|no), without: (yes|no)$", re.MULTILINE)

_known: dict[str, bool] = {}
_lock = ThreadLock()


def init_capabilities(runsc: Runsc, kernel_id: int) -> tuple[str, ...]:
    """Those of PID 1 in a sandbox of ``runsc``, where a kernel has the uid ``kernel_id``. Blocks
    for up to a second the first time.

    CAP_SETFCAP only where no kernel could be started without: the process of a sandbox has on the
    host what PID 1 has inside, where runsc does not need it itself.
    """
    return (*CAPABILITIES, SETFCAP) if kernel_id == 0 and wants_setfcap(runsc) else CAPABILITIES


def wants_setfcap(runsc: Runsc) -> bool:
    """Whether a process needs CAP_SETFCAP to map uid 0 into a user namespace, as on Linux 5.12.

    False also where that cannot be found out now: then a kernel says why it does not start.
    """
    key = f"{runsc.path} {runsc.fingerprint}"
    with _lock:
        if key not in _known:
            remembered = _read_remembered()
            if key in remembered:
                _known[key] = remembered[key]
                return _known[key]
            found = _try(runsc)
            if found is None:
                return False
            _known[key] = found
            _remember({**remembered, key: found})
        return _known[key]


def _try(runsc: Runsc) -> bool | None:
    """What a sandbox of runsc's own making shows; None where it shows nothing."""
    words = ""
    for python in dict.fromkeys((sys.executable, "/usr/bin/python3")):
        words = _probe(runsc, python)
        answer = _ANSWER.search(words)
        if answer is not None and "yes" in answer.groups():
            return answer[2] == "no"
    log.warning(
        "What %s wants cannot be tried, as its sandbox said only: %s",
        runsc.path,
        " ".join(words.split())[-300:] or "nothing",
    )
    return None


def _probe(runsc: Runsc, python: str) -> str:
    """What PROBE printed. The whole host is shown to it, read-only, and no network."""
    with tempfile.TemporaryDirectory(prefix="gvisor-kernel-probe-") as root:
        argv = ["unshare", "-Ur", runsc.path, f"--root={root}", "--network=none"]
        argv += ["--ignore-cgroups", "--platform=systrap", "do", "-quiet", "-cwd", "/"]
        argv += [python, "-I", "-S", "-c", PROBE]
        try:
            (ended,) = commands.run(argv, seconds=PROBE_SECONDS, most=PROBE_BYTES, cwd=Path("/"))
        except OSError as error:
            return str(error)
        if ended.status is None:  # what runsc starts leaves its process group
            processes.kill_with_argument(f"--root={root}")
        return ended.words


# -- what was found out, for other processes and the next ones -------------------------------------


def _read_remembered() -> dict[str, bool]:
    found: Any = None
    with suppress(OSError, ValueError, RecursionError, StateError):
        found = json.loads(read_file(state_root() / FILE, FILE_BYTES))
    if not isinstance(found, dict):
        return {}
    return {key: value for key, value in found.items() if isinstance(value, bool)}


def _remember(answers: dict[str, bool]) -> None:
    """Quiet where it cannot be written: then it is tried again."""
    newest = dict(list(answers.items())[-MAX_REMEMBERED:])
    with suppress(OSError, StateError), tempfile.TemporaryDirectory(dir=state_root()) as folder:
        draft = Path(folder, FILE)
        write_file(draft, json.dumps(newest))
        draft.replace(state_root() / FILE)
