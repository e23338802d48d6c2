"""A kernel as its clients know it: its identity, its address, and the names of its sockets.

Binds sockets; reads and writes none of them. Each process has one directory for Unix sockets below
a private root. Its name is the pid and the start time, so that a sweep can tell whether the owner
is alive. If that path is too long for a Unix socket, a directory with an unpredictable name in
/tmp is used, and a symbolic link to it takes its place.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import zmq

from gvisor_kernel.errors import StateError
from gvisor_kernel.link import Channel


@dataclass(frozen=True)
class SnapshotRun:
    """The kernel in a snapshot.

    ``run`` is the run in which it was taken, and ``key`` signed that kernel's messages inside the
    sandbox. A restored kernel runs ``code`` before any message of a client; a kernel that adopted
    a new key by itself runs it only with ``always``. ``told`` means that the kernel still has to
    receive environment variables, which is impossible behind the relay. ``known``: of
    ``MemoryAnswers.dump``, of a kernel that was saved.
    """

    run: int
    key: str
    code: str = ""
    always: bool = False
    told: bool = False
    known: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"SnapshotRun(run={self.run}, key=…)"


@dataclass(frozen=True)
class KernelIdentity:
    """The kernel as its clients know it.

    ``key`` is the host key, which only clients know. ``memory_limit`` is in bytes.
    """

    name: str
    key: bytes
    signature_scheme: str
    memory_limit: int
    idle_stop: bool = False
    """True if the sandbox may be stopped while the kernel is idle."""
    holds_replies: bool = True
    """False if all clients are ours, which miss no reply (``bridge/replies.py``)."""
    kernelspec: str = ""
    """Path of the kernel.json that decides its memory limit; empty if none is known."""


# by path: below the state directory, whose parents only this user can change

MAX_SOCKET_PATH = 107
"""Bytes in the path of a Unix socket (sun_path without its NUL)."""
MAX_BINDINGS = 100_000
LISTENING = "01"
"""The state of a listener in /proc/net/unix; what it has accepted has its path, too."""


@dataclass(frozen=True)
class Address:
    """The address that clients connect to, as in a connection file. Bind chooses ports of 0."""

    transport: str
    ip: str
    ports: dict[Channel, int] = field(default_factory=dict)
    curve_publickey: bytes | None = None
    curve_secretkey: bytes | None = None


class Listeners(NamedTuple):
    """Two sockets that listen: for iopub, and for all other channels together."""

    shared: socket.socket
    iopub: socket.socket


class SocketNames:
    """The addresses of one kernel's sockets, and the names by which its clients know them.

    For ipc the sockets are in a directory of their own, and the names are symbolic links: a manager
    unlinks the names at each restart, but the sockets and their connections must stay.
    """

    def __init__(self, address: Address, base: Path) -> None:
        """``base``: the process's private directory, in which that of an ipc address is made."""
        self.address = address
        """The requested address until ``bind`` or ``listen``, then the one that clients connect
        to."""
        self.base = base
        self._directory: Path | None = None
        self.targets: dict[Channel, Path] = {}
        """What the names of ipc sockets lead to; nothing for tcp."""
        self._bindings = 0

    def bind(
        self, sockets: Mapping[Channel, zmq.Socket[bytes]], taken: Listeners | None = None
    ) -> None:
        """Bind ``sockets``, and create their names. That of iopub takes over from ``taken``.

        :raises OSError, ZMQError: when that fails; ``remove`` removes what was made
        """
        ip, ports = self.address.ip, dict(self.address.ports)
        if self.address.transport == "tcp":
            for channel, bound in sockets.items():
                wanted = ports.get(channel, 0)
                bound.bind(f"tcp://{ip}:{wanted or '*'}")
                endpoint = bound.getsockopt(zmq.LAST_ENDPOINT)
                assert isinstance(endpoint, bytes)
                ports[channel] = int(endpoint.rstrip(b"\0").rpartition(b":")[2])
            self.address = replace(self.address, ip=ip, ports=ports)
            return
        place = self._make_place(sockets)
        targets = {channel: Path(f"{place}{int(channel)}") for channel in sockets}
        if taken is not None:
            targets[Channel.IOPUB] = self.targets[Channel.IOPUB]
            sockets[Channel.IOPUB].setsockopt(zmq.USE_FD, os.dup(taken.iopub.fileno()))
        for channel, bound in sockets.items():
            bound.bind(f"ipc://{targets[channel]}")
        self.expose(targets)

    def listen(self, channels: Iterable[Channel]) -> Listeners:
        """Return listeners to which the names of ipc sockets lead from now on.

        :raises OSError: when that fails
        """
        channels, before = list(channels), self.targets
        place = self._make_place(channels)
        targets = dict.fromkeys(channels, Path(f"{place}0"))
        targets[Channel.IOPUB] = Path(f"{place}{int(Channel.IOPUB)}")
        opened = Listeners(*(socket.socket(socket.AF_UNIX) for _ in range(2)))
        try:
            for listener, channel in zip(opened, (Channel.SHELL, Channel.IOPUB), strict=True):
                listener.setblocking(False)
                listener.bind(str(targets[channel]))
                listener.listen()
            self.expose(targets)
        except BaseException:
            for listener in opened:
                listener.close()
            with suppress(OSError):
                self.expose(before)
            raise
        return opened

    def _make_place(self, channels: Iterable[Channel]) -> str:
        """Make the directory; return the beginning of paths in it, which differ at each call:
        libzmq unlinks those of a closed socket, some time later."""
        if self._directory is None:
            directory = self.base / secrets.token_hex(4)
            directory.mkdir(mode=0o700)
            self._directory = directory
            ip, ports = self.address.ip or f"{directory}/k", self.address.ports
            if len(f"{directory}/k-99".encode()) > MAX_SOCKET_PATH:
                raise OSError(f"the path {directory} is too long for a Unix socket")
            ports = {channel: ports.get(channel) or int(channel) for channel in channels}
            self.address = replace(self.address, ip=ip, ports=ports)
        self._bindings = (self._bindings + 1) % MAX_BINDINGS
        return f"{self._directory}/{self._bindings}-"

    def expose(self, targets: dict[Channel, Path] | None = None) -> None:
        """Let the names of ipc sockets lead to ``targets``; None: to where they did. Creates those
        that are missing.

        :raises OSError: when they cannot; they may lead there partly
        """
        self.targets = self.targets if targets is None else targets
        for channel, target in self.targets.items():
            name = Path(f"{self.address.ip}-{self.address.ports[channel]}")
            if not name.is_symlink():
                name.symlink_to(target)
            elif name.readlink() != target:  # also one of a process that was killed
                new = name.with_name(f"{name.name}.new")
                new.unlink(missing_ok=True)
                new.symlink_to(target)
                new.replace(name)

    def remove_other(self) -> None:
        """Remove what the names of ipc sockets lead to no more. Never raises."""
        kept = {*self.targets.values(), *(Path(name) for name in self._find_names())}
        with suppress(OSError):
            for path in self._directory.iterdir() if self._directory is not None else ():
                if path not in kept:
                    path.unlink(missing_ok=True)

    def _find_names(self) -> list[str]:
        return [f"{self.address.ip}-{port}" for port in self.address.ports.values()]

    def remove(self) -> None:
        """Remove the names and the directory of ipc sockets. Never raises."""
        if self._directory is None:
            return
        for name in map(Path, self._find_names()):
            with suppress(OSError):
                if name.readlink().parent == self._directory:
                    name.unlink()
        with suppress(OSError):
            for name in self._directory.iterdir():
                name.unlink(missing_ok=True)
            self._directory.rmdir()


def count_connections(targets: Iterable[Path]) -> int:
    """Return how many are connected to Unix sockets at ``targets``, or wait to be; 1 if that cannot
    be found out."""
    places = {str(target) for target in targets}
    with suppress(OSError), open("/proc/net/unix", encoding="utf-8", errors="replace") as lines:
        found = (line.rstrip("\n").split(maxsplit=7) for line in lines)
        return sum(len(it) > 7 and it[7] in places and it[5] != LISTENING for it in found)
    return 1


SHORT_ROOT = Path("/tmp")  # noqa: S108 - mkdtemp makes an unpredictable, private name in it
SHORT_PREFIX = "gvk-"

MAX_BASE = 107 - len("/12345678/l-65535")
"""Bytes in the path of a process's directory, so that a kernel's directory and socket fit below."""


def owner_name(pid: int) -> str | None:
    """Return ``PID-STARTTIME``, or None for a dead process (field 22 of stat in proc(5))."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    return f"{pid}-{int(stat.rpartition(b')')[2].split()[19])}"


def make_base(root: Path) -> Path:
    """Create this process's directory below ``root`` with mode 0700, and return it.

    :raises StateError: when it cannot be created or belongs to another user
    """
    name = owner_name(os.getpid())
    assert name is not None
    base = root / name
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if len(os.fsencode(base)) <= MAX_BASE:
            base.mkdir(mode=0o700, exist_ok=True)
        elif not base.is_symlink():
            base.symlink_to(tempfile.mkdtemp(prefix=SHORT_PREFIX, dir=SHORT_ROOT))
        resolved = base.resolve(strict=True)
        if resolved.stat().st_uid != os.geteuid():
            raise PermissionError(f"{resolved} belongs to another user")
    except OSError as error:
        raise StateError(
            f"The directory for kernel sockets cannot be used: {error}.",
            f"make {root} a directory that you own, with mode 0700, on a disk with free space.",
        ) from error
    return resolved


def remove_base(root: Path, name: str) -> None:
    """Remove the directory ``name`` of a process below ``root``. Never raises."""
    base = root / name
    with suppress(OSError):
        if base.is_symlink():
            target = base.readlink()
            if target.parent == SHORT_ROOT and target.name.startswith(SHORT_PREFIX):
                shutil.rmtree(target, ignore_errors=True)
            base.unlink()
        else:
            shutil.rmtree(base, ignore_errors=True)


def sweep_bases(root: Path) -> int:
    """Remove the directories of dead processes below ``root``; return how many. Never raises."""
    try:
        names = [path.name for path in root.iterdir()]
    except OSError:
        return 0
    removed = 0
    for name in names:
        pid, _, start = name.partition("-")
        if pid.isdecimal() and start.isdecimal() and owner_name(int(pid)) != name:
            remove_base(root, name)
            removed += not os.path.lexists(root / name)
    return removed
