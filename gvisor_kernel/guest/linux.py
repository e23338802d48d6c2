"""The system calls that Python 3.9 has no names for. Thin: each raises OSError, decides nothing."""

from __future__ import annotations

import ctypes
import os
import struct

CLONE_NEWUSER = 0x10000000
PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
CAPABILITY_VERSION_3 = 0x20080522
PR_SET_NO_NEW_PRIVS = 38
LAST_CAPABILITY = 63
_TASKS_AT = struct.calcsize("10l")
"""In what sysinfo(2) tells."""

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str, options: str) -> None:
    """mount(2) without flags."""
    result = _libc.mount(
        source.encode(),
        target.encode(),
        kind.encode(),
        ctypes.c_ulong(0),
        options.encode(),
    )
    _check(result, f"mount {kind} on {target}")


def unshare_user() -> None:
    """Move the calling process into a new user namespace; its maps are for its parent to write."""
    _check(_libc.unshare(CLONE_NEWUSER), "unshare a user namespace")


def drop_capabilities() -> None:
    """Empty every set: neither this process nor a program started from it has a capability.

    A new program of uid 1000 would have none anyway; a fork of PID 1 has all that it had.
    """
    for capability in range(LAST_CAPABILITY + 1):
        if _libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            break  # EINVAL: one past the last capability that this kernel knows
    header = struct.pack("Ii", CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, bytes(24)), "drop all capabilities")


def raise_capabilities() -> None:
    """Let all that this process may have be effective, as a change of its uid has undone."""
    header = struct.pack("Ii", CAPABILITY_VERSION_3, 0)
    sets = ctypes.create_string_buffer(24)
    _check(_libc.capget(header, sets), "read the capabilities")
    _, permitted, inherited, _, high, high_inherited = struct.unpack("6I", sets)
    raised = struct.pack("6I", permitted, permitted, inherited, high, high, high_inherited)
    _check(_libc.capset(header, raised), "raise the capabilities")


def forbid_new_privileges() -> None:
    _check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "set no_new_privs")


def set_dumpable(whether: bool) -> None:
    """Whether what /proc tells of this process belongs to its uid, or to root alone."""
    _check(_libc.prctl(PR_SET_DUMPABLE, int(whether), 0, 0, 0), "set dumpable")


def count_tasks() -> int:
    """Threads of all processes, by one call that waits for none of them."""
    buffer = ctypes.create_string_buffer(128)
    _check(_libc.sysinfo(buffer), "sysinfo")
    tasks: int = struct.unpack_from("H", buffer, _TASKS_AT)[0]
    return tasks


def read_kernel_log(size: int) -> str:
    """The first ``size`` bytes of the kernel's messages; empty where they may not be read."""
    buffer = ctypes.create_string_buffer(65536)
    length = _libc.klogctl(3, buffer, len(buffer))
    return buffer.raw[: max(length, 0)][:size].decode("ascii", "replace")
