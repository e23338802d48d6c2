"""A seccomp filter: the kernel process cannot make set-uid or set-gid files, devices or mounts.

A file in ``outputs`` belongs to the directory's owner on the host, who may be root. With a set-uid
bit it would be a program with which any user of the host becomes its owner. File systems have no
option against such files, so the system calls are refused, for this process and all its children,
which cannot remove the filter.

A mount in a namespace of its own would circumvent that: with an overlay over ``outputs``, which a
current gVisor allows, gVisor itself creates devices there for what is removed, and copies files
with the mode that another file system reports.

gVisor runs the filter for each number of a system call whenever a process or a thread is made, to
learn which ones it always allows. That was a fifth of the CPU time of a subprocess. So the program
is a search tree, and knows the numbers of one machine.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from collections.abc import Sequence
from typing import NamedTuple

SET_ID = 0o6000
DEVICE = 0o020000
"""Bit that is set in the types "block" and "character" of mknod and in no type that is allowed."""
CREATES = 0o100 | 0o20000000
"""O_CREAT and O_TMPFILE of x86-64 and arm64. Without them open takes no mode."""

PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
ALLOW = 0x7FFF0000
ERRNO = 0x00050000
KILL_PROCESS = 0x80000000

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16

HIDDEN_CALLS = (
    *("openat2", "fchmodat2", "io_uring_setup"),
    *("open_tree", "move_mount", "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr"),
)
"""Calls that fail with ENOSYS, as in a kernel without them: calls that pass their mode in memory or
to another call, and the newer calls for mounts."""
FORBIDDEN_CALLS = ("mount",)
"""Calls that fail with EPERM, as for a process without capabilities."""


class Rule(NamedTuple):
    """The argument of a call that is the mode of a file.

    ``flags``: the argument with the flags, if the call takes a mode only with some of them.
    ``bits``: the bits that the mode may not have.
    """

    mode: int
    flags: int | None = None
    bits: int = SET_ID


RULES: dict[str, Rule] = {
    "chmod": Rule(1),
    "fchmod": Rule(1),
    "fchmodat": Rule(2),
    "creat": Rule(1),
    "open": Rule(2, flags=1),
    "openat": Rule(3, flags=2),
    "mknod": Rule(1, bits=SET_ID | DEVICE),
    "mknodat": Rule(2, bits=SET_ID | DEVICE),
}
_COMMON_NUMBERS = {
    **{"io_uring_setup": 425, "openat2": 437, "fchmodat2": 452, "mount_setattr": 442},
    **{"open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431},
    **{"fsmount": 432, "fspick": 433},
}
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""The audit number of each machine that has rules."""
NUMBERS: dict[str, dict[str, int]] = {
    "x86_64": {
        **_COMMON_NUMBERS,
        **{"open": 2, "creat": 85, "chmod": 90, "fchmod": 91, "mknod": 133, "mount": 165},
        **{"openat": 257, "mknodat": 259, "fchmodat": 268},
    },
    "aarch64": {
        **_COMMON_NUMBERS,
        **{"mknodat": 33, "mount": 40, "fchmod": 52, "fchmodat": 53, "openat": 56},
    },
}
"""The numbers of the calls, by machine."""


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)


def _argument(index: int) -> bytes:
    """Load the lower half of an argument. Modes and flags have no more bits."""
    low = FIRST_ARGUMENT + 8 * index + (4 if sys.byteorder == "big" else 0)
    return _instruction(LOAD, low)


def _check_mode(rule: Rule) -> list[bytes]:
    steps = [
        _argument(rule.mode),
        _instruction(ANY_BIT, rule.bits, 0, 1),
        _instruction(RETURN, ERRNO | errno.EPERM),
        _instruction(RETURN, ALLOW),
    ]
    if rule.flags is not None:
        steps = [_argument(rule.flags), _instruction(ANY_BIT, CREATES, 0, len(steps) - 1), *steps]
    return steps


def _decide(name: str) -> list[bytes]:
    """Return the steps that decide about the call ``name``."""
    if name in HIDDEN_CALLS:
        return [_instruction(RETURN, ERRNO | errno.ENOSYS)]
    if name in FORBIDDEN_CALLS:
        return [_instruction(RETURN, ERRNO | errno.EPERM)]
    return _check_mode(RULES[name])


def _search(calls: Sequence[tuple[int, str]]) -> list[bytes]:
    """Return the steps that find the loaded number among sorted ``calls``, and decide about it."""
    if len(calls) == 1:
        ((number, name),) = calls
        block = _decide(name)
        allow = _instruction(RETURN, ALLOW)
        return [_instruction(EQUAL, number, 0, len(block)), *block, allow]
    middle = len(calls) // 2
    below, above = _search(calls[:middle]), _search(calls[middle:])
    return [_instruction(AT_LEAST, calls[middle][0], len(below), 0), *below, *above]


def assemble_program(machine: str) -> list[bytes]:
    """Return the instructions for ``machine``, as uname names it.

    A call of another architecture ends the process.

    :raises OSError: when there are no rules for the machine
    """
    if machine not in ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"there are no seccomp rules for the machine {machine!r}")
    calls = sorted((number, name) for name, number in NUMBERS[machine].items())
    return [
        _instruction(LOAD, ARCHITECTURE),
        _instruction(EQUAL, ARCHITECTURES[machine], 1, 0),
        _instruction(RETURN, KILL_PROCESS),
        _instruction(LOAD, NUMBER),
        *_search(calls),
    ]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_char_p)]


def install() -> None:
    """Install the filter for this process and its children, for good. Needs no_new_privs.

    :raises OSError: when the kernel refuses it
    """
    program = assemble_program(os.uname().machine)
    raw = _Program(len(program), b"".join(program))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(raw), 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "install the seccomp filter")
