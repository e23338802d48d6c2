"""Helps with paths that a sandbox does not show. Runs in the process of a Python kernel.

``os.chdir`` takes the path that a shown folder has on the host, as front ends send it. The first
path that a cell has missed is explained below it, with the setting that shows it. The kernel has
only digests of the host's paths (``kernel/host_paths.py``).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from contextlib import suppress
from typing import Any

from gvisor_kernel.guest.workspace import (
    EMPTY,
    FOLDER,
    PATHS,
    TOLD,
    VARIABLE,
    WORKSPACE,
    name_update,
)

ROUNDS = 1000
MAX_PATH, MAX_PARTS, MAX_SHOWN = 4096, 40, 200
NAMED = re.compile(r"""(?:^|["'\s])((?:\.\./|/|~/|[A-Za-z]:[\\/])[^"'\s]{1,1000})""")
"""A path in the text of an error that has no name of a file, as numpy's."""
SYSTEM = (
    "bin",
    "dev",
    "etc",
    "lib",
    "lib64",
    "opt",
    "proc",
    "run",
    "sbin",
    "sys",
    "tmp",
    "usr",
    "var",
)
"""Folders of every Linux system: what is missing there is no file of a person."""
IN_HOME = (
    "this notebook lies directly in a home (or beside keys of Jupyter), which no sandbox is shown,"
    " so /workspace is empty. Move the notebook, and the files that it reads, to a folder of their"
    " own."
)
PROJECT = (
    "To show the project around the notebook (a folder with .git, pyproject.toml or an empty file"
    " .jupyter-project), choose that on the card of the sandbox in JupyterLab, or set uploads ="
    ' "project" ({command}); then shut the kernel down and start it again. Other folders are shown'
    " by the setting mounts."
)
OTHERS = "Another folder is shown by the settings uploads and mounts."

_change = os.chdir


def find_shown(path: str) -> str:
    """Return where ``path`` of the host is in the sandbox; empty if it is not known to be shown."""
    with suppress(ValueError, TypeError, AttributeError, KeyError):
        salt, shown = json.loads(os.environ[PATHS])
        parts = os.path.normpath(path).split("/")
        for count in range(min(len(parts), MAX_PARTS), 1, -1):
            head = os.fsencode("/".join(parts[:count]))
            digest = hashlib.pbkdf2_hmac("sha256", head, bytes.fromhex(salt), ROUNDS).hex()
            if digest in shown:
                return "/".join([shown[digest], *parts[count:]])
    return ""


def change_directory(path: Any) -> None:
    """Change the current working directory to the specified path.

    A folder of the host that the sandbox shows is found by its path there, too.
    """
    try:
        _change(path)
    except FileNotFoundError:
        name = str(path)
        inside = find_shown(name) if name.startswith("/") and len(name) <= MAX_PATH else ""
        if not os.path.isdir(inside):
            raise
        _change(inside)


def replace_chdir() -> None:
    """Let all code of this process use ``change_directory`` as ``os.chdir``."""
    os.chdir = change_directory
    os.supports_fd.add(change_directory)


class MissedPaths:
    """Tells a person of the first path that was missed. The callback of ``post_run_cell``."""

    def __init__(self) -> None:
        self._is_told = False

    def after_cell(self, result: Any) -> None:
        """Tell what there is to tell. ``result``: IPython's of the cell."""
        with suppress(Exception):  # a cell must not fail by this
            words = os.environ.get(VARIABLE, "").split()
            text = (
                "" if self._is_told or TOLD not in words else explain(result.error_in_exec, words)
            )
            if text:
                self._is_told = True
                print(f"gvisor-kernel: {text}", file=sys.stderr)


def explain(error: object, words: list[str]) -> str:
    """Return why ``error`` has missed a file, and what shows it; empty if that is not known."""
    if isinstance(error, ModuleNotFoundError):
        added = (entry for entry in sys.path[:50] if str(entry).startswith(".."))
        return next(filter(None, map(explain_path, added)), "")
    if not isinstance(error, FileNotFoundError):
        return ""
    if EMPTY in words:
        return IN_HOME
    found = NAMED.search(str(error)[:MAX_PATH])
    name = error.filename if error.filename is not None else found[1] if found else ""
    return explain_path(os.fsdecode(name))


def explain_path(path: str) -> str:
    """Return why the sandbox lacks ``path``; empty if it is none of a person's, or is there."""
    absolute = os.path.normpath(os.path.join(os.getcwd(), os.path.expanduser(path)))
    if not path or len(path) > MAX_PATH or os.path.exists(path):
        return ""
    shown = "".join(char if char.isprintable() else "?" for char in path[:MAX_SHOWN])
    project = PROJECT.format(command=name_update("--set uploads=project"))
    advice = project if os.environ.get(FOLDER) == WORKSPACE else OTHERS
    is_windows = bool(re.match(r"[A-Za-z]:[\\/]", path))
    if not is_windows and f"{absolute}/".startswith(f"{WORKSPACE}/"):
        return ""
    if path.startswith("..") and os.getcwd().startswith(WORKSPACE):
        return f"{shown} is above the folder that the sandbox is shown. {advice}"
    inside = find_shown(absolute)
    if inside:
        return f"{shown} is {inside[:MAX_SHOWN]} in the sandbox: write that, or a relative path."
    if is_windows or absolute.split("/")[1] not in SYSTEM:
        return f"{shown} is not shown to the sandbox, which sees the files in /workspace. {advice}"
    return ""
