"""The files that kernels of a folder have lost: noted at their end, and told to the next kernels of
that folder, so that one that misses such a file can say what became of it.

Private to the user. Code of a sandbox has chosen the names: they are bounded, and no path of the
host is made of them. Blocks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from gvisor_kernel.errors import StateError
from gvisor_kernel.host.private_directories import state_root
from gvisor_kernel.runtimes.base import MountView
from gvisor_kernel.strict_json import JsonError
from gvisor_kernel.typed_json import read_json

VARIABLE = "GVISOR_KERNEL_LOST"
"""JSON: when a file was lost, in words, by its path in /workspace. Empty if there is none."""
MAX_FOLDERS, MAX_NAMES, MAX_NAME = 100, 30, 100
"""Folders that are remembered, files of each, and characters of a path, all printable."""
KEEP_SECONDS = 7 * 86400.0
MAX_FILE = 64 * 1024
"""Bytes of the file of one folder."""

# by path: below the state directory, whose parents only this user can change


class _Folder(msgspec.Struct):
    path: str
    lost: dict[str, float]
    """Unix times, the latest last."""


def note_lost(folder: MountView | None, names: Iterable[str]) -> None:
    """Note that files of /workspace, which showed ``folder``, are lost. Raises nothing."""
    now = time.time()
    found = {name: now for name in names if len(name) <= MAX_NAME and name.isprintable()}
    if folder is None or folder.identity is None or not found:
        return
    with suppress(OSError, StateError):
        file = _file(folder)
        old = _read(folder).items()
        lost = [(name, at) for name, at in old if name not in found] + list(found.items())
        content = msgspec.json.encode(_Folder(folder.source, dict(lost[-MAX_NAMES:])))
        file.parent.mkdir(mode=0o700, exist_ok=True)
        temporary = file.with_suffix(".new")
        temporary.write_bytes(content)
        temporary.replace(file)
        known = sorted(file.parent.iterdir(), key=lambda one: one.stat().st_mtime)
        for surplus in known[:-MAX_FOLDERS]:
            surplus.unlink(missing_ok=True)


def describe_lost(folder: MountView | None) -> dict[str, str]:
    """Return the variable for a kernel whose /workspace shows ``folder``. Raises nothing."""
    words: dict[str, str] = {}
    if folder is not None and folder.identity is not None:
        with suppress(OSError, StateError):
            words = {name: _say(at) for name, at in _read(folder).items()}
    return {VARIABLE: json.dumps(words) if words else ""}


def _file(folder: MountView) -> Path:
    assert folder.identity is not None
    device, inode = folder.identity
    return state_root() / "lost-files" / f"{device}-{inode}.json"


def _read(folder: MountView) -> dict[str, float]:
    since = time.time() - KEEP_SECONDS
    with suppress(FileNotFoundError, JsonError), _file(folder).open("rb") as file:
        found = read_json(file.read(MAX_FILE + 1), _Folder, MAX_FILE)
        if found.path == folder.source:  # else another folder had that inode
            return {name: at for name, at in found.lost.items() if at > since}
    return {}


def _say(at: float) -> str:
    then = time.localtime(at)
    is_today = time.localtime()[:3] == then[:3]
    return time.strftime("%H:%M" if is_today else "%Y-%m-%d %H:%M", then)
