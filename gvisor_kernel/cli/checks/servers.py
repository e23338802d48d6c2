"""Checks the Jupyter servers of this user that run now: which of their kernels have no sandbox.

The configuration may have changed since a kernel has started. So what runs is looked at first: a
sandbox has a record with its kernel's ID, and a local kernel is a process with its connection file.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from threading import Timer
from typing import Any
from urllib.parse import urlsplit

from jupyter_core.paths import jupyter_runtime_dir

from gvisor_kernel.errors import StateError
from gvisor_kernel.jupyter.default_provisioner import VARIABLE
from gvisor_kernel.jupyter.kernelspecs import PROVISIONER
from gvisor_kernel.jupyter.plan_factory import find_unsandboxed
from gvisor_kernel.runtimes.checks import Check, ok, warning
from gvisor_kernel.runtimes.state.records import find_sandboxes
from gvisor_kernel.strict_json import JsonError, parse_json

MAX_ANSWER = 4 * 1024 * 1024
SECONDS = 3.0
"""How long a server may take for one answer, from the first byte to the last."""
KERNEL_ID = re.compile(r"[0-9a-f-]{36}")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Server:
    """A running server: where it is, and what its file says to get in."""

    pid: int
    url: str
    token: str
    root: str = ""


def check_servers() -> Check:
    """Name the kernels of running servers that were started without a sandbox."""
    names = set(find_unsandboxed())
    servers = list(find_servers())
    sandboxed = find_sandboxed()
    found = [
        f"{name} ({kernel[:8]}) of {server.url}"
        for server in servers
        for kernel, name in list_kernels(server)
        if kernel not in sandboxed
        and (is_process(kernel) or (name in names and not is_default(server)))
    ]
    if found:
        return warning(
            f"without a sandbox run: {'; '.join(sorted(found))}",
            "shut them down, and start them with a kernelspec of gvisor-kernel",
        )
    fact = f"{len(servers)} servers were asked" if servers else "no server of this user runs"
    return ok(f"none without a sandbox is known: {fact}")


def find_servers() -> Iterator[Server]:
    """Yield the servers of this user on this machine that run and listen on its loopback."""
    folder = Path(jupyter_runtime_dir())
    patterns = ("jpserver-*.json", "gvisor-lab-*/jpserver-*.json")  # gvisor_kernel/lab
    for file in sorted(found for pattern in patterns for found in folder.glob(pattern)):
        with suppress(OSError, JsonError, KeyError, TypeError, ValueError):
            content = parse_json(file.read_bytes(), MAX_ANSWER)
            said = (str(content[key]) for key in ("url", "token", "root_dir"))
            server = Server(int(content["pid"]), *said)
            is_own = Path(f"/proc/{server.pid}").stat().st_uid == os.geteuid()
            parts = urlsplit(server.url)
            is_web = parts.scheme in ("http", "https") and parts.hostname in LOOPBACK
            if is_own and is_web:
                yield server


def list_kernels(server: Server) -> list[tuple[str, str]]:
    """Return ID and kernelspec of each kernel that runs; none if the server does not tell."""
    try:
        content: Any = parse_json(ask(server, "api/kernels")[2], MAX_ANSWER)
    except (OSError, HTTPException, JsonError, ValueError):
        return []
    entries = content if isinstance(content, list) else []
    return [(str(e.get("id")), str(e.get("name"))) for e in entries if isinstance(e, dict)]


def ask(server: Server, path: str, **headers: str) -> tuple[int, str, bytes]:
    """Return status, Access-Control-Allow-Origin and body; no redirect is followed."""
    url = urlsplit(server.url)
    kind = HTTPSConnection if url.scheme == "https" else HTTPConnection
    connection = kind(url.hostname or "", url.port, timeout=SECONDS)
    own = {"Authorization": f"token {server.token}"} | headers
    connection.connect()
    # A limit for each read is none for a server that sends a byte a second. TLS is not asked.
    late = Timer(SECONDS, _cut, (connection.sock,))
    late.daemon = True
    late.start()
    try:
        sent = {name: value for name, value in own.items() if value}
        connection.request("GET", f"{url.path.rstrip('/')}/{path}", headers=sent)
        answer = connection.getresponse()
        allowed = answer.headers.get("Access-Control-Allow-Origin", "")
        return answer.status, allowed, answer.read(MAX_ANSWER)
    finally:
        late.cancel()
        connection.close()


def _cut(sock: socket.socket) -> None:
    with suppress(OSError):  # its server has closed it
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def find_sandboxed() -> set[str]:
    """Return the IDs of the kernels that have a sandbox of this user."""
    with suppress(StateError):
        return {record.kernel_id for _, record in find_sandboxes()}
    return set()


def is_process(kernel: str) -> bool:
    """Return whether a process of this user, which is not our launcher, is that kernel."""
    if not KERNEL_ID.fullmatch(kernel):
        return False
    file = f"kernel-{kernel}.json".encode()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes().split(b"\0")
            is_own = path.parent.stat().st_uid == os.geteuid()
            if is_own and b"gvisor_kernel" not in words and any(w.endswith(file) for w in words):
                return True
    return False


def is_default(server: Server) -> bool:
    """Return whether the server's environment makes our provisioner the default."""
    with suppress(OSError):
        variables = Path(f"/proc/{server.pid}/environ").read_bytes().split(b"\0")
        return f"{VARIABLE}={PROVISIONER}".encode() in variables
    return False
