"""``inspect`` finds the module of a file with a tenth of the system calls.

IPython asks for the module of each frame of a traceback, and so do ``inspect.stack`` and
``inspect.getsource``. The first time, ``inspect`` notes the real path of every module's file, for
which ``realpath`` looks at each folder above each file: 11,300 calls of ``lstat`` with pandas and
pyplot, so the first error of a kernel took 270 to 470 ms, and 71 locally. Here each folder is
looked at once in such a search. What is noted, and where, stays ``inspect``'s own; nothing is kept
from one search to the next.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from contextlib import suppress
from types import FunctionType, ModuleType
from typing import Any

from gvisor_kernel.guest.interpreter import is_plain

PLAIN_NAME = "inspect"
NAMES = {"modulesbyfile", "_filesbymodname", "getabsfile", "realpath", "modules"}
"""What ``inspect.getmodule`` uses if it is as read: in Python 3.9 to 3.14."""


def prepare() -> None:
    """Replace ``inspect.getmodule``, if it is as expected. Once, in the kernel's process."""
    find: Any = inspect.getmodule
    if not isinstance(find, FunctionType) or not NAMES.issubset(find.__code__.co_names):
        return
    count = 0

    @functools.wraps(find)
    def getmodule(object: Any, _filename: Any = None) -> Any:
        nonlocal count
        is_searched = not isinstance(object, ModuleType) and not hasattr(object, "__module__")
        is_new = is_searched and len(sys.modules) != count
        if is_new and not is_plain(PLAIN_NAME, os.environ) and not is_noted(object, _filename):
            count = len(sys.modules)
            note_files()
        return find(object, _filename)

    inspect.getmodule = getmodule


def is_noted(object: Any, filename: Any) -> bool:
    """Return whether ``inspect`` knows the module of ``object``, or that there is none."""
    by_file = vars(inspect)["modulesbyfile"]
    try:
        return filename in by_file or inspect.getabsfile(object, filename) in by_file
    except Exception:  # inspect says what then
        return True


def note_files() -> None:
    """Note the files of the modules that ``inspect`` has not noted yet, as its search does."""
    names: Any = vars(inspect)
    by_file, by_name = names["modulesbyfile"], names["_filesbymodname"]
    found: dict[str, str] = {"/": "/"}
    for name, module in sys.modules.copy().items():
        with suppress(Exception):  # a module may call anything its file: inspect says what then
            if not isinstance(module, ModuleType) or not hasattr(module, "__file__"):
                continue
            file = module.__file__
            if file == by_name.get(name):
                continue
            path = inspect.getabsfile(module)
            by_file[path] = by_file[find_real(path, found)] = module.__name__
            by_name[name] = file


def find_real(path: str, found: dict[str, str]) -> str:
    """Return ``os.path.realpath(path)`` of an absolute, normal path. ``found``: of its parents."""
    if path.startswith("//"):
        return os.path.realpath(path)
    names = []
    folder = path
    while folder not in found:
        folder, _, name = folder.rpartition("/")
        folder = folder or "/"
        names.append(name)
    real = found[folder]
    while names:
        name = names.pop()
        folder, real = f"{folder.rstrip('/')}/{name}", f"{real.rstrip('/')}/{name}"
        if os.path.islink(real):
            real = os.path.realpath(real)
        found[folder] = real
    return real
