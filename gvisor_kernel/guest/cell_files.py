"""Files that a cell opens to read take five system calls in place of ten.

CPython asks whether a file is a terminal, three times where it stands, and twice how long it is.
IPython gives cells an ``open`` of its own, a function of Python that calls ``io.open``: that one
takes a file from here first. It has the same streams, of which the lowest one knows that a regular
file is no terminal and where it stands when it is opened. The ``open`` of all other code stays.
"""

from __future__ import annotations

import dis
import io
import os
import stat
import sys
from collections.abc import Mapping
from pathlib import PosixPath
from types import CodeType, FunctionType
from typing import Any

from gvisor_kernel.guest.interpreter import is_plain

PLAIN_NAME = "open"
SHELL = "IPython.core.interactiveshell"
NAMES = {"ValueError", "io_open"}
"""What IPython's function uses if it is as read, in IPython 8 and 9."""
MODES = ("r", "rt", "rb")
OPTIONS = {"mode", "encoding", "errors", "newline"}
MAX_BYTES = 1024 * 1024
"""Bytes of a file that is read at once. Of a larger one the calls are not what takes time."""
SOURCE = """
def _modified_open(file, *args, **kwargs):
    if type(file) not in _quick_kinds:
        return _usual_open(file, *args, **kwargs)
    found = _open_quickly(file, args, kwargs)
    return io_open(file, *args, **kwargs) if found is None else found
"""


class FileIO(io.FileIO):
    """A regular file that was just opened."""

    __slots__ = ("is_new", "rest")
    __module__ = io.FileIO.__module__

    def __init__(self, fd: int, size: int) -> None:
        super().__init__(fd)
        self.is_new, self.rest = True, size

    def __repr__(self) -> str:
        return super().__repr__().replace("<FileIO ", f"<{self.__module__}.FileIO ", 1)

    def tell(self) -> int:
        if self.is_new:  # the buffer over it asks once
            self.is_new = False
            return 0
        return super().tell()

    def seekable(self) -> bool:
        return super().seekable() if self.closed else True

    def readall(self) -> bytes:
        size, self.rest = self.rest, 0
        if not 0 < size <= MAX_BYTES:
            return super().readall()
        data = os.read(self.fileno(), size + 1)
        return data if len(data) == size else data + (super().readall() or b"")


def prepare() -> None:
    """Let the ``open`` of cells open quickly, if IPython's is as expected. Once, in the kernel.

    Its code is replaced: a file that is missing has the traceback that it had.
    """
    shell: Any = sys.modules.get(SHELL)
    usual = getattr(shell, "_modified_open", None)
    if (
        not isinstance(usual, FunctionType)
        or set(usual.__code__.co_names) != NAMES
        or shell.io_open is not io.open
        or sys.version_info >= (3, 14)  # which makes fewer calls itself
    ):
        return
    code = usual.__code__
    source = SOURCE.strip()
    last = max(line for _, line in dis.findlinestarts(code) if line)
    lines = "\n" * (last - 1 - source.count("\n"))
    parts = compile(f"{lines}{source}", code.co_filename, "exec").co_consts
    shell._quick_kinds, shell._open_quickly = (str, PosixPath), open_quickly
    shell._usual_open = FunctionType(code, usual.__globals__, usual.__name__)
    usual.__code__ = next(part for part in parts if isinstance(part, CodeType))


def open_quickly(file: Any, args: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
    """Return what ``io.open(file, *args, **options)`` does; None if that is to be called."""
    if len(args) > 1 or not OPTIONS.issuperset(options) or (args and "mode" in options):
        return None
    mode = args[0] if args else options.get("mode", "r")
    texts = {name: value for name, value in options.items() if name != "mode"}
    if mode not in MODES or (mode == "rb" and texts) or sys.flags.warn_default_encoding:
        return None
    if is_plain(PLAIN_NAME, os.environ):
        return None
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    raw: Any = None
    try:
        status = os.fstat(fd)
        regular = stat.S_ISREG(status.st_mode)
        raw = FileIO(fd, status.st_size) if regular else io.FileIO(fd)
        raw.name = os.fspath(file)
        buffer = io.BufferedReader(raw, raw._blksize)
        if mode == "rb":
            return buffer
        text: Any = io.TextIOWrapper(buffer, **texts, line_buffering=not regular and raw.isatty())
        text.mode = mode
        return text
    except Exception:
        if raw is None:
            os.close(fd)
        else:
            raw.close()
        return None
