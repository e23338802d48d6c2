"""An engine that is reached by SSH: OpenSSH's own client passes a socket of this machine on to it.

The connection is a master that many processes share. It ends a minute after its last use, so nobody
owns it. The package ``docker`` by itself needs paramiko for SSH, and the command ``docker`` on the
engine's machine.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
from pathlib import Path

from gvisor_kernel.runtimes.clients import (
    CONNECTION_LOST,
    HOST,
    SSH_VARIABLES,
    client_argv,
    explain,
    make_control,
    pick,
    run,
)
from gvisor_kernel.runtimes.docker.troubles import ANSWER_SECONDS, EngineNotAnswering

ADDRESS = re.compile(r"ssh://([^/]*)(/[A-Za-z0-9/_.,=@+~-]+)?/?")
SOCKET = "/var/run/docker.sock"


def open_tunnel(address: str) -> str:
    """Return the path of a socket that leads to the engine at ``address``, as
    ``ssh://[user@]host[:port][/path/of/its/socket]``. Blocks while a connection is made.

    :raises EngineNotAnswering: when there is no way to the engine's machine
    :raises StateError: when the folder for connections cannot be made
    """
    found = ADDRESS.fullmatch(address)
    if found is None or not HOST.fullmatch(found[1]):
        raise _no_way(address, "that is no address of SSH", "write ssh://user@host, or host:port.")
    host, remote = found[1], found[2] or SOCKET
    control = make_control()
    path = Path(control, hashlib.sha256(address.encode()).hexdigest()[:16] + ".engine")
    if answers(path):
        return str(path)
    argv = client_argv(
        f"engine\0{address}",
        control,
        ClearAllForwardings="no",
        ExitOnForwardFailure="yes",
        StreamLocalBindUnlink="yes",
    )
    if "-oControlMaster=auto" not in argv or {":", "%"} & set(str(path)):
        raise _no_way(
            address,
            f"the path {path} is too long, or has special characters",
            "set XDG_STATE_HOME to a short path in the server's environment.",
        )
    command = ["-L", f"{path}:{remote}", f"ssh://{host}", "--", "true"]
    done = run([*argv, *command], pick(SSH_VARIABLES, os.environ))
    if not answers(path):
        if done.status != CONNECTION_LOST:
            fact = f"a command there ended with status {done.status}"
            raise _no_way(address, fact, f"try it: ssh {host} true")
        trouble = explain(done.errors, CONNECTION_LOST, host)
        raise _no_way(address, trouble.fact, trouble.hint)
    return str(path)


def answers(path: Path) -> bool:
    """Return whether something listens at a socket of this machine."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(ANSWER_SECONDS)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _no_way(address: str, fact: str, hint: str) -> EngineNotAnswering:
    return EngineNotAnswering(f"The Docker engine at {address} does not answer: {fact}.", hint)
