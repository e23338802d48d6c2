"""Runs in the kernel's process after each cell: says what became of a file that a cell misses, if
an earlier kernel of the same folder has written it. Standard library, Python 3.9.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from typing import Any

from gvisor_kernel.guest.workspace import WORKSPACE

VARIABLE = "GVISOR_KERNEL_LOST"
"""The host's words; see ``kernel/lost_files.py``."""


class LostFiles:
    """Tells of each such file once. The callback of IPython's event ``post_run_cell``."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def after_cell(self, result: Any) -> None:
        """Tell what there is to tell. ``result``: IPython's of the cell."""
        with suppress(Exception):  # a cell must not fail by this
            error = getattr(result, "error_in_exec", None)
            if isinstance(error, FileNotFoundError) and os.environ.get(VARIABLE):
                lost = json.loads(os.environ[VARIABLE])
                name = find_name(error, lost)
                if name and name not in self._told:
                    self._told.add(name)
                    print(describe(name, lost[name]), file=sys.stderr)


def find_name(error: FileNotFoundError, lost: dict[str, str]) -> str:
    """Return which of the files an error is about; "" if it is about none. Some libraries name the
    file in their text only."""
    if error.filename is not None:
        path = os.path.relpath(os.path.abspath(os.fsdecode(error.filename)), WORKSPACE)
        return path if path in lost else ""
    return max((name for name in lost if name in str(error)), key=len, default="")


def describe(name: str, when: str) -> str:
    """Return what is told of a file."""
    shown = "".join(char if char.isprintable() else "?" for char in name)
    return (
        f"gvisor-kernel: {shown} was written by a kernel of this folder, and was lost with its"
        f" sandbox at {when}. Let it be written to outputs/; or set apply to 'new files' for the"
        " kernel that writes it (gvisor-kernel install --set apply='new files')."
    )
