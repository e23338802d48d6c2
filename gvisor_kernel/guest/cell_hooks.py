"""Runs in the kernel's process after each cell: reports of imports, and a word about files.

``CellImports`` reports to the host, for the first minutes, which modules of the environment cells
import. Only names leave the sandbox: of modules that are installed beside the interpreter, and of
variables that cells set. The host counts the modules and imports the most used ones ahead in the
next snapshot, but none if cells set variables that these would have read before. It believes
nothing else of a report.

``UnkeptFiles`` tells a person, below a cell, that files in /workspace end with the sandbox. What
the kernel's code does to either concerns only that kernel.
"""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from gvisor_kernel.guest.installed import is_loaded
from gvisor_kernel.guest.questions import ADDRESS
from gvisor_kernel.guest.workspace import (
    FOLDER,
    KEPT,
    NEVER,
    OWN_OUTPUTS,
    SHOWN,
    TOLD,
    UPPER,
    VARIABLE,
    WORKSPACE,
    is_cache,
)
from gvisor_kernel.link.service_messages import LENGTH

LEARNS = "GVISOR_KERNEL_LEARNS"
"""Set by the host where it wants to know."""
SECONDS = 600.0
"""Seconds after its first cell in which a kernel reports."""
SEND_SECONDS = 0.2
"""Seconds that a cell waits for PID 1 to take a report, at most."""
MAX_CODE = 100_000
"""Characters of a cell that is searched."""
MAX_NAMES = 64
MAX_NAME = 100
MAX_PARTS = 3
MAX_VARIABLES = 16

_STATEMENT = re.compile(
    r"^[^\S\n]*(?:import[^\S\n]+(?P<names>[\w., \t]+)"
    r"|from[^\S\n]+(?P<package>[\w.]+)[^\S\n]+import[^\S\n]+\(?(?P<members>[\w., \t]*))",
    re.MULTILINE | re.ASCII,
)


_VARIABLE = re.compile(r"\b[A-Z][A-Z0-9_]{2,63}\b", re.ASCII)


class CellImports:
    """Reports each import of one kernel once. The callback of IPython's event ``post_run_cell``."""

    def __init__(self) -> None:
        self._reported: set[str] = set()
        self._end: float | None = None

    def after_cell(self, result: Any) -> None:
        """Report what a cell has imported. ``result``: IPython's of the cell."""
        with suppress(Exception):  # a cell must not fail by this
            if LEARNS not in os.environ:
                return
            code = result.info.raw_cell
            if len(code) > MAX_CODE or not ("import" in code or "env" in code):
                return
            now = time.monotonic()
            if self._end is None:
                self._end = now + SECONDS
            if now > self._end:
                return
            names = self._find_new(code)
            variables = find_variables(code)
            if names or variables:
                send_report(names, variables)
                self._reported.update(names)

    def _find_new(self, code: str) -> list[str]:
        names = {name for name in find_imports(code) if name not in self._reported}
        room = MAX_NAMES - len(self._reported)
        return sorted(name for name in names if is_loaded(name))[:room]


def find_imports(code: str) -> Iterator[str]:
    """Yield names that import statements in ``code`` may mean, also those in a cell with magics.

    Some are none: a word in a text, or a member that is a function. ``sys.modules`` tells.
    """
    for statement in _STATEMENT.finditer(code.replace(";", "\n")):
        package = statement["package"]
        words = (item.split() for item in (statement["names"] or statement["members"]).split(","))
        found = [item[0] for item in words if item]
        if package is not None:
            found = [package, *(f"{package}.{member}" for member in found)]
        for name in found:
            if not name.startswith(".") and len(name) <= MAX_NAME and name.count(".") < MAX_PARTS:
                yield name


def find_variables(code: str) -> list[str]:
    """Return the variables of the environment that ``code`` names, as it may have set them."""
    if "env" not in code:
        return []
    return sorted(set(_VARIABLE.findall(code)).intersection(os.environ))[:MAX_VARIABLES]


def send_report(names: list[str], variables: Sequence[str] = ()) -> None:
    """Send names to the host, and do not wait for its answer.

    :raises OSError: when PID 1 does not take them
    """
    head = json.dumps({"do": "imports", "names": names, "variables": list(variables)}).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(SEND_SECONDS)
        connection.connect(ADDRESS)
        size = LENGTH.pack(LENGTH.size + len(head))
        connection.sendall(size + LENGTH.pack(len(head)) + head)


# -- files that are not kept -----------------------------------------------------------------------
# A person is told once, on stderr. In a batch run (papermill, nbconvert, nbclient) nobody can act
# on that, and it would stay in the finished notebook: there the log tells at the end.

MAX_VISITED = 500
"""Entries of folders that are looked at after one cell."""
MAX_SECONDS = 0.05
MAX_SHOWN = 100


class UnkeptFiles:
    """Tells a person of files that are not kept. One for each kernel. ``kernel``: ipykernel's."""

    def __init__(self, kernel: Any = None) -> None:
        self._kernel = kernel
        self._modified = -1
        self._has_folders = False
        """True if files may appear in folders that were made before, which a stat does not see."""
        self._is_told = bool(find_written(find_outputs()))  # by the last kernel of this sandbox

    def after_cell(self, result: Any) -> None:
        """Tell what there is to tell. ``result``: IPython's of the cell."""
        with suppress(Exception):  # a cell must not fail by this
            words = os.environ.get(VARIABLE, "").split()
            if TOLD not in words:
                return
            if not self._is_told and not self._is_batch():
                self._look(words)

    def _is_batch(self) -> bool:
        """Return whether nobody sits at the client: it can answer no question of the cell."""
        with suppress(Exception):
            return self._kernel.get_parent("shell")["content"]["allow_stdin"] is False
        return False

    def _look(self, words: list[str]) -> None:
        modified = os.stat(UPPER).st_mtime_ns
        if modified == self._modified and not self._has_folders:
            return
        self._modified = modified
        name = find_written(find_outputs() if SHOWN in words else "")
        if name:
            self._is_told = True
            print(describe(name, words), file=sys.stderr)
            return
        with os.scandir(UPPER) as found:
            self._has_folders = any(
                entry.name != OWN_OUTPUTS and entry.is_dir(follow_symlinks=False) for entry in found
            )


def find_outputs() -> str:
    """Return the path in /workspace at which the outputs are shown, if they are."""
    folder = os.environ.get(FOLDER, WORKSPACE)
    return os.path.relpath(f"{folder}/{OWN_OUTPUTS}", WORKSPACE)


def find_written(skipped: str = OWN_OUTPUTS) -> str:
    """Return a file that was written in /workspace, and is no cache; "" if none was found in time.

    ``skipped``: the folder that shows the outputs.
    """
    end = time.monotonic() + MAX_SECONDS
    visited = 0
    left = [""]
    while left:
        folder = left.pop()
        try:
            with os.scandir(os.path.join(UPPER, folder)) as found:
                for entry in found:
                    visited += 1
                    if visited > MAX_VISITED or time.monotonic() > end:
                        return ""
                    path = os.path.join(folder, entry.name)
                    mode = entry.stat(follow_symlinks=False).st_mode
                    if stat.S_ISREG(mode):
                        return path
                    is_folder = stat.S_ISDIR(mode) and path != skipped
                    if is_folder and not is_cache(entry.name, entry.path):
                        left.append(path)
        except OSError:  # it was removed meanwhile, or the folder must not be read
            continue
    return ""


def describe(name: str, words: list[str]) -> str:
    """Return what is told of a file."""
    apply = (
        "" if NEVER in words else ", or choose Changes in JupyterLab (gvisor-kernel apply ID PATH)"
    )
    return (
        f"gvisor-kernel: {_shorten(name)} is not in your folder: /workspace is a copy, which is"
        f" lost when the sandbox ends. {_advise(words)}{apply}."
    )


def _shorten(name: str) -> str:
    shown = "".join(char if char.isprintable() else "?" for char in name)
    return shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}…"


def _advise(words: list[str]) -> str:
    if KEPT in words:
        where = "outputs/" if SHOWN in words else "/mnt/user-data/outputs/"
        return f"Write to {where} what is to be kept"
    return "No folder is kept (the setting outputs names none that can be written)"
