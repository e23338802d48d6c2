"""Tells a person, below a cell, that files in /workspace end with the sandbox.

Once, on stderr. In a batch run (papermill, nbconvert, nbclient) nobody can act on that, and what
counts is what is gone at the end; but no client says which cell is the last. So there the notice is
a display that names the files, and a later cell that changes these sends its text anew.

Runs in the kernel's process, after each cell: one ``stat`` while nothing was written. What the
kernel's code does to it concerns only that kernel.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from contextlib import suppress
from typing import Any, List, NamedTuple
from uuid import uuid4

from gvisor_kernel.guest.workspace import EMPTY, KEPT, OWN_OUTPUTS, SHOWN, TOLD, UPPER, VARIABLE

MAX_VISITED = 500
"""Entries of folders that are looked at after one cell."""
MAX_SECONDS = 0.05
MAX_NAMED = 10
IGNORED = ("__pycache__", ".ipynb_checkpoints")
MAX_NAME = 100


class Written(NamedTuple):
    """Files that were written in /workspace: the first ones, all that were counted, and whether
    there may be more."""

    names: List[str]
    total: int
    more: bool


class UnkeptFiles:
    """Tells a person of files that are not kept. One for each kernel. ``kernel``: ipykernel's."""

    def __init__(self, kernel: Any = None) -> None:
        self._kernel = kernel
        self._modified = -1
        self._has_folders = False
        """True if files may appear in folders that were made before, which a stat does not see."""
        self._is_told = bool(find_written(most=1).names)  # by the last kernel of this sandbox
        self._is_empty_told = False
        self._display = ""
        """The id of the display of a batch run."""
        self._shown = ""

    def after_cell(self, result: Any) -> None:
        """Tell what there is to tell. ``result``: IPython's of the cell."""
        with suppress(Exception):  # a cell must not fail by this
            words = os.environ.get(VARIABLE, "").split()
            if TOLD not in words:
                return
            if EMPTY in words and not self._is_empty_told:
                self._tell_of_empty_folder(getattr(result, "error_in_exec", None))
            is_batch = self._is_batch()
            if is_batch or not self._is_told:
                self._look(words, is_batch)

    def _is_batch(self) -> bool:
        """Return whether nobody sits at the client: it can answer no question of the cell."""
        with suppress(Exception):
            return self._kernel.get_parent("shell")["content"]["allow_stdin"] is False
        return False

    def _look(self, words: List[str], is_batch: bool) -> None:
        modified = os.stat(UPPER).st_mtime_ns
        if modified == self._modified and not self._has_folders:
            return
        self._modified = modified
        skipped = OWN_OUTPUTS if SHOWN in words else ""
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

    def _show(self, written: Written, words: List[str]) -> None:
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

    def _tell_of_empty_folder(self, error: object) -> None:
        if isinstance(error, FileNotFoundError):
            self._is_empty_told = True
            print(
                "gvisor-kernel: this notebook lies directly in a home (or beside keys of Jupyter),"
                " which no sandbox is shown, so /workspace is empty. Move the notebook, and the"
                " files that it reads, to a folder of their own.",
                file=sys.stderr,
            )


def find_written(skipped: str = OWN_OUTPUTS, most: int = MAX_NAMED) -> Written:
    """Return files that were written in /workspace, the first ``most`` of those found by name.

    ``skipped``: the folder that shows the outputs. With ``most`` 1 the first file ends the look.
    """
    end = time.monotonic() + MAX_SECONDS
    visited = 0
    names: List[str] = []
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


def describe(name: str, words: List[str]) -> str:
    """Return what is told of a file."""
    return (
        f"gvisor-kernel: {_shorten(name)} is not in your folder: /workspace is a copy, which is"
        f" lost when the sandbox ends. {_advise(words)}, or choose Changes in JupyterLab"
        " (gvisor-kernel apply ID PATH)."
    )


def describe_all(written: Written, words: List[str]) -> str:
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
    return shown if len(shown) <= MAX_NAME else f"{shown[:MAX_NAME]}…"


def _advise(words: List[str]) -> str:
    if KEPT in words:
        where = "outputs/" if SHOWN in words else "/mnt/user-data/outputs/"
        return f"Write to {where} what is to be kept"
    return "No folder is kept (the setting outputs names none that can be written)"
