"""Mounts that root makes for one sandbox, in a mount namespace that nobody else sees.

The sandbox's processes are an ordinary uid on the host: they cannot walk through a private home,
nor write a person's files. So each source is bound to a place that they reach, and those that
belong to a person through an idmapped mount: what the sandbox's root does there, the owner did.

A mount namespace belongs to a thread. One thread makes it, mounts, starts the program in it and
ends; the namespace, and every mount in it, goes with the last process of the sandbox. The host's
mount table never holds any of it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gvisor_kernel.errors import LaunchError
from gvisor_kernel.runtimes.hints import find_hint
from gvisor_kernel.spec.layout import OUTPUTS, UPLOADS, Bind, is_within
from gvisor_kernel.spec.oci import SUBUID_BASE

COVERED = ("/mnt", "/media", "/srv", "/boot", "/opt")
"""Directories of every Linux system, one of which is covered in the private namespace. What is
below it is bound before that, so nothing is lost but the name."""

_SCARCE = find_hint(os.strerror(errno.EMFILE))

KERNELS_OWN = (OUTPUTS, UPLOADS)
"""Mounts whose source may lie where another kernel writes."""

_CLONE_NEWNS = 0x00020000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV = 1, 2, 4
_MS_BIND, _MS_REC, _MS_SLAVE = 0x1000, 0x4000, 0x80000
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 428, 429, 442  # on all architectures
_SYS_OPENAT2, _RESOLVE_NO_SYMLINKS = 437, 4
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV = 1, 2, 4
_MOUNT_ATTR_IDMAP = 0x00100000

_libc = ctypes.CDLL(None, use_errno=True)
_Result = TypeVar("_Result")


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


@dataclass(frozen=True)
class Stage:
    """Where the sources of a sandbox are found in its private namespace."""

    directory: str

    def path(self, index: int) -> str:
        """The place of the ``index``-th source."""
        return f"{self.directory}/{index}"


def choose_stage(in_use: Sequence[str]) -> Stage:
    """A directory that is safe to cover: nothing ``in_use`` (programs, state) is below it."""
    for directory in COVERED:
        try:
            searchable = Path(directory).stat().st_mode & stat.S_IXOTH
        except OSError:
            continue
        real = os.path.realpath(directory)
        if searchable and not any(is_within(os.path.realpath(path), real) for path in in_use):
            return Stage(real)
    raise LaunchError(
        f"None of {', '.join(COVERED)} is free for the sandbox's private mounts.",
        "move the state directory (XDG_STATE_HOME) or runsc out of at least one of them.",
    )


def run_staged(
    stage: Stage,
    binds: Sequence[Bind],
    meminfo: Path,
    start: Callable[[], _Result],
    *,
    merges: bool = False,
) -> _Result:
    """Run ``start`` where ``stage`` holds the sources of ``binds``, in their order.

    ``merges``: and after them the last two in one, read-only, the one before the last above the
    last. ``meminfo`` is seen as /proc/meminfo there. ``start`` runs in a thread that ends
    afterwards. Raises what ``start`` raises, and LaunchError where the mounts cannot be made.
    """
    results: list[_Result] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            _stage(stage, binds, meminfo)
            if merges:
                _merge(stage, len(binds))
            results.append(start())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="gvisor-kernel-stage")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _stage(stage: Stage, binds: Sequence[Bind], meminfo: Path) -> None:
    try:
        _check(_libc.unshare(_CLONE_NEWNS), "unshare", "the mount namespace")
        # What the host unmounts goes here as well; what is mounted here is not seen there.
        _mount("none", "/", None, _MS_REC | _MS_SLAVE, None)
    except OSError as error:
        raise LaunchError(
            f"A private mount namespace cannot be made: {error.strerror}.",
            "run Jupyter as an ordinary user; or, in a container, give root CAP_SYS_ADMIN"
            " (docker run --privileged).",
        ) from error
    with suppress(OSError):  # then the machine's memory shows inside, where it is only a number
        _mount(str(meminfo), "/proc/meminfo", None, _MS_BIND, None)
    with ExitStack() as stack:
        trees = []
        for bind in binds:
            tree = _clone_tree(bind)
            stack.callback(os.close, tree)
            trees.append((tree, stat.S_ISDIR(os.fstat(tree).st_mode)))
        try:
            flags = _MS_NOSUID | _MS_NODEV
            _mount("tmpfs", stage.directory, "tmpfs", flags, "mode=0755,size=1m")
            for index, (tree, is_directory) in enumerate(trees):
                place = Path(stage.path(index))
                if is_directory:
                    place.mkdir(mode=0o755)
                else:
                    place.touch()
                _move_tree(tree, str(place))
        except OSError as error:
            raise LaunchError(
                f"A private mount cannot be made on {stage.directory}: {error.strerror}.",
                "this kernel must be Linux 5.12 or newer; or run Jupyter as an ordinary user.",
            ) from error


def _merge(stage: Stage, count: int) -> None:
    target = stage.path(count)
    flags = _MS_NOSUID | _MS_NODEV | _MS_RDONLY
    layers = f"lowerdir={stage.path(count - 2)}:{stage.path(count - 1)}"
    try:
        Path(target).mkdir(mode=0o755)
        _mount("overlay", target, "overlay", flags, layers)
    except OSError as error:
        raise LaunchError(
            f"The image's files cannot be mounted: {error.strerror}.",
            "this kernel must have overlay mounts: `sudo modprobe overlay`.",
        ) from error


def _clone_tree(bind: Bind) -> int:
    """A detached copy of the mount at ``bind.source``: not in any mount table."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _AT_RECURSIVE | _AT_EMPTY_PATH
    try:
        source = _open_source(bind)
        try:
            tree = _check(
                _libc.syscall(_SYS_OPEN_TREE, source, b"", ctypes.c_uint(flags)),
                "open_tree",
                bind.source,
            )
        finally:
            os.close(source)
    except OSError as error:
        raise LaunchError(
            f"{bind.source} cannot be mounted: {error.strerror}.",
            _SCARCE
            if error.errno in (errno.EMFILE, errno.ENFILE)
            else "see whether it exists; on a network file system, whether root may read it.",
        ) from error
    try:
        attributes = _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV
        if bind.read_only:
            attributes |= _MOUNT_ATTR_RDONLY
        _set_attributes(tree, attributes, None, recursive=True)
        if bind.foreign:
            _map_owner(tree, bind)
    except BaseException:
        os.close(tree)
        raise
    return tree


def _open_source(bind: Bind) -> int:
    """A handle of ``bind.source``. Of a place that a kernel may be writing, links are refused.

    The plan has followed those that were there; one that is there now was put there meanwhile.
    """
    if bind.target not in KERNELS_OWN:
        return os.open(bind.source, os.O_PATH | os.O_CLOEXEC)
    how = (ctypes.c_uint64 * 3)(os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_NO_SYMLINKS)
    path, size = os.fsencode(bind.source), ctypes.c_size_t(ctypes.sizeof(how))
    result = _libc.syscall(_SYS_OPENAT2, _AT_FDCWD, path, ctypes.byref(how), size)
    return _check(result, "open", bind.source)


def can_map_owner(path: str) -> bool:
    """Whether the file system of ``path`` can show its owner as somebody else.

    False also where the mount cannot be made at all: the start says why.
    """
    try:
        os.close(_clone_tree(Bind(path, "/", read_only=False, foreign=True)))
    except LaunchError:
        return False
    return True


def _map_owner(tree: int, bind: Bind) -> None:
    """Let the owner of ``bind.source`` be the sandbox's root there, and the other way round."""
    status = os.fstat(tree)
    namespace = _owner_namespace(status.st_uid, status.st_gid)
    reason: str | None = None
    for recursive in (True, False):  # a file system mounted below may not be able to
        try:
            _set_attributes(tree, _MOUNT_ATTR_IDMAP, namespace, recursive=recursive)
            return
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
                raise
            reason = error.strerror
    if not bind.read_only:
        raise LaunchError(
            f"The file system of {bind.source} cannot map owners ({reason}), so the sandbox"
            " could not write there.",
            "choose a folder on ext4, xfs, btrfs or tmpfs, or let it be read-only; or run"
            " Jupyter as an ordinary user, who needs no mapping.",
        )
    # Read-only: what everybody may read can be read.


_namespaces: dict[tuple[int, int], int] = {}
_namespaces_lock = threading.Lock()


def _owner_namespace(uid: int, gid: int) -> int:
    """A file descriptor of a user namespace that maps an owner; one an owner for ever."""
    with _namespaces_lock:
        if (uid, gid) not in _namespaces:
            _namespaces[uid, gid] = _make_namespace(uid, gid)
        return _namespaces[uid, gid]


def _make_namespace(uid: int, gid: int) -> int:
    child = subprocess.Popen(
        ["unshare", "--user", "sh", "-c", "echo; read -r _"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    with child:
        assert child.stdout is not None  # it is a pipe
        if not child.stdout.read(1):
            raise LaunchError(
                "A user namespace cannot be made.",
                "look at `sysctl user.max_user_namespaces`; `gvisor-kernel doctor` says more.",
            )
        folder = Path(f"/proc/{child.pid}")
        (folder / "uid_map").write_text(f"{uid} {SUBUID_BASE} 1\n")
        (folder / "gid_map").write_text(f"{gid} {SUBUID_BASE} 1\n")
        return os.open(folder / "ns" / "user", os.O_RDONLY | os.O_CLOEXEC)


def _set_attributes(tree: int, attributes: int, namespace: int | None, *, recursive: bool) -> None:
    structure = _MountAttr(attr_set=attributes, userns_fd=namespace or 0)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    result = _libc.syscall(
        _SYS_MOUNT_SETATTR,
        tree,
        b"",
        ctypes.c_uint(flags),
        ctypes.byref(structure),
        ctypes.c_size_t(ctypes.sizeof(structure)),
    )
    _check(result, "mount_setattr", "")


def _move_tree(tree: int, target: str) -> None:
    result = _libc.syscall(
        _SYS_MOVE_MOUNT,
        tree,
        b"",
        _AT_FDCWD,
        os.fsencode(target),
        ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH),
    )
    _check(result, "move_mount", target)


def _mount(source: str, target: str, kind: str | None, flags: int, options: str | None) -> None:
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        options.encode() if options else None,
    )
    _check(result, "mount", target)


def _check(result: int, call: str, path: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{call}: {os.strerror(code)}", path)
    return result
