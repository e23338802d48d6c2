"""Helps with paths that a sandbox does not show. Runs in the process of a Python kernel.

``os.chdir`` takes the path that a shown folder has on the host: front ends send it (VS Code: ``%cd
"…"``). ``MissedPaths`` tells a person once, below the cell that has missed a file, why it is not
there and which setting shows it. The kernel knows no paths of the host: it has digests of those of
shown folders (``kernel/host_paths.py``), so only a path that somebody has given to it is found.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from contextlib import suppress
from typing import Any

from gvisor_kernel.guest.workspace import EMPTY, PATHS, TOLD, VARIABLE, WORKSPACE

ROUNDS = 1000
MAX_PATH = 4096
MAX_PARTS = 40
MAX_SHOWN = 200
MAX_ENTRIES = 50
"""Entries of ``sys.path`` that are looked at after a module was not found."""
QUOTED = re.compile(r"""(?:^|["'\s])((?:\.\./|/|~/|[A-Za-z]:[\\/])[^"'\n]{1,1000})""")
"""A path in an error that names none by itself, as pyarrow's and numpy's."""
OWN = (
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
PROJECT = (
    "To show it the project around the notebook, choose that on the sandbox's card in JupyterLab,"
    ' or set uploads = "project" (gvisor-kernel install --set uploads=project), and start the'
    " kernel again."
)

_change = os.chdir


def find_shown(path: str) -> str:
    """Return where ``path`` of the host is in the sandbox; empty if it is not known to be shown."""
    with suppress(ValueError, TypeError, AttributeError, KeyError):
        facts = json.loads(os.environ[PATHS])
        salt, shown = bytes.fromhex(facts["salt"]), facts["shown"]
        parts = os.path.normpath(path).split("/")
        for count in range(min(len(parts), MAX_PARTS), 1, -1):
            head = "/".join(parts[:count])
            digest = hashlib.pbkdf2_hmac("sha256", os.fsencode(head), salt, ROUNDS).hex()
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
        inside = find_shown(path) if _is_absolute(path) else ""
        if not os.path.isdir(inside):
            raise
        _change(inside)


def replace_chdir() -> None:
    """Let all code of this process use ``change_directory`` as ``os.chdir``."""
    os.chdir = change_directory
    os.supports_fd.add(change_directory)


def _is_absolute(path: Any) -> bool:
    return isinstance(path, str) and path.startswith("/") and len(path) <= MAX_PATH


class MissedPaths:
    """Tells a person of the first path that was missed. The callback of ``post_run_cell``."""

    def __init__(self) -> None:
        self._is_told = False

    def after_cell(self, result: Any) -> None:
        """Tell what there is to tell. ``result``: IPython's of the cell."""
        with suppress(Exception):  # a cell must not fail by this
            words = os.environ.get(VARIABLE, "").split()
            error = getattr(result, "error_in_exec", None)
            if self._is_told or TOLD not in words or not isinstance(error, (OSError, ImportError)):
                return
            text = explain(error, words)
            if text:
                self._is_told = True
                print(f"gvisor-kernel: {text}", file=sys.stderr)


def explain(error: BaseException, words: list[str]) -> str:
    """Return why ``error`` has missed a file, and what shows it; empty if that is not known."""
    if isinstance(error, FileNotFoundError) and EMPTY in words:
        return (
            "this notebook lies directly in a home (or beside keys of Jupyter), which no sandbox is"
            " shown, so /workspace is empty. Move the notebook, and the files that it reads, to a"
            " folder of their own."
        )
    paths = []
    if isinstance(error, FileNotFoundError):
        paths = [find_path(error)]
    elif isinstance(error, ModuleNotFoundError):
        paths = list(filter(_may_be_own, sys.path[:MAX_ENTRIES]))
    return next(filter(None, map(explain_path, paths)), "")


def _may_be_own(entry: Any) -> bool:
    """Return whether a cell may have put ``entry`` into ``sys.path``, such as ``../src``."""
    if not isinstance(entry, str) or not entry.startswith("/"):
        return isinstance(entry, str) and entry.startswith("..")
    return not os.path.exists("/" + entry.split("/")[1])


def find_path(error: OSError) -> str:
    """Return the path that ``error`` has missed; empty if it names none."""
    name = error.filename
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    if not isinstance(name, str):
        found = QUOTED.search(str(error)[:MAX_PATH])
        name = found[1].split(" ")[0] if found else ""
    return name if len(name) <= MAX_PATH else ""


def explain_path(path: str) -> str:
    """Return why the sandbox lacks ``path``; empty if it is none of a person's, or is there."""
    if not path or "\0" in path or os.path.exists(path):
        return ""
    shown = _shorten(path)
    if re.match(r"[A-Za-z]:[\\/]", path):
        return f"{shown} is a path of Windows. {_describe_mounts()}"
    absolute = os.path.normpath(os.path.join(os.getcwd(), os.path.expanduser(path)))
    if absolute == WORKSPACE or absolute.startswith(f"{WORKSPACE}/"):
        return ""
    if not path.startswith(("/", "~")):
        is_above = os.getcwd().startswith(WORKSPACE)
        return f"{shown} is above {_describe_above()}" if is_above else ""
    inside = find_shown(absolute)
    if inside:
        return (
            f"{shown} is in a folder that the sandbox shows at another path. Write"
            f" {_shorten(inside)}, or a path relative to the notebook."
        )
    return "" if absolute.split("/")[1] in OWN else f"{shown} is not shown. {_describe_mounts()}"


def _find_project() -> str:
    with suppress(ValueError, AttributeError):
        return str(json.loads(os.environ.get(PATHS, "")).get("project"))
    return ""


def _describe_above() -> str:
    project = _find_project()
    if project == "found":
        return f"the notebook's folder, and the sandbox is shown only that. {PROJECT}"
    where = "the project" if project == "shown" else "the folder"
    return (
        f"{where} that the sandbox is shown. The setting uploads names the folder to show instead"
        " (gvisor-kernel install --set uploads=/absolute/folder), and mounts shows more folders."
    )


def _describe_mounts() -> str:
    project = f" {PROJECT}" if _find_project() == "found" else ""
    return (
        f"The sandbox sees no files of this computer but those in /workspace.{project} Other"
        " folders are shown by the setting mounts."
    )


def _shorten(path: str) -> str:
    shown = "".join(char if char.isprintable() else "?" for char in path)
    return shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}…"
