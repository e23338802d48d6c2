"""Tells a person once, below a cell, that files in /workspace end with the sandbox.

Runs in the kernel's process, after each cell: one ``stat`` while nothing was written. What the
kernel's code does to it concerns only that kernel.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from contextlib import suppress
from typing import Any, List, Optional

from gvisor_kernel.guest.workspace import EMPTY, KEPT, OWN_OUTPUTS, SHOWN, TOLD, UPPER, VARIABLE

MAX_VISITED = 500
"""Entries of folders that are looked at after one cell."""
MAX_SECONDS = 0.05
IGNORED = ("__pycache__", ".ipynb_checkpoints")
MAX_NAME = 100


class UnkeptFiles:
    """What was told. One for each kernel."""

    def __init__(self) -> None:
        self._modified = -1
        self._has_folders = False
        """Whether files may appear in folders that were made before, which a stat does not see."""
        self._is_told = find_written() is not None  # by the last kernel of this sandbox
        self._is_empty_told = False

    def after_cell(self, result: Any) -> None:
        """Tell what there is to tell. ``result``: IPython's of the cell."""
        with suppress(Exception):  # a cell must not fail by this
            words = os.environ.get(VARIABLE, "").split()
            if TOLD not in words:
                return
            if EMPTY in words and not self._is_empty_told:
                self._tell_of_empty_folder(getattr(result, "error_in_exec", None))
            if not self._is_told:
                self._look(words)

    def _look(self, words: List[str]) -> None:
        modified = os.stat(UPPER).st_mtime_ns
        if modified == self._modified and not self._has_folders:
            return
        self._modified = modified
        name = find_written(OWN_OUTPUTS if SHOWN in words else "")
        if name is not None:
            self._is_told = True
            print(describe(name, words), file=sys.stderr)
            return
        with os.scandir(UPPER) as found:
            self._has_folders = any(
                entry.name not in (OWN_OUTPUTS, *IGNORED) and entry.is_dir(follow_symlinks=False)
                for entry in found
            )

    def _tell_of_empty_folder(self, error: Optional[BaseException]) -> None:
        if isinstance(error, FileNotFoundError):
            self._is_empty_told = True
            print(
                "gvisor-kernel: this notebook lies directly in a home (or beside keys of Jupyter),"
                " which no sandbox is shown, so /workspace is empty. Move the notebook, and the"
                " files that it reads, to a folder of their own.",
                file=sys.stderr,
            )


def find_written(skipped: str = OWN_OUTPUTS) -> Optional[str]:
    """Return the path of a file that was written in /workspace; None if none was found.

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
                        return None
                    path = os.path.join(folder, entry.name)
                    if entry.name in IGNORED or path == skipped:
                        continue
                    mode = entry.stat(follow_symlinks=False).st_mode
                    if stat.S_ISREG(mode):
                        return path
                    if stat.S_ISDIR(mode):
                        left.append(path)
        except OSError:  # it was removed meanwhile, or the folder must not be read
            continue
    return None


def describe(name: str, words: List[str]) -> str:
    """Return what is told of a file."""
    shown = "".join(char if char.isprintable() else "?" for char in name)
    if len(shown) > MAX_NAME:
        shown = f"{shown[:MAX_NAME]}…"
    if KEPT in words:
        where = "outputs/" if SHOWN in words else "/mnt/user-data/outputs/"
        instead = f"Write to {where} what is to be kept"
    else:
        instead = "No folder is kept (the setting outputs names none that can be written)"
    return (
        f"gvisor-kernel: {shown} is in /workspace, a copy of your folder that ends with the"
        f" sandbox. {instead}, or copy it to your folder with: gvisor-kernel apply."
    )
