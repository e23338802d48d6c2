"""Fonts of matplotlib, read from memory: FreeType would read an open file glyph by glyph.

A figure of four axes makes 4,600 ``lseek`` and 2,500 ``read``, one with much text ten times that,
and each is a system call that costs 10 µs inside gVisor. So ``FT2Font`` gets the whole file, as its
documentation allows, and keeps its path as its name. Nothing else of matplotlib is touched. A font
that is replaced on disk is read again by the next ``FT2Font``, as before.

This is for matplotlib as it was read: another version is left alone.
"""

from __future__ import annotations

import builtins
import io
import os
import stat
import sys
from types import FunctionType
from typing import Any
from weakref import WeakValueDictionary

from gvisor_kernel.guest.interpreter import is_plain, wrap_loader

PLAIN_NAME = "fonts"
MODULE = "matplotlib.ft2font"
VERSION_MODULE = "matplotlib._version"
VERSIONS = ("3.10.", "3.11.")
"""Beginnings of the versions in which ``FT2Font`` is as read."""
MAX_BYTES = 32 * 1024 * 1024
"""Bytes of all fonts in memory together. Fonts beyond it are read from their files."""


class Content:
    """The bytes of a font, while some ``FT2Font`` has them."""

    def __init__(self, data: bytes) -> None:
        self.data = data


class FontFile(io.BytesIO):
    """A font in memory. Where matplotlib shows it as text, it shows the path."""

    def __init__(self, path: str, content: Content) -> None:
        super().__init__(content.data)  # shared: a BytesIO copies them when it is written
        self.name = self.path = path
        self.content = content

    def __str__(self) -> str:
        return self.path

    def __repr__(self) -> str:
        return repr(self.path)


_contents: WeakValueDictionary[tuple[str, int, int, int, int, int], Content] = WeakValueDictionary()


def prepare() -> None:
    """Read fonts from memory as soon as matplotlib is imported. Once, in the kernel's process.

    A kernel that does not import it pays one comparison for each extension module. The finder, the
    loader and tracebacks of imports stay importlib's own.
    """

    def wrap(execute: Any) -> Any:
        def exec_module(self: Any, module: Any) -> None:
            execute(self, module)
            if module.__name__ == MODULE:
                change(module)

        return exec_module

    wrap_loader("exec_module", wrap)
    if MODULE in sys.modules:
        change(sys.modules[MODULE])


def change(module: Any) -> bool:
    """Let ``FT2Font`` of matplotlib's ``module`` read from memory. Idempotent.

    Returns False, and changes nothing, if it is not as expected.
    """
    version = str(getattr(sys.modules.get(VERSION_MODULE), "version", ""))
    font: Any = getattr(module, "FT2Font", None)
    parts = vars(font) if isinstance(font, type) else {}
    initialize: Any = parts.get("__init__")
    name = parts.get("fname")
    file = str(getattr(module, "__file__", ""))
    if (
        not version.startswith(VERSIONS)
        or type(initialize).__name__ != "instancemethod"  # pybind11's, and not ours
        or ", filename: object," not in str(font.__init__.__doc__)
        or not isinstance(name, property)
    ):
        return False
    find_name: Any = name.fget

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if args and type(args[0]) is str:
            args = (read(args[0]) or args[0], *args[1:])
        initialize(self, *args, **kwargs)

    def fname(self: Any) -> Any:
        found = find_name(self)
        return found.path if type(found) is FontFile else found

    code = __init__.__code__.replace(co_filename=os.path.join(os.path.dirname(file), "ft2font"))
    # Warnings are told of the first caller that is not matplotlib: by file, or by global name.
    names = {"__name__": MODULE, "__builtins__": builtins, "read": read}
    made = FunctionType(code, names, None, None, __init__.__closure__)
    made.__doc__, made.__qualname__ = font.__init__.__doc__, "FT2Font.__init__"
    font.__init__, font.fname = made, property(fname, doc=name.__doc__)
    return True


def read(path: str) -> FontFile | None:
    """Return the font ``path``; None if it is to be opened as ever, or cannot be."""
    if is_plain(PLAIN_NAME, os.environ):
        return None
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError):
        return None
    try:
        status = os.fstat(fd)
        size = status.st_size
        key = (path, status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, size)
        content = _contents.get(key)
        if content is None:
            held = sum(len(each.data) for each in list(_contents.values()))
            if not stat.S_ISREG(status.st_mode) or held + size > MAX_BYTES:
                return None
            content = Content(os.read(fd, size + 1))
            if len(content.data) != size:  # it is being written
                return None
            _contents[key] = content
        return FontFile(path, content)
    except OSError:
        return None
    finally:
        os.close(fd)
