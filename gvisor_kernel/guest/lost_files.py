"""Runs in the kernel's process after each cell: says what became of a file that a cell misses, if
an earlier kernel of the same folder has written it. Standard library, Python 3.9.
"""

from __future__ import annotations

import json
import os
import re
import sys
from contextlib import suppress
from typing import Any

from gvisor_kernel.guest.workspace import WORKSPACE, name_update

VARIABLE = "GVISOR_KERNEL_LOST"
"""The host's words; see ``kernel/lost_files.py``."""


def after_cell(result: Any) -> None:
    """Tell what there is to tell. The callback of IPython's event ``post_run_cell``."""
    with suppress(Exception):  # a cell must not fail by this
        error = getattr(result, "error_in_exec", None)
        if isinstance(error, FileNotFoundError) and os.environ.get(VARIABLE):
            lost = json.loads(os.environ[VARIABLE])
            if name := find_name(error, lost):
                command = name_update("--set 'apply=new files'")
                print(
                    f"gvisor-kernel: {name} was written by a kernel of this folder, and was lost"
                    f" with its sandbox at {lost[name]}. Let it be written to outputs/; or, for"
                    " tables and the like, set apply to 'new files' for the kernel that writes it"
                    f" ({command}).",
                    file=sys.stderr,
                )


def find_name(error: FileNotFoundError, lost: dict[str, str]) -> str:
    """Return which of the files an error is about; "" if it is about none. Some libraries name the
    file in their text only."""
    if error.filename is not None:
        path = os.path.relpath(os.path.abspath(os.fsdecode(error.filename)), WORKSPACE)
        return path if path in lost else ""
    text = str(error)
    return max((name for name in lost if _is_named(name, text)), key=len, default="")


def _is_named(name: str, text: str) -> bool:
    """Return whether a text has a file's whole path. A mere word must be in quotes, or be all that
    comes after a colon: it may be one of the sentence."""
    path = f"(?:\\./|{WORKSPACE}/)?{re.escape(name)}"
    if "." in name or "/" in name:
        return re.search(rf"(?<![\w./-]){path}(?![\w/-]|\.\w)", text) is not None
    return re.search(rf"(?:^|: |['\"`]){path}(?:$|['\"`])", text) is not None
