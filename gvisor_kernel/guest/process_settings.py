"""Settings of the process that an import must leave as they were, since other code would notice it.

A module that is imported ahead is in kernels that never import it. What it has set for the whole
process would hold there, too: another working folder, a handler of a signal, a filter for all
warnings, another function in a module of Python. What it adds for itself is none of this.
Whether a module is imported ahead is up to ``preload``.
"""

from __future__ import annotations

import contextlib
import gc
import locale
import os
import resource
import signal
import socket
import sys
import warnings
from typing import Any, Callable, Dict, NamedTuple

HARMLESS = frozenset({"KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"})
"""Variables that scikit-learn sets for its library of threads."""
HOOKS = ("displayhook", "excepthook", "breakpointhook", "unraisablehook")
STREAMS = ("stdin", "stdout", "stderr")
RESOURCES = sorted(name for name in dir(resource) if name.startswith("RLIMIT_"))


class Settings(NamedTuple):
    """Settings of a process by their names: ``values`` are compared by what they are, ``objects``
    by their identity."""

    values: Dict[str, Any]
    variables: Dict[str, str]
    objects: Dict[str, Any]


def read_settings() -> Settings:
    """Return the settings of this process as they are now."""
    umask = os.umask(0)
    os.umask(umask)
    values: Dict[str, Any] = {
        "the working folder": os.getcwd(),
        "the umask": umask,
        "the garbage collector": (gc.isenabled(), gc.get_threshold()),
        "the recursion limit": sys.getrecursionlimit(),
        "sys.path": list(sys.path),
        "the handlers of signals": [signal.getsignal(n) for n in sorted(signal.valid_signals())],
        "the locale": locale.setlocale(locale.LC_ALL),
        "the timeout of sockets": socket.getdefaulttimeout(),
        "the limits of resources": [resource.getrlimit(getattr(resource, n)) for n in RESOURCES],
        "the filters for all warnings": list(filter(_is_wide, warnings.filters)),
        "the open files": _count_files(),
    }
    values.update(_read_options())
    objects: Dict[str, Any] = {f"sys.{name}": getattr(sys, name) for name in (*HOOKS, *STREAMS)}
    for name, module in list(sys.modules.items()):
        objects[name] = module
        for word, value in list(getattr(module, "__dict__", {}).items()):
            if callable(value):
                objects[f"{name}.{word}"] = value
    return Settings(values, {n: v for n, v in os.environ.items() if n not in HARMLESS}, objects)


def find_change(before: Settings) -> str:
    """Return the name of a setting that is not as ``before`` any more; empty if all are.

    Variables of the environment must not be added either: libraries that are imported later would
    read them.
    """
    now = read_settings()
    for name in sorted({*before.variables, *now.variables}):
        if before.variables.get(name) != now.variables.get(name):
            return f"the variable {name}"
    for name, value in before.values.items():
        if now.values.get(name) != value:
            return name
    for name, value in before.objects.items():
        if now.objects.get(name) is not value:
            return name
    return ""


def _is_wide(entry: Any) -> bool:
    """Return whether a filter of warnings is for all modules and texts, and for a category that is
    not a package's own."""
    _, text, category, module, _ = entry
    return text is None and module is None and category.__module__ == "builtins"


def _count_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def _read_options() -> Dict[str, Any]:
    """Return the options of packages that are imported and that have some for the process."""
    modules: Dict[str, Any] = dict(sys.modules)
    readers: Dict[str, Callable[[Any], object]] = {
        "numpy": lambda m: (m.geterr(), m.get_printoptions()),
        "pandas._config.config": lambda m: m._global_config,
        # Without dict's own method, matplotlib would choose a backend now.
        "matplotlib": lambda m: dict(dict.items(m.rcParams)),
    }
    found = {}
    for name, read in readers.items():
        with contextlib.suppress(Exception):  # another version of the package has it elsewhere
            if name in modules:
                found[f"the options of {name.partition('.')[0]}"] = repr(read(modules[name]))
    return found
