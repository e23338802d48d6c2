"""Programs of this machine by which another one is reached: short commands, and OpenSSH's client.

Of SSH, connections are shared by a master for a minute (ControlMaster). Nothing is asked, no key is
accepted that is not known, and nothing of this machine is forwarded.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gvisor_kernel.errors import LaunchError, StateError
from gvisor_kernel.host import commands
from gvisor_kernel.host.commands import CommandResult
from gvisor_kernel.host.private_directories import state_root

COMMAND_SECONDS = 60.0
MAX_WORDS = 1024 * 1024
"""Bytes of a command's output. A queue of 100,000 jobs has fewer."""
COMMON_VARIABLES = ("HOME", "PATH", "USER", "LOGNAME")
SSH_VARIABLES = (*COMMON_VARIABLES, "SSH_AUTH_SOCK", "KRB5CCNAME")
"""Variables of the server that a client gets. Other machines get none of them."""
SSH = "ssh"  # no runtime: the program, and the folder of its connections
HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@:-]{0,199}")
"""A host as OpenSSH knows it, perhaps with a user."""


@dataclass(frozen=True)
class Trouble:
    """The reason why a client of an engine has ended: a fact for a person, and what to do.

    ``elsewhere``: the same start may succeed on another host.
    """

    fact: str
    hint: str = ""
    elsewhere: bool = False


def pick(names: Sequence[str], server: Mapping[str, str]) -> dict[str, str]:
    """Return the variables ``names`` of the server's that are set."""
    return {name: server[name] for name in names if name in server}


def run(argv: Sequence[str], environment: Mapping[str, str]) -> CommandResult:
    """Run a short command of an engine; its status is 1 where it does not end in time.

    A node may print without end: the last MAX_WORDS bytes of stdout and of stderr are kept.
    """
    failed = CommandResult(1, "")
    if not argv:
        return failed
    try:
        (done,) = commands.run(
            argv,
            seconds=COMMAND_SECONDS,
            max_bytes=MAX_WORDS,
            cwd=Path("/"),
            environment=environment,
            apart=True,
        )
    except (OSError, LaunchError):
        return failed
    return failed if done.status is None else done


def last_line(done: CommandResult) -> str:
    """Return the last line of a command's output. A login script may have printed others."""
    return done.output.strip().rpartition("\n")[2]


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
    control = state_root() / SSH
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
    return [SSH, "-T", *(["-F", config] if config else []), *words]


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
