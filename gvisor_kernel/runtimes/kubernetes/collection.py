"""Fetches the outputs of a pod by a program in it, which writes them as a tar archive.

An exec, not the attach: what PID 1 prints, the node writes to its log files, and counts against the
pod's ephemeral storage. Any process with the rights can do it, also after the server was killed.
The kernel may tamper with that program, so the archive is as hostile as the files in it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import suppress

from gvisor_kernel.errors import SandboxError
from gvisor_kernel.runtimes.kubernetes.attach import StreamCut, wait_readable
from gvisor_kernel.runtimes.kubernetes.channels import STDOUT
from gvisor_kernel.runtimes.kubernetes.cluster import Cluster
from gvisor_kernel.runtimes.kubernetes.pod import CONTAINER, PYTHON
from gvisor_kernel.spec.layout import OUTPUTS
from gvisor_kernel.strict_json import JsonError, parse_json

SILENT_SECONDS = 30.0
"""Seconds that the program in the pod may say nothing."""
END_SECONDS = 30.0
"""Seconds that the program may take that ends a kernel's processes, however much it says."""
MAX_WORDS = 2000

PROGRAM = """\
import os, sys, tarfile
root = sys.argv[1]
class Content:
    def __init__(self, file): self.file = file
    def read(self, size): return self.file.read(size) or bytes(size)
out = tarfile.open(fileobj=sys.stdout.buffer, mode="w|", format=tarfile.PAX_FORMAT)
def add(path, name):
    try:
        info = out.gettarinfo(path, name)
        if info is None: return
        info.mtime = int(info.mtime)
        if not info.isreg():
            out.addfile(info)
            return
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            out.addfile(info, Content(file))
    except (FileNotFoundError, PermissionError, UnicodeError): pass
for folder, names, files in os.walk(root):
    for name in sorted(names + files):
        path = os.path.join(folder, name)
        add(path, os.path.relpath(path, root))
out.close()
"""
"""A file that shrinks meanwhile is filled up with zeros."""
END_PROGRAM = "import os; os.kill(-1, 9)"
"""Ends all processes but PID 1. That ends all others when the kernel has ended, so also a program
that would go on from here."""


def end_processes(cluster: Cluster, pod: str) -> None:
    """End all processes of a pod but PID 1, as far as that can be done. Blocks for END_SECONDS at
    most: the kernel may write to that program's stdout, and never stop."""
    with suppress(SandboxError):
        for _ in _run(cluster, pod, [PYTHON, "-I", "-c", END_PROGRAM], END_SECONDS):
            pass


def fetch_outputs(cluster: Cluster, pod: str) -> Iterator[bytes]:
    """Yield the archive of what is in the outputs now.

    :raises SandboxError: when the program cannot be run, or does not come to its end
    """
    return _run(cluster, pod, [PYTHON, "-I", "-c", PROGRAM, OUTPUTS])


def _run(cluster: Cluster, pod: str, argv: list[str], seconds: float = math.inf) -> Iterator[bytes]:
    words = b""
    deadline = time.monotonic() + seconds
    try:
        stream = cluster.execute(pod, CONTAINER, argv)
    except StreamCut as error:
        raise SandboxError(f"The outputs of {pod} cannot be fetched: {error}.") from error
    try:
        silent = time.monotonic() + SILENT_SECONDS
        while True:
            now = time.monotonic()
            if now > deadline:
                raise StreamCut(f"it has not ended after {seconds:g} s")
            if not wait_readable(stream, min(silent, deadline) - now):
                raise StreamCut(f"nothing came for {min(SILENT_SECONDS, seconds):g} s")
            silent = time.monotonic() + SILENT_SECONDS
            for channel, piece in stream.read():  # no timeout: it is ready, or does not block
                if channel == STDOUT:
                    yield bytes(piece)
                else:
                    words = (words + bytes(piece))[-MAX_WORDS:]
    except StreamCut as error:
        if not has_succeeded(stream.status):
            told = "".join(
                c for c in words.decode(errors="replace") if c.isprintable() or c == "\n"
            )
            raise SandboxError(
                f"The outputs of {pod} cannot be fetched: {str(error)[:500]}.", "", told
            ) from error
    finally:
        stream.close()


def has_succeeded(status: bytes) -> bool:
    """Return whether the status of an exec says that the program has ended well."""
    try:
        found = parse_json(status, len(status) + 1)
    except JsonError:
        return False
    return isinstance(found, dict) and found.get("status") == "Success"
