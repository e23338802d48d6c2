"""Read the seccomp filters of a host process with ptrace, and evaluate them for a system call."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count

SEIZE, INTERRUPT, GET_FILTER, DETACH = 0x4206, 0x4207, 0x420C, 17
STEP = struct.Struct("=HBBI")
MAX_STEPS = 4096
ALLOW, ACTION = 0x7FFF0000, 0xFFFF0000
X86_64 = 0xC000003E

Program = list[tuple[int, int, int, int]]
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def _ptrace(request: int, pid: int, address: int = 0, data: object = None) -> int:
    result: int = _libc.ptrace(request, pid, address, data)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"ptrace {request:#x}")
    return result


@contextmanager
def _stopped(pid: int) -> Iterator[None]:
    _ptrace(SEIZE, pid)
    try:
        _ptrace(INTERRUPT, pid)
        os.waitpid(pid, 0x40000000)  # __WALL
        yield
    finally:
        _ptrace(DETACH, pid)


def read_filters(pid: int) -> list[Program]:
    """Return the filters of the first thread of ``pid``, which is stopped for a moment. Root only.

    :raises OSError: when the host's kernel does not show filters
    """
    found: list[Program] = []
    buffer = ctypes.create_string_buffer(MAX_STEPS * STEP.size)
    with _stopped(pid):
        while True:
            try:
                size = _ptrace(GET_FILTER, pid, len(found), buffer)
            except OSError as error:
                if error.errno == errno.ENOENT and found:
                    return found
                raise
            assert size <= MAX_STEPS
            found.append(list(STEP.iter_unpack(buffer.raw[: size * STEP.size])))


def allows(filters: Sequence[Program], number: int, *arguments: int) -> bool:
    """Whether all ``filters`` allow a system call of x86-64."""
    args = [*arguments, *[0] * 6][:6]
    call = struct.pack("=iIQ6Q", number, X86_64, 0, *args)
    return all(run(program, call)[0] & ACTION == ALLOW for program in filters)


def run(program: Program, call: bytes) -> tuple[int, int]:
    """Return what the program returns for a call (struct seccomp_data), and how many steps ran."""
    at = value = 0
    for steps in count(1):
        code, if_true, if_false, k = program[at]
        at += 1
        if code == 0x20:  # load
            (value,) = struct.unpack_from("=I", call, k)
        elif code == 0x05:  # jump
            at += k
        elif code in _CONDITIONS:
            at += if_true if _CONDITIONS[code](value, k) else if_false
        elif code == 0x54:  # and
            value &= k
        elif code == 0x74:  # shift to the right
            value >>= k
        elif code == 0x06:  # return
            return k, steps
        else:
            raise AssertionError(f"unknown BPF instruction {code:#x}")
    raise AssertionError("a program without an end")


_CONDITIONS = {
    0x15: lambda value, k: value == k,
    0x25: lambda value, k: value > k,
    0x35: lambda value, k: value >= k,
    0x45: lambda value, k: bool(value & k),
}
