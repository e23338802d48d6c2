"""SSH: the helper runs on a host of a list, started by OpenSSH's own client.

Connections are shared by a master for a minute (ControlMaster). Nothing is asked, no key is
accepted that is not known, and nothing of this machine is forwarded.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Mapping, Sequence

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import StateError
from gvisor_kernel.runtimes.nodes.engine import Engine, Trouble
from gvisor_kernel.runtimes.state.records import state_root

CONNECT_SECONDS = 10
ALIVE_SECONDS = 10
"""Seconds between questions whether the other side lives; the sixth without an answer ends the
connection, as the link's own patience does."""
MASTER_SECONDS = 60
CONNECTION_LOST = 255
"""The status of an ssh that has ended by itself; others are the command's."""
_NO_HELPER = r"No module named '?gvisor_kernel|No such file or directory|not found"
MAX_PATH = 90
"""Bytes of a master's socket: ssh appends 17 to it for a moment, and 107 are allowed."""
PLAIN_PATH = re.compile(r"[A-Za-z0-9/_.,:=@+~%-]+")
"""Paths of a socket that ssh takes literally: it splits an option at spaces, and replaces
``${NAME}``."""

_TROUBLES: Sequence[tuple[str, str, str, bool]] = (
    (
        r"Host key verification failed|REMOTE HOST IDENTIFICATION HAS CHANGED",
        "its key is not the one that this user knows",
        "log in once by hand (ssh {host}) and compare the key with the administrator's.",
        True,
    ),
    (
        r"Permission denied",
        "it does not let this user in without a password",
        "set up a key: ssh-keygen, ssh-copy-id {host}; an agent must run where the server does.",
        True,
    ),
    (
        r"Could not resolve hostname|Name or service not known",
        "its name is not known",
        "check the setting ssh.",
        True,
    ),
    (
        r"Connection refused|No route to host|Network is unreachable|Connection timed out|"
        r"Operation timed out|kex_exchange_identification|Connection reset by peer",
        "it does not answer",
        "check that it runs and that sshd does: ssh {host}",
        True,
    ),
    (
        r"Timeout, server .* not responding|client_loop: send disconnect|Broken pipe|"
        r"Connection to .* closed by remote host|mux_client|Control socket connect",
        "the connection was lost",
        "check the network, and start the kernel again.",
        False,
    ),
    (
        _NO_HELPER,
        "it has no gvisor-kernel at that path",
        'install the same release there, and name its Python as "python" in the setting ssh.',
        True,
    ),
)


def make_control() -> str:
    """Return the private folder for sockets of masters.

    :raises StateError: when it cannot be made
    """
    control = state_root() / "ssh"
    try:
        # by path: below the state directory, whose parents only this user can change
        control.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StateError(
            f"Could not make the directory {control}: {error.strerror}.",
            "check whether the disk is full or read-only.",
        ) from error
    return str(control)


def client_argv(name: str, control: str, config: str = "", **more: str) -> list[str]:
    """Return the beginning of a command line of ssh.

    A connection is shared by what has the same ``name``, if the path of the master's socket in
    ``control`` allows it. ``config``: a file in place of the user's. ``more``: options of OpenSSH.
    """
    path = f"{control}/{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    shared = len(os.fsencode(path)) <= MAX_PATH and PLAIN_PATH.fullmatch(path) is not None
    options = {
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "ConnectTimeout": CONNECT_SECONDS,
        "ServerAliveInterval": ALIVE_SECONDS,
        "ServerAliveCountMax": 6,
        "ControlMaster": "auto" if shared else "no",
        "ControlPath": path.replace("%", "%%") if shared else "none",
        "ControlPersist": MASTER_SECONDS,
        "ClearAllForwardings": "yes",
        "ForwardAgent": "no",
        "ForwardX11": "no",
        "PermitLocalCommand": "no",
        "RemoteCommand": "none",
        "EscapeChar": "none",
        "LogLevel": "ERROR",
        **more,
    }
    words = [f"-o{name}={value}" for name, value in options.items()]
    return ["ssh", "-T", *(["-F", config] if config else []), *words]


def explain(text: str, status: int, host: str) -> Trouble:
    """Return what the end of a client means, by its words on stderr."""
    for pattern, fact, hint, elsewhere in _TROUBLES:
        if pattern == _NO_HELPER and status == CONNECTION_LOST:
            continue  # words of a login script: the command was not what ended
        if re.search(pattern, text):
            return Trouble(f"{host}: {fact}", hint.format(host=host), elsewhere)
    if status == CONNECTION_LOST:
        # So does an ssh whose command was killed by a signal.
        fact = f"{host}: the connection was lost, or its helper was killed"
        return Trouble(fact, f"check the network, and the memory of {host}.", True)
    if status < 0:
        return Trouble(f"its ssh ended by signal {-status}")
    return Trouble(f"{host}: the helper ended with status {status}")


class Ssh(Engine):
    """The hosts that the setting names."""

    name = "ssh"
    program = "ssh"
    package = "OpenSSH's client (the package openssh-client of Debian)"
    wait = float(CONNECT_SECONDS + 30)

    def __init__(self, spec: SandboxSpec, control: str, load: Mapping[str, int]) -> None:
        """``control``: the private folder for sockets of masters. ``load``: kernels on a host."""
        self._asked = spec.ssh
        self._control = control
        self._load = load
        self.python, self.state = self._asked.python, self._asked.state

    def hosts(self) -> Sequence[str]:
        return sorted(self._asked.hosts, key=lambda host: self._load.get(host, 0))

    def start_argv(self, host: str, command: Sequence[str]) -> list[str]:
        return [*self._client(host), host, "--", shlex.join(command)]

    def ask_argv(self, host: str, command: Sequence[str]) -> list[str]:
        return self.start_argv(host, command)

    def end_argv(self, job: str) -> list[str]:
        return []

    def end_master_argv(self, host: str) -> list[str]:
        """Return the command line that ends the master of ``host`` now."""
        return [*self._client(host), "-O", "exit", host]

    def _client(self, host: str) -> list[str]:
        # Another name of the same machine may have other keys.
        config = self._asked.config
        return client_argv(f"{config}\0{host}", self._control, config)

    def explain(self, words: Sequence[str], status: int, host: str) -> Trouble:
        return explain("\n".join(words), status, host)
