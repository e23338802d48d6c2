"""System calls that Python 3.9 has no functions for. They decide nothing; each raises OSError."""

from __future__ import annotations

import ctypes
import os
import struct

MS_BIND = 0x1000
MNT_DETACH = 2
CLONE_NEWUSER = 0x10000000
PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
CAPABILITY_VERSION_3 = 0x20080522
PR_SET_NO_NEW_PRIVS = 38
LAST_CAPABILITY = 63
_TASKS_AT = struct.calcsize("10l")
"""Offset of the number of tasks in the struct of sysinfo(2)."""

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str, options: str) -> None:
    """Call mount(2) without flags."""
    result = _libc.mount(
        source.encode(),
        target.encode(),
        kind.encode(),
        ctypes.c_ulong(0),
        options.encode(),
    )
    _check(result, f"mount {kind} on {target}")


def bind(source: str, target: str) -> None:
    """Show the folder ``source`` at ``target`` as well."""
    result = _libc.mount(source.encode(), target.encode(), b"", ctypes.c_ulong(MS_BIND), None)
    _check(result, f"bind {source} to {target}")


def unmount(target: str) -> None:
    """Call umount2(2), whoever uses what is mounted there."""
    _check(_libc.umount2(target.encode(), MNT_DETACH), f"unmount {target}")


def adopt_orphans() -> None:
    """Become the parent of this process's descendants whose parent ends (prctl(2))."""
    _check(_libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "adopt orphans")


def unshare_user() -> None:
    """Move this process into a new user namespace. Its parent has to write the uid and gid maps."""
    _check(_libc.unshare(CLONE_NEWUSER), "unshare a user namespace")


def drop_capabilities() -> None:
    """Drop all capabilities, for this process and every program that it starts.

    A new program of uid 1000 would have none anyway, but a fork of PID 1 has those of PID 1.
    """
    for capability in range(LAST_CAPABILITY + 1):
        if _libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            break  # EINVAL: the number after the last capability of this kernel
    header = struct.pack("Ii", CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, bytes(24)), "drop all capabilities")


def raise_capabilities() -> None:
    """Make all permitted capabilities effective. A change of the uid has cleared them."""
    header = struct.pack("Ii", CAPABILITY_VERSION_3, 0)
    sets = ctypes.create_string_buffer(24)
    _check(_libc.capget(header, sets), "read the capabilities")
    _, permitted, inherited, _, high, high_inherited = struct.unpack("6I", sets)
    raised = struct.pack("6I", permitted, permitted, inherited, high, high, high_inherited)
    _check(_libc.capset(header, raised), "raise the capabilities")


def forbid_new_privileges() -> None:
    """Set no_new_privs for this process and its children, for good."""
    _check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "set no_new_privs")


def set_dumpable(whether: bool) -> None:
    """Set whether the files in /proc/PID belong to this process's uid (True) or to root."""
    _check(_libc.prctl(PR_SET_DUMPABLE, int(whether), 0, 0, 0), "set dumpable")


def count_tasks() -> int:
    """Count the threads of all processes. One system call, which waits for none of them."""
    buffer = ctypes.create_string_buffer(128)
    _check(_libc.sysinfo(buffer), "sysinfo")
    tasks: int = struct.unpack_from("H", buffer, _TASKS_AT)[0]
    return tasks


def read_kernel_log(size: int) -> str:
    """Return the first ``size`` bytes of the kernel's log; empty if reading is not permitted."""
    buffer = ctypes.create_string_buffer(65536)
    length = _libc.klogctl(3, buffer, len(buffer))
    return buffer.raw[: max(length, 0)][:size].decode("ascii", "replace")
