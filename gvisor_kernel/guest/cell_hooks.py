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
from typing import Any, NamedTuple
from uuid import uuid4

from gvisor_kernel.guest.installed import is_loaded
from gvisor_kernel.guest.questions import ADDRESS
from gvisor_kernel.guest.workspace import (
    FOLDER,
    KEPT,
    OWN_OUTPUTS,
    SHOWN,
    TOLD,
    UPPER,
    VARIABLE,
    WORKSPACE,
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
# on that, and what counts is what is gone at the end; but no client says which cell is the last.
# So there the notice is a display that names the files, and a later cell that changes these sends
# its text anew. It takes one ``stat`` after each cell while nothing was written.

MAX_VISITED = 500
"""Entries of folders that are looked at after one cell."""
MAX_SECONDS = 0.05
MAX_NAMED = 10
IGNORED = ("__pycache__", ".ipynb_checkpoints")
MAX_SHOWN = 100


class Written(NamedTuple):
    """Files that were written in /workspace: the first ones, all that were counted, and whether
    there may be more."""

    names: list[str]
    total: int
    more: bool


class UnkeptFiles:
    """Tells a person of files that are not kept. One for each kernel. ``kernel``: ipykernel's."""

    def __init__(self, kernel: Any = None) -> None:
        self._kernel = kernel
        self._modified = -1
        self._has_folders = False
        """True if files may appear in folders that were made before, which a stat does not see."""
        self._is_told = bool(
            find_written(find_outputs(), most=1).names
        )  # by the last kernel of this sandbox
        self._display = ""
        """The id of the display of a batch run."""
        self._shown = ""

    def after_cell(self, result: Any) -> None:
        """Tell what there is to tell. ``result``: IPython's of the cell."""
        with suppress(Exception):  # a cell must not fail by this
            words = os.environ.get(VARIABLE, "").split()
            if TOLD not in words:
                return
            is_batch = self._is_batch()
            if is_batch or not self._is_told:
                self._look(words, is_batch)

    def _is_batch(self) -> bool:
        """Return whether nobody sits at the client: it can answer no question of the cell."""
        with suppress(Exception):
            return self._kernel.get_parent("shell")["content"]["allow_stdin"] is False
        return False

    def _look(self, words: list[str], is_batch: bool) -> None:
        modified = os.stat(UPPER).st_mtime_ns
        if modified == self._modified and not self._has_folders:
            return
        self._modified = modified
        skipped = find_outputs() if SHOWN in words else ""
        written = find_written(skipped, MAX_NAMED if is_batch else 1)
        if is_batch:
            self._show(written, words)
        elif written.names:
            self._is_told = True
            print(describe(written.names[0], words), file=sys.stderr)
            return
        with os.scandir(UPPER) as found:
            self._has_folders = any(
                entry.name not in (OWN_OUTPUTS, *IGNORED) and entry.is_dir(follow_symlinks=False)
                for entry in found
            )

    def _show(self, written: Written, words: list[str]) -> None:
        """Show the files of a batch run, if they are not those that were shown."""
        if not written.names and not self._display:
            return
        text = describe_all(written, words)
        if text == self._shown:
            return
        is_new, self._shown = not self._display, text
        self._display = self._display or f"gvisor-kernel-files-{uuid4().hex}"
        self._kernel.shell.display_pub.publish(
            data={"text/plain": text},
            metadata={},
            transient={"display_id": self._display},
            update=not is_new,
        )


def find_outputs() -> str:
    """Return the path in /workspace at which the outputs are shown, if they are."""
    folder = os.environ.get(FOLDER, WORKSPACE)
    return os.path.relpath(f"{folder}/{OWN_OUTPUTS}", WORKSPACE)


def find_written(skipped: str = OWN_OUTPUTS, most: int = MAX_NAMED) -> Written:
    """Return files that were written in /workspace, the first ``most`` of those found by name.

    ``skipped``: the folder that shows the outputs. With ``most`` 1 the first file ends the look.
    """
    end = time.monotonic() + MAX_SECONDS
    visited = 0
    names: list[str] = []
    left = [""]
    while left:
        folder = left.pop()
        try:
            with os.scandir(os.path.join(UPPER, folder)) as found:
                for entry in found:
                    visited += 1
                    if visited > MAX_VISITED or time.monotonic() > end:
                        return Written(sorted(names)[:most], len(names), True)
                    path = os.path.join(folder, entry.name)
                    if entry.name in IGNORED or path == skipped:
                        continue
                    mode = entry.stat(follow_symlinks=False).st_mode
                    if stat.S_ISREG(mode):
                        names.append(path)
                        if most == 1:
                            return Written(names, 1, True)
                    if stat.S_ISDIR(mode):
                        left.append(path)
        except OSError:  # it was removed meanwhile, or the folder must not be read
            continue
    return Written(sorted(names)[:most], len(names), False)


def describe(name: str, words: list[str]) -> str:
    """Return what is told of a file."""
    return (
        f"gvisor-kernel: {_shorten(name)} is not in your folder: /workspace is a copy, which is"
        f" lost when the sandbox ends. {_advise(words)}, or choose Changes in JupyterLab"
        " (gvisor-kernel apply ID PATH)."
    )


def describe_all(written: Written, words: list[str]) -> str:
    """Return what is shown of all files in a batch run."""
    if not written.names:
        return "gvisor-kernel: no file that was written in /workspace is left."
    rest = written.total - len(written.names)
    count = f"{rest} or more" if written.more else str(rest)
    others = f" and {count} others" if rest or written.more else ""
    return (
        "gvisor-kernel: not kept, as /workspace is a copy of your folder, which is lost when the"
        f" sandbox ends: {', '.join(map(_shorten, written.names))}{others}. {_advise(words)}."
    )


def _shorten(name: str) -> str:
    shown = "".join(char if char.isprintable() else "?" for char in name)
    return shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}…"


def _advise(words: list[str]) -> str:
    if KEPT in words:
        where = "outputs/" if SHOWN in words else "/mnt/user-data/outputs/"
        return f"Write to {where} what is to be kept"
    return "No folder is kept (the setting outputs names none that can be written)"
