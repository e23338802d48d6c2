"""The sessions of a server's kernels, kept on the disk for the next server of the same root folder.

    sandboxes/<id>/session.json

Only servers write it, beside what was saved of the kernel. ``SavedSessions`` keeps it up to date;
``TakingBack`` lets a server have kernels again that hibernate, with their sessions: first all are
listed, as kernels that are starting, and then one after another begins.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeAlias

from jupyter_core.utils import ensure_async
from tornado import web

from gvisor_kernel.errors import GvisorKernelError, LaunchError
from gvisor_kernel.host import processes
from gvisor_kernel.host.private_directories import read_file, replace_file
from gvisor_kernel.host.workers import in_thread
from gvisor_kernel.jupyter.asleep import Resumes, list_asleep, show_state
from gvisor_kernel.kernel.facts import KernelEvent, KernelEvents, Started
from gvisor_kernel.runtimes.state.kept_packages import begin_to_keep
from gvisor_kernel.runtimes.state.records import Record, find_sandboxes, is_orphan
from gvisor_kernel.runtimes.state.saved import is_saved
from gvisor_kernel.runtimes.state.sweep import has_run
from gvisor_kernel.server.sandboxes import Sandboxes
from gvisor_kernel.shown_text import printable
from gvisor_kernel.typed_json import read_json, write_json

log = logging.getLogger(__name__)

FILE = "session.json"
MAX_FILE = 64 * 1024
MAX_SESSIONS = 20
"""Sessions of one kernel that are kept, such as a notebook and its console."""
SAVING_SECONDS, LOOK_SECONDS = 60.0, 0.2
"""Seconds in which kernels of a server that was killed are saved, and between looks at them."""


@dataclass(frozen=True)
class Session:
    """A session as the server's manager saves it."""

    id: str
    path: str
    name: str
    type: str


@dataclass(frozen=True)
class _File:
    """session.json. ``root``: the real path of the server's root folder."""

    root: str
    sessions: tuple[Session, ...]


class SavedSessions:
    """Writes the sessions of one server's kernels, from ``start`` to ``end``. On its loop."""

    def __init__(self, application: Any, sandboxes: Sandboxes) -> None:
        self._manager = application.session_manager
        self._kernels = application.kernel_manager
        self._root = os.path.realpath(application.kernel_manager.root_dir)
        self._sandboxes = sandboxes
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()

    def start(self) -> None:
        """Begin: at each start of a kernel, and when a session is made or gets another name."""
        KernelEvents.instance().watch(self._on_event)
        for name in ("save_session", "update_session"):
            setattr(self._manager, name, self._follow(getattr(self._manager, name)))
        self._kernels.start_kernel = self._follow_start(self._kernels.start_kernel)

    def end(self) -> None:
        """Write nothing more. Idempotent."""
        KernelEvents.instance().unwatch(self._on_event)

    def _follow(self, method: Any) -> Any:
        @wraps(method)
        async def call(session_id: str, *args: Any, **more: Any) -> Any:
            found = await ensure_async(method(session_id, *args, **more))
            await self._note(session_id=session_id)
            return found

        return call

    def _follow_start(self, method: Any) -> Any:
        @wraps(method)
        async def call(*args: Any, **more: Any) -> Any:
            kernel_id = await ensure_async(method(*args, **more))
            directory = self._sandboxes.find_directory(kernel_id)
            # Of a branch, which begins asleep, no event tells. One that was taken back has its own.
            if directory is not None and not (directory / FILE).exists():
                await self._note(kernel_id=kernel_id)
            return kernel_id

        return call

    def _on_event(self, event: KernelEvent) -> None:
        """Called on the bridge's loop."""
        if isinstance(event, Started):
            with suppress(RuntimeError):  # the server's loop is closed
                self._loop.call_soon_threadsafe(self._begin, event.kernel_id)

    def _begin(self, kernel_id: str) -> None:
        task = self._loop.create_task(self._note(kernel_id=kernel_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _note(self, *, kernel_id: str = "", session_id: str = "") -> None:
        async with self._turn:
            sessions = await self.find()
            if kernel_id:
                await self._write(kernel_id, sessions.get(kernel_id, []))
            for one, own in sessions.items():
                if any(session.id == session_id for session in own):
                    await self._write(one, own)

    async def find(self) -> dict[str, list[Session]]:
        """Return the sessions of the server by the id of their kernel."""
        found: dict[str, list[Session]] = {}
        with suppress(Exception):  # a manager of another package
            for model in await ensure_async(self._manager.list_sessions()):
                words = (model.get(name) or "" for name in ("id", "path", "name", "type"))
                found.setdefault(model["kernel"]["id"], []).append(Session(*map(str, words)))
        return found

    async def _write(self, kernel_id: str, sessions: list[Session]) -> None:
        directory = self._sandboxes.find_directory(kernel_id)
        if directory is not None:
            text = write_json(_File(self._root, tuple(sessions[:MAX_SESSIONS])))
            with suppress(OSError):  # the kernel is not lost without it
                await in_thread(replace_file, directory / FILE, text)


Left: TypeAlias = tuple[Path, Record, tuple[Session, ...]]
"""The directory and record of a kernel that was left, and its sessions."""


def find_left(root: str) -> tuple[list[Left], bool]:
    """Return the kernels that earlier servers of ``root`` have left, and whether more are being
    saved. Blocks.

    :raises StateError: when the state directory cannot be read
    """
    left: list[Left] = []
    waits, root = False, os.path.realpath(root)
    for directory, record in find_sandboxes():
        if not record.kernel_id or not is_orphan(record):
            continue
        with suppress(OSError, ValueError):
            file = read_json(read_file(directory / FILE, MAX_FILE), _File, MAX_FILE)
            if file.root != root:
                continue
            if is_saved(directory, record) and not has_run(directory):
                left.append((directory, record, file.sessions))
            else:
                waits |= any(map(processes.is_alive, record.processes.values()))
    return left, waits


class TakingBack:
    """Lets a server have the kernels and sessions that were left. On its loop."""

    def __init__(self, application: Any, on_taken: Callable[[str], None]) -> None:
        """``on_taken`` is called with the id of each kernel that is there."""
        self._application = application
        self._manager = application.kernel_manager
        self._on_taken = on_taken
        self.listed = asyncio.Event()
        """Set when the server has the ids of all kernels, and their sessions."""
        self._starting: list[tuple[Record, asyncio.Future[None]]] = []
        """What is listed, and what the start of each waits for."""
        self._ended = False

    async def run(self) -> None:
        """Begin; return when all kernels are there. Never raises."""
        tried: set[str] = set()
        deadline, waits = time.monotonic() + SAVING_SECONDS, True
        while waits and not self._ended and time.monotonic() < deadline:
            try:
                found, waits = await in_thread(find_left, self._manager.root_dir)
            except GvisorKernelError as error:
                log.warning("Kernels that hibernate are not taken back: %s", error)
                break
            # who slept last comes first
            for left in sorted(found, key=lambda left: left[1].saved, reverse=True):
                if left[1].identity not in tried and not self._ended:
                    tried.add(left[1].identity)
                    try:
                        await self._list(*left)
                    except Exception as error:
                        self._warn(left[1], error)
            if not waits:
                self.listed.set()
            while self._starting:
                await self._take(*self._starting.pop(0))
                deadline = time.monotonic() + SAVING_SECONDS  # they are saved one after another
            await asyncio.sleep(LOOK_SECONDS if waits else 0)
        self.listed.set()
        begin_to_keep()  # what the killed one had no time for

    def end(self) -> None:
        """Begin with no other kernel. ``run`` returns soon."""
        self._ended = True

    async def _list(self, directory: Path, record: Record, sessions: tuple[Session, ...]) -> None:
        """Let the server have a kernel that is to start, and its sessions."""
        manager, kernel_id = self._manager, record.kernel_id
        if kernel_id not in manager:
            starts = asyncio.get_running_loop().create_future()
            pending = getattr(manager, "use_pending_kernels", None)
            if pending is None:  # another package's manager lists what has started
                starts.set_result(None)
            resumes = Resumes(kernel_id, directory, starts)
            try:
                manager.use_pending_kernels = True
                await list_asleep(manager, resumes, record.kernel_name, record.folder)
            finally:
                manager.use_pending_kernels = pending
            self._starting.append((record, starts))
        ours = self._application.session_manager
        for session in sessions:
            try:
                await ensure_async(ours.get_session(session_id=session.id))
            except web.HTTPError:
                words = {"path": session.path, "name": session.name, "type": session.type}
                await ensure_async(ours.save_session(session.id, kernel_id=kernel_id, **words))

    async def _take(self, record: Record, starts: asyncio.Future[None]) -> None:
        manager, kernel_id = self._manager, record.kernel_id
        try:
            if self._ended and not starts.done():
                starts.set_exception(LaunchError("The server stops."))
            elif not starts.done():
                starts.set_result(None)
            kernel = manager.get_kernel(kernel_id)
            await kernel.ready  # no timeout: one start
            show_state(kernel)
            self._on_taken(kernel_id)
        except Exception as error:
            if not self._ended:
                self._warn(record, error)
            # jupyter_client keeps its id, and could not shut any kernel down then
            getattr(manager, "_pending_kernels", {}).pop(kernel_id, None)
            with suppress(KeyError):
                manager.remove_kernel(kernel_id)

    @staticmethod
    def _warn(record: Record, error: Exception) -> None:
        log.warning(
            "The kernel of %s is not taken back, and stays saved: %s",
            *(printable(record.folder), error),
        )
