"""The connection to a Docker engine over SSH, and the reason why an engine does not answer.

Over SSH, OpenSSH's own client passes a socket of this machine on to the engine. The connection is a
master that many processes share. It ends a minute after its last use, so nobody owns it. The
package ``docker`` by itself needs paramiko for SSH, and the command ``docker`` on the engine's
machine.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
from pathlib import Path

from gvisor_kernel.errors import RuntimeMissing
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

ANSWER_SECONDS = 2.5
"""Timeout of a question: an engine that is absent or hangs is an error within three seconds."""


class EngineNotAnswering(RuntimeMissing):
    """The engine does not answer now."""


def shorten(words: str) -> str:
    """Return at most 500 printable characters of what an engine has said."""
    return "".join(c if c.isprintable() else " " for c in words[:500]).strip().rstrip(".")


_CERTIFICATES = (
    "compare DOCKER_TLS_VERIFY and DOCKER_CERT_PATH in the server's environment with the engine's"
    " certificates: the folder has ca.pem, cert.pem and key.pem."
)
_TROUBLES = (
    (
        r"HTTP request to an HTTPS server",
        "it wants TLS",
        "set DOCKER_TLS_VERIFY=1 in the server's environment, and DOCKER_CERT_PATH to the folder"
        " with ca.pem, cert.pem and key.pem.",
    ),
    (
        r"WRONG_VERSION_NUMBER|wrong version number|record layer failure",
        "it does not speak TLS there",
        "take DOCKER_TLS_VERIFY out of the server's environment, or name the port of TLS, 2376 as a"
        " rule, in DOCKER_HOST.",
    ),
    (
        r"certificate verify failed|Hostname mismatch",
        "its certificate is not accepted",
        f"{_CERTIFICATES} REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE hold in place of ca.pem: take them"
        " out.",
    ),
    (
        r"certificate.required|bad certificate|unknown ca|handshake failure",
        "it does not accept this user's certificate",
        _CERTIFICATES,
    ),
    (
        r"TLSParameterError|ca\.pem|TLS CA certificate",
        "the certificates cannot be read",
        _CERTIFICATES,
    ),
    (r"SSLError|SSLEOFError|SSLZeroReturn", "TLS failed", _CERTIFICATES),
    (
        r"NameResolution|Name or service not known|getaddrinfo|nodename nor servname",
        "its name is not known",
        "correct DOCKER_HOST in the server's environment.",
    ),
    (
        r"[Bb]ad host format|Invalid bind address|Invalid path",
        "that is no address of an engine",
        "set DOCKER_HOST to an address such as unix:///var/run/docker.sock, ssh://user@host or"
        " tcp://host:2376.",
    ),
    (r"FileNotFoundError|ConnectionRefused|No such file|refused", "nothing listens there", ""),
    (r"ConnectionReset|RemoteDisconnected|BrokenPipe", "it closes the connection", ""),
    (r"[Tt]imed? ?out|Timeout", f"no answer within {ANSWER_SECONDS:g} s", ""),
)
"""Meanings of the errors of a connection, with what to do beside starting the engine."""


def explain_no_answer(address: str, error: BaseException) -> EngineNotAnswering:
    """Return an error that says why the engine does not answer, by the error of the connection."""
    words = f"{error!r}"
    if re.search(r"PermissionError|Permission denied", words):
        return EngineNotAnswering(
            f"This user may not use the Docker engine at {address}.",
            "add this user to the group docker: `sudo usermod -aG docker $USER`, and log in again."
            " Members of that group can become root on the engine's machine.",
        )
    found = next((row for row in _TROUBLES if re.search(row[0], words)), None)
    reason, hint = found[1:] if found is not None else (shorten(str(error)), "")
    if not hint and address.startswith("ssh:"):
        hint = (
            "log in there and run `docker info`: the engine must run, this account must be in the"
            " group docker, and sshd must allow forwards (AllowStreamLocalForwarding). If its"
            " socket is elsewhere, name it: ssh://host/path/docker.sock."
        )
    elif not hint:
        where = "start it" if address.startswith("unix:") else "start it on its machine"
        hint = (
            f"{where}: `sudo systemctl start docker`. To use another engine, set DOCKER_HOST in the"
            " server's environment."
        )
    return EngineNotAnswering(f"The Docker engine at {address} does not answer: {reason}.", hint)


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
