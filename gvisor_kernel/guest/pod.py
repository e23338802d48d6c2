"""Gets the files and makes the mounts of a sandbox in a pod: PID 1 runs this before the guest.

The host sends the text of this module to the command of the pod, which executes it with ``read``
(``runtimes/kubernetes/pod.py``); so it imports nothing of this package before the files are there.

A pod under the restricted standard has neither root nor capabilities. gVisor lets every process
make a user namespace and, as its root, a mount namespace. So PID 1 is uid 0 of its own, which is
uid 1000 of the pod, and mounts as in any other sandbox. The rest of the pod sees none of that.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import struct
import sys
import tarfile
from collections.abc import Mapping
from typing import Any, Callable

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND = 1, 2, 4, 32, 4096
MAX_CONFIG, MAX_CHUNK = 1024 * 1024, 1024 * 1024
LENGTH = struct.Struct(">I")

Read = Callable[[int], bytes]
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str, flags: int, options: str) -> None:
    result = _libc.mount(
        *(source.encode(), target.encode(), kind.encode()),
        *(ctypes.c_ulong(flags), options.encode() or None),
    )
    _check(result, f"mount {kind or source} on {target}")


def check_outputs(path: str) -> None:
    """Refuse a folder of outputs that no kernel could write to. kubelet makes the folder of a
    claim for root, if it is missing and the kind of volume knows no fsGroup."""
    if not os.access(path, os.W_OK):
        raise PermissionError(
            f"uid {os.getuid()} may not write to {path}: the folder that outputs_claim names must"
            " belong to this uid or to the gid of the same number"
        )


def enter_namespaces() -> None:
    """Become root of a user namespace that has this process's uid and gid only, and of a mount
    namespace."""
    uid, gid = os.getuid(), os.getgid()
    _check(_libc.unshare(CLONE_NEWUSER), "a user namespace in the pod")
    maps = (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1"))
    for name, text in maps:
        try:
            fd = os.open(f"/proc/self/{name}", os.O_WRONLY)
        except FileNotFoundError:
            if name == "setgroups":  # releases of gVisor from 2024 lack the file and do not need it
                continue
            raise
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    _check(_libc.unshare(CLONE_NEWNS), "a mount namespace in the pod")


class Chunks:
    """Reads a stream that comes in chunks, each after its length; an empty one ends it."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._chunk = b""
        self._over = False

    def read(self, size: int) -> bytes:
        """Return ``size`` bytes, fewer at the end."""
        pieces: list[bytes] = []
        while size and not self._over:
            if not self._chunk:
                (length,) = LENGTH.unpack(self._read(LENGTH.size))
                if length > MAX_CHUNK:
                    raise ValueError(f"a chunk of {length} bytes")
                self._chunk = self._read(length)
                self._over = not length
            piece, self._chunk = self._chunk[:size], self._chunk[size:]
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)


def unpack(chunks: Any, place: str, outputs: str) -> None:
    """Unpack the host's archive into ``place``, and its part "outputs" into the folder of that."""
    with tarfile.open(fileobj=chunks, mode="r|", bufsize=64 * 512) as archive:
        for member in archive:
            path = os.path.join(place, member.name)
            top, _, rest = member.name.partition("/")
            if top == "outputs":
                path = os.path.join(outputs, rest).rstrip("/")
            if member.isdir():
                os.makedirs(path, exist_ok=True)
                if path != outputs:  # it is the node's
                    os.chmod(path, member.mode)
            elif member.issym():
                os.symlink(member.linkname, path)
            elif member.isreg():
                content = archive.extractfile(member)
                assert content is not None
                with open(path, "xb") as file:
                    while data := content.read(256 * 1024):
                        file.write(data)
                os.chmod(path, member.mode)
                os.utime(path, (member.mtime, member.mtime))
    while chunks.read(64 * 1024):
        pass


def make_mounts(config: Mapping[str, Any], read: Read) -> None:
    """Make what the sandbox shows: scratch directories, and the host's files, read-only."""
    guest = str(config["guest"])
    _mount("tmpfs", guest, "tmpfs", MS_NOSUID | MS_NODEV, f"size={int(config['size'])},mode=0755")
    unpack(Chunks(read), guest, str(config["outputs"]))
    scratch: list[tuple[str, int, int]] = [tuple(entry) for entry in config["scratch"]]
    for target, size, mode in scratch:
        os.makedirs(target, exist_ok=True)
        flags = MS_NOSUID | MS_NODEV
        _mount("tmpfs", target, "tmpfs", flags, f"size={size},mode={mode:04o}")
    parts: dict[str, str] = config["parts"]
    for part, target in parts.items():
        source = f"{guest}/{part}"
        if target.startswith(("/etc/", "/dev/")) and not os.path.exists(target):
            continue  # the root of the pod is read-only, and it has no such file
        if os.path.isdir(source):
            os.makedirs(target, exist_ok=True)
        show_read_only(source, target)
    show_read_only(f"{guest}/guest", guest)  # the rest is not seen any more


def show_read_only(source: str, target: str) -> None:
    """Show ``source`` at ``target``, which exists."""
    _mount(source, target, "", MS_BIND, "")
    _mount(source, target, "", MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV, "")


def set_limits(pids: int, files: int) -> None:
    """Set the limits that a pod has no field for."""
    for kind, value in (
        (resource.RLIMIT_NPROC, pids),
        (resource.RLIMIT_NOFILE, files),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (bound, bound))


def run(read: Read) -> None:
    """Read the host's words, make the sandbox, and serve it. Does not return."""
    try:
        (length,) = LENGTH.unpack(read(LENGTH.size))
        if length > MAX_CONFIG:
            raise ValueError(f"a configuration of {length} bytes")
        config = json.loads(read(length))
        os.umask(0o022)
        check_outputs(str(config["outputs"]))
        enter_namespaces()
        make_mounts(config, read)
        set_limits(int(config["pids"]), int(config["files"]))
        os.environ.clear()
        os.environ.update(config["environment"])
        sys.path.insert(0, config["guest"])
    except Exception as error:  # the host shows stderr when a sandbox ends
        print(f"The pod is no sandbox: {type(error).__name__}: {error}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)
    from gvisor_kernel.guest.main import serve_pod

    secret = bytes.fromhex(config["secret"])
    serve_pod(tuple(config["ahead"]), secret, float(config["linger"]))
