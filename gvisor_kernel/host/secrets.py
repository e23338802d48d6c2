"""Reads secrets of a person: from a variable, a file or a keyring of the host.

Nothing keeps them here. No error, also no chained one, contains any of it; an error says where the
secret should be, and what to do.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import stat
from collections.abc import Mapping

from gvisor_kernel.errors import SecretError
from gvisor_kernel.host.folders import open_real

MAX_SECRET = 8 * 1024
"""Bytes. Servers accept headers of 8 KiB at most."""


def read_secret(source: str, environment: Mapping[str, str] | None = None) -> str:
    """Return the secret at ``source``: "env:NAME", "file:/path" or "keyring:SERVICE/USER". Blocks.

    ``environment`` replaces this process's variables. One line end at the end is removed.

    :raises SecretError: when it cannot be read, or cannot be the value of a header
    """
    kind, _, place = source.partition(":")
    if kind == "env":
        secret = _read_variable(place, os.environ if environment is None else environment)
    elif kind == "file":
        secret = _read_file(place)
    elif kind == "keyring":
        secret = _read_keyring(place)
    else:
        raise SecretError(
            "The source of a secret is neither env:, file: nor keyring:.",
            'write "env:NAME", "file:/path" or "keyring:SERVICE/USER" in c.GVisorEgress.routes.',
        )
    return _check(source, secret)


def _check(source: str, secret: str) -> str:
    """Return ``secret`` without its line end, if it can be the value of a header."""
    secret = re.sub(r"\r?\n\Z", "", secret)
    if not secret:
        raise SecretError(f"The secret {source} is empty.", "put the key there.")
    if len(secret) > MAX_SECRET:
        raise SecretError(
            f"The secret {source} has {len(secret)} characters, over the limit of {MAX_SECRET}.",
            "put the key alone there.",
        )
    if not re.fullmatch(r"[!-~](?:[ -~]*[!-~])?", secret):
        raise SecretError(
            f"The secret {source} cannot be sent in a header: it contains a line break, another"
            " control character, a character that is not ASCII, or a space at one end.",
            "put the key alone there, on one line.",
        )
    return secret


def _read_variable(name: str, environment: Mapping[str, str]) -> str:
    if name not in environment:
        raise SecretError(
            f"The variable {name} is not set in the Jupyter server's environment.",
            f"set it where the server is started, or use file: or keyring: instead of env:{name}.",
        )
    return environment[name]


def _read_file(path: str) -> str:
    """Read a private file. No link is followed: a kernel may have made one in a folder of outputs,
    to have another file of this user sent out."""
    try:
        with open_real(path) as found:
            _check_file(path, found.status())
            with os.fdopen(found.read(), "rb") as file:
                _check_file(path, os.fstat(file.fileno()))
                # Each byte becomes a character: an error of a decoder would contain all of them.
                return file.read(MAX_SECRET + 3).decode("latin-1")
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise SecretError(
                f"The path {path} is or contains a symbolic link, which is not followed.",
                f'write the path without links: "file:{os.path.realpath(path)}".',
            ) from None
        raise SecretError(
            f"The file {path} cannot be read: {error.strerror}.",
            f"make it, readable by you alone: install -m 600 /dev/null {shlex.quote(path)}",
        ) from None


def _check_file(path: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise SecretError(f"{path} is not a regular file.", "name a file that has the key alone.")
    if status.st_uid != os.geteuid():
        raise SecretError(
            f"The file {path} belongs to uid {status.st_uid}, and the server runs as"
            f" {os.geteuid()}.",
            "make a file of your own: whoever owns it can replace the key.",
        )
    if stat.S_IMODE(status.st_mode) & 0o177:
        raise SecretError(
            f"The file {path} has the mode {stat.S_IMODE(status.st_mode):04o}.",
            f"let only its owner read it: chmod 600 {shlex.quote(path)}",
        )
    if status.st_nlink != 1:
        raise SecretError(
            f"The file {path} has {status.st_nlink} names.",
            "make a copy that has one name, and name that.",
        )


def _read_keyring(place: str) -> str:
    service, _, user = place.rpartition("/")
    try:
        import keyring
    except ImportError:
        raise SecretError(
            f"The secret keyring:{place} needs the package keyring, which is not installed here.",
            "pip install 'gvisor-kernel[keyring]'",
        ) from None
    words = f"{shlex.quote(service)} {shlex.quote(user)}"
    secret, failure = None, ""
    try:
        secret = keyring.get_password(service, user)
    except Exception as error:  # back ends raise what they like, with texts of their own
        failure = type(error).__name__
    if failure:  # raised here, so that the other error is not its context
        raise SecretError(
            f"The keyring could not be asked for {place}: {failure}.",
            f"try it as the server's user: keyring get {words} > /dev/null",
        )
    if secret is None:
        raise SecretError(
            f"The keyring has no password of the user {user!r} for the service {service!r}.",
            f"keyring set {words}",
        )
    return str(secret)
