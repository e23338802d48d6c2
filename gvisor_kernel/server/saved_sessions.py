"""The sessions of kernels that hibernate, beside what was saved of each: another server of the same
root folder has both again. Who calls is in ``hibernating``.

    sandboxes/<id>/saved/session.json

Only servers write it. What it names is a kernel of this user whose process has ended.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jupyter_core.utils import ensure_async
from tornado import web

from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.host.private_directories import read_file, replace_file
from gvisor_kernel.jupyter.provisioner import RESUMES_ONLY
from gvisor_kernel.runtimes.state.records import Record, find_sandboxes, is_orphan
from gvisor_kernel.runtimes.state.sweep import is_saved
from gvisor_kernel.shown_text import printable
from gvisor_kernel.typed_json import read_json, write_json

# by path: below the state directory, whose parents only this user can change

log = logging.getLogger(__name__)

MAX_FILE = 64 * 1024
MAX_SESSIONS = 20
"""Sessions of one kernel that are kept, such as a notebook and its console."""


@dataclass(frozen=True)
class SavedSession:
    """A session of Jupyter's server, as its manager saves it."""

    id: str
    path: str
    name: str
    type: str


@dataclass(frozen=True)
class SavedSessions:
    """session.json. ``root``: the real path of the server's root folder."""

    root: str
    sessions: tuple[SavedSession, ...]


async def list_sessions(manager: Any) -> dict[str, list[SavedSession]]:
    """Return the sessions of a server by the id of their kernel."""
    found: dict[str, list[SavedSession]] = {}
    for model in await ensure_async(manager.list_sessions()):
        words = (model.get(name) or "" for name in ("id", "path", "name", "type"))
        found.setdefault(model["kernel"]["id"], []).append(SavedSession(*map(str, words)))
    return found


def write_sessions(directory: Path, root: str, sessions: Iterable[SavedSession]) -> None:
    """Write the sessions of the kernel that was saved in ``directory``. Blocks. Never raises:
    without it the kernel is not lost, only its session."""
    file = SavedSessions(os.path.realpath(root), tuple(sessions)[:MAX_SESSIONS])
    with suppress(OSError):
        replace_file(directory / "saved" / "session.json", write_json(file))


def find_left(root: str) -> list[tuple[Record, SavedSessions]]:
    """Return kernels that earlier servers of this root have left, and their sessions. Blocks.

    :raises StateError: when the state directory cannot be read
    """
    left = []
    for directory, record in find_sandboxes():
        if record.kernel_id and is_saved(directory, record) and is_orphan(record):
            with suppress(OSError, ValueError):
                text = read_file(directory / "saved" / "session.json", MAX_FILE)
                sessions = read_json(text, SavedSessions, MAX_FILE)
                if sessions.root == os.path.realpath(root):
                    left.append((record, sessions))
    return left


async def take_back(application: Any) -> None:
    """Let ``application``, a server, have the kernels and sessions that were left. Never raises."""
    manager = application.kernel_manager
    try:
        found = await asyncio.to_thread(find_left, manager.root_dir)
    except GvisorKernelError as error:
        log.warning("Kernels that hibernate are not taken back: %s", error)
        return
    for record, sessions in found:
        try:
            await _take_back(application, record, sessions)
        except Exception as error:
            # jupyter_client keeps its id, and could not shut any kernel down then
            getattr(manager, "_pending_kernels", {}).pop(record.kernel_id, None)
            log.warning(
                "The kernel of %s is not taken back, and stays saved: %s",
                *(printable(record.folder), error),
            )


async def _take_back(application: Any, record: Record, sessions: SavedSessions) -> None:
    manager, kernel_id = application.kernel_manager, record.kernel_id
    if kernel_id not in manager:
        environment: Mapping[str, str] = os.environ
        with suppress(Exception):  # for its restart
            first = sessions.sessions[0]
            environment = application.session_manager.get_kernel_env(first.path, first.name)
        path = os.path.relpath(record.folder, os.path.realpath(manager.root_dir))
        RESUMES_ONLY.set(kernel_id)
        try:
            name = record.kernel_name
            start = {"kernel_id": kernel_id, "kernel_name": name, "path": path, "env": environment}
            await ensure_async(manager.start_kernel(**start))
        finally:
            RESUMES_ONLY.set("")
        manager.get_kernel(kernel_id).execution_state = "idle"  # no message says so
    for session in sessions.sessions:
        try:
            await ensure_async(application.session_manager.get_session(session_id=session.id))
        except web.HTTPError:
            await ensure_async(
                application.session_manager.save_session(
                    session.id,
                    path=session.path,
                    name=session.name,
                    type=session.type,
                    kernel_id=kernel_id,
                )
            )
