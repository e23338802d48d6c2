"""The kernel process makes no set-uid or set-gid files, no devices, and no mounts.

A file in ``outputs`` belongs to the folder's owner on the host, who may be root; one with a
set-uid bit would be a program with which any user of the host becomes its owner. File systems
have no option against making such files, so the calls are refused: a filter of this kernel
process and all its children that they cannot take off.

A mount in a namespace of its own would go round that: with an overlay over ``outputs``, which a
current gVisor allows, gVisor itself makes devices there for what is removed, and copies files
with the mode that another file system says they have.
"""

from __future__ import annotations

import ctypes
import errno
import struct
import sys
from typing import Dict, List, NamedTuple, Optional

SET_ID = 0o6000
DEVICE = 0o020000
"""Set in the file types "block" and "character" of mknod, and not in those it may make."""
CREATES = 0o100 | 0o20000000
"""O_CREAT and O_TMPFILE of x86-64 and arm64: without them open has no mode."""

PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
ALLOW = 0x7FFF0000
ERRNO = 0x00050000
KILL_PROCESS = 0x80000000

LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16

ABSENT = (
    *("openat2", "fchmodat2", "io_uring_setup"),
    *("open_tree", "move_mount", "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr"),
)
"""As in a kernel that has none of them: calls that pass their mode in memory or to another call,
and the newer ones of mounts."""
FORBIDDEN = ("mount",)
"""As to whoever has no capability."""


class Rule(NamedTuple):
    """Which argument of a call is the file's mode, and which its flags, if without them it has
    none."""

    mode: int
    flags: Optional[int] = None
    bits: int = SET_ID


RULES: Dict[str, Rule] = {
    "chmod": Rule(1),
    "fchmod": Rule(1),
    "fchmodat": Rule(2),
    "creat": Rule(1),
    "open": Rule(2, flags=1),
    "openat": Rule(3, flags=2),
    "mknod": Rule(1, bits=SET_ID | DEVICE),
    "mknodat": Rule(2, bits=SET_ID | DEVICE),
}
_NEW = {
    **{"io_uring_setup": 425, "openat2": 437, "fchmodat2": 452, "mount_setattr": 442},
    **{"open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431},
    **{"fsmount": 432, "fspick": 433},
}
NUMBERS: Dict[int, Dict[str, int]] = {
    0xC000003E: {
        **_NEW,
        **{"open": 2, "creat": 85, "chmod": 90, "fchmod": 91, "mknod": 133, "mount": 165},
        **{"openat": 257, "mknodat": 259, "fchmodat": 268},
    },
    0xC00000B7: {
        **_NEW,
        **{"mknodat": 33, "mount": 40, "fchmod": 52, "fchmodat": 53, "openat": 56},
    },
}
"""The calls' numbers on x86-64 and arm64, by the architecture's number in a filter."""


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)


def _argument(index: int) -> bytes:
    """Load the lower half of an argument; modes and flags have no more."""
    low = FIRST_ARGUMENT + 8 * index + (4 if sys.byteorder == "big" else 0)
    return _step(LOAD, low)


def _judge(rule: Rule) -> List[bytes]:
    steps = [
        _argument(rule.mode),
        _step(ANY_BIT, rule.bits, 0, 1),
        _step(RETURN, ERRNO | errno.EPERM),
        _step(RETURN, ALLOW),
    ]
    if rule.flags is not None:
        steps = [_argument(rule.flags), _step(ANY_BIT, CREATES, 0, len(steps) - 1), *steps]
    return steps


def finalize_program() -> List[bytes]:
    """The filter's steps. A call of an architecture that is not known ends the process."""
    program: List[bytes] = []
    for architecture, numbers in NUMBERS.items():
        steps = [_step(LOAD, NUMBER)]
        for name, number in numbers.items():
            if name in ABSENT:
                block = [_step(RETURN, ERRNO | errno.ENOSYS)]
            elif name in FORBIDDEN:
                block = [_step(RETURN, ERRNO | errno.EPERM)]
            else:
                block = _judge(RULES[name])
            steps += [_step(EQUAL, number, 0, len(block)), *block]
        steps.append(_step(RETURN, ALLOW))
        program += [_step(LOAD, ARCHITECTURE), _step(EQUAL, architecture, 0, len(steps)), *steps]
    return [*program, _step(RETURN, KILL_PROCESS)]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_char_p)]


def install() -> None:
    """Filter this process and all it starts, for good. Needs no_new_privs. Raises OSError."""
    program = finalize_program()
    raw = _Program(len(program), b"".join(program))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(raw), 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "install the filter of system calls")
