"""The files that kernels of a folder have lost: told to the next kernels of that folder, so that
one that misses such a file can say what became of it. Private to the user. Blocks.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import TypeAlias

from gvisor_kernel.errors import StateError
from gvisor_kernel.host.private_directories import lock, replace_file, state_root
from gvisor_kernel.runtimes.base import MountView
from gvisor_kernel.strict_json import JsonError
from gvisor_kernel.typed_json import read_json

VARIABLE = "GVISOR_KERNEL_LOST"
"""JSON: when a file was lost, in words, by its path in /workspace. Empty if there is none."""
MAX_FOLDERS, MAX_NAMES, MAX_NAME = 50, 30, 100
"""Folders that are remembered, files of each, and characters of a path, all printable."""
KEEP_SECONDS = 7 * 86400.0
MAX_BYTES = 2 * 1024 * 1024

_Lost: TypeAlias = dict[str, dict[str, float]]
"""Unix times, by a folder's device, inode and path, and by a file's path; the latest last."""

# by path: below the state directory, whose parents only this user can change


def note_lost(folder: MountView | None, names: Iterable[str]) -> None:
    """Note that files of /workspace, which showed ``folder``, are lost. Raises nothing.

    Code of a sandbox has chosen the names.
    """
    now = time.time()
    found = {name: now for name in names if len(name) <= MAX_NAME and name.isprintable()}
    if folder is None or folder.identity is None or not found:
        return
    with suppress(OSError, StateError):
        path = state_root() / "lost-files.json"
        with lock(path.with_suffix(".lock"), fcntl.LOCK_EX, create=True):
            lost = _read()
            old = lost.pop(_key(folder), {})
            kept = {name: at for name, at in old.items() if name not in found} | found
            lost[_key(folder)] = dict(list(kept.items())[-MAX_NAMES:])
            replace_file(path, json.dumps(dict(list(lost.items())[-MAX_FOLDERS:])))


def describe_lost(folder: MountView | None) -> dict[str, str]:
    """Return the variable for a kernel whose /workspace shows ``folder``. Raises nothing."""
    words: dict[str, str] = {}
    if folder is not None and folder.identity is not None:
        with suppress(OSError, StateError):
            since = time.time() - KEEP_SECONDS
            lost = _read().get(_key(folder), {})
            words = {name: _say(at) for name, at in lost.items() if at > since}
    return {VARIABLE: json.dumps(words) if words else ""}


def _key(folder: MountView) -> str:
    device, inode = folder.identity or (0, 0)
    return f"{device} {inode} {folder.source}"


def _read() -> _Lost:
    path = state_root() / "lost-files.json"
    with suppress(FileNotFoundError, JsonError), path.open("rb") as file:
        return read_json(file.read(MAX_BYTES + 1), _Lost, MAX_BYTES)
    return {}


def _say(at: float) -> str:
    then = time.localtime(at)
    is_today = time.localtime()[:3] == then[:3]
    return time.strftime("%H:%M" if is_today else "%Y-%m-%d %H:%M", then)
