"""Finds the capabilities that a runsc needs: tries it once in a small sandbox, and remembers.

A release is known by what it does, never by its number. The flags and the version of runsc are read
in ``command_line``.
"""

from __future__ import annotations

import logging
import re
import sys
import tempfile
from pathlib import Path

from gvisor_kernel.host import commands, processes
from gvisor_kernel.host.locks import ThreadLock
from gvisor_kernel.runtimes.runsc.command_line import Runsc, keep_answers, read_answers
from gvisor_kernel.spec.oci import CAPABILITIES, SETFCAP

log = logging.getLogger(__name__)

PROBE_SECONDS = 20.0
"""Seconds that the probe may take. ``runsc do`` takes a fifth of a second, on a busy machine some
seconds."""
PROBE_BYTES = 65536
"""Bytes of the probe's output that are read."""
QUESTION = "wants CAP_SETFCAP"

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
"""Does what PID 1 does for a kernel: as root with all capabilities, then without CAP_SETFCAP."""

_ANSWER = re.compile(r"^maps uid 0 with CAP_SETFCAP: (yes|no), without: (yes|no)$", re.MULTILINE)

_known: dict[str, bool] = {}
_lock = ThreadLock()


def init_capabilities(runsc: Runsc, kernel_id: int) -> tuple[str, ...]:
    """Return the capabilities of PID 1 in a sandbox whose kernel has the uid ``kernel_id``.

    Blocks for up to a second the first time. CAP_SETFCAP is added only where no kernel could be
    started without it: releases that do not need it give the sandbox's process on the host the
    capabilities that PID 1 has inside.
    """
    return (*CAPABILITIES, SETFCAP) if kernel_id == 0 and wants_setfcap(runsc) else CAPABILITIES


def wants_setfcap(runsc: Runsc) -> bool:
    """Return whether a process needs CAP_SETFCAP to map uid 0 into a user namespace (as on Linux
    5.12).

    False also where the probe fails now. Then the kernel's error says why it does not start.
    """
    with _lock:
        if runsc.program not in _known:
            found = read_answers(runsc.program).get(QUESTION)
            if not isinstance(found, bool):
                found = _run_probes(runsc)
                if found is None:
                    return False
                keep_answers(runsc.program, {QUESTION: found})
            _known[runsc.program] = found
        return _known[runsc.program]


def _run_probes(runsc: Runsc) -> bool | None:
    """Return what a sandbox of ``runsc do`` shows, or None where it shows nothing."""
    words = ""
    for python in dict.fromkeys((sys.executable, "/usr/bin/python3")):
        words = _probe(runsc, python)
        answer = _ANSWER.search(words)
        if answer is not None and "yes" in answer.groups():
            return answer[2] == "no"
    log.warning(
        "Could not find out whether %s needs CAP_SETFCAP; its sandbox printed: %s",
        runsc.path,
        " ".join(words.split())[-300:] or "nothing",
    )
    return None


def _probe(runsc: Runsc, python: str) -> str:
    """Return what PROBE printed in a sandbox with the whole host, read-only, and no network."""
    with tempfile.TemporaryDirectory(prefix="gvisor-kernel-probe-") as root:
        argv = ["unshare", "-Ur", runsc.executable, f"--root={root}", "--network=none"]
        argv += ["--ignore-cgroups", "--platform=systrap", "do", "-quiet", "-cwd", "/"]
        argv += [python, "-I", "-S", "-c", PROBE]
        try:
            (ended,) = commands.run(
                argv, seconds=PROBE_SECONDS, max_bytes=PROBE_BYTES, cwd=Path("/")
            )
        except OSError as error:
            return str(error)
        if ended.status is None:  # the processes that runsc starts leave its process group
            processes.kill_with_argument(f"--root={root}")
        return ended.output
