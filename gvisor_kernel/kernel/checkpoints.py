"""Checkpoints of one kernel: states that have a name, and to which it can go back.

    sandboxes/<id>/checkpoints/NAME/  as ``saved/`` (``runtimes/state/saved``), beside the image:
        about.json                    what it is
        outputs.json                  the files of the outputs as they were then

They end with the kernel's sandbox, stay while the kernel hibernates, and come with it to the next
process. How a kernel is saved, and goes on from what was saved, is in ``hibernation``. The kernel
cannot see them: it has none of their files.
"""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

from gvisor_kernel.bridge import Bridge, KernelBridge, SnapshotRun
from gvisor_kernel.bridge.memory_answers import find_cell
from gvisor_kernel.config.validators import GIB
from gvisor_kernel.errors import GvisorKernelError, NoCheckpoint, NotIdle, SnapshotError
from gvisor_kernel.host.private_directories import read_file, replace_file
from gvisor_kernel.kernel.branches import Branch, branch_saved
from gvisor_kernel.kernel.facts import KernelEvents, Rewound
from gvisor_kernel.kernel.hibernation import Hibernator
from gvisor_kernel.kernel.launch import Workers
from gvisor_kernel.kernel.noted_outputs import (
    OUTPUTS,
    NotedOutputs,
    OutputChanges,
    compare_outputs,
    find_changes,
    look_at_outputs,
)
from gvisor_kernel.kernel.plan import KernelPlan
from gvisor_kernel.kernel.saved_kernel import MIN_LEFT, SavedKernel, read_saved, save_as
from gvisor_kernel.runtimes.base import SavedSandbox
from gvisor_kernel.runtimes.state import pages, records
from gvisor_kernel.runtimes.state.kept_packages import begin_to_keep
from gvisor_kernel.runtimes.state.listed import read_memory
from gvisor_kernel.runtimes.state.packer import Packer
from gvisor_kernel.runtimes.state.saved import mend, put, remove
from gvisor_kernel.shown_text import describe_size
from gvisor_kernel.typed_json import read_json, write_json

log = logging.getLogger(__name__)

# by path: below the state directory, whose parents only this user can change

FOLDER, ABOUT = pages.FOLDER, "about.json"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}(?<!\.new)(?<!\.old)")
BEFORE_REWIND = "before-rewind"
_AUTOMATIC = re.compile(r"(before|cell)-[0-9]+")
MAX_SIZE, DISK_SHARE = 20 * GIB, 0.1
"""Bytes of all checkpoints of one kernel, and their share of the disk."""
MAX_ABOUT = 64 * 1024

CELLS_SHARE, FIRST_COST = 0.05, 0.5
"""The share of the time of cells for which their states may be saved, and the seconds that the
first one is thought to take."""

Kind: TypeAlias = Literal["named", "automatic", "before-rewind"]
Choose: TypeAlias = Callable[[int], tuple[str, Kind, str]]
"""Returns the name, the kind and the words of a checkpoint after the cell of that number."""
T = TypeVar("T")


@dataclass(frozen=True)
class Checkpoint:
    """A state of a kernel, to which it can go back any number of times.

    ``time``: Unix time. ``size``: bytes of memory that were saved. ``cell``: the number of the last
    cell that had run; 0: none. ``kind``: "named" by a person or a program, "automatic", or the
    state that the last rewind has left. ``what``: the same for people.
    """

    name: str
    time: float
    size: int
    cell: int
    kind: Kind
    what: str


@dataclass(frozen=True)
class _About:
    kind: Kind
    time: float
    cell: int
    what: str


class Checkpoints:
    """The checkpoints of one session's kernel. Each method may be awaited on any loop.

    One thing is done at a time. What has begun is finished, also if nobody waits for it any more.
    """

    def __init__(self, bridge: Bridge, workers: Workers, saver: Hibernator) -> None:
        self._bridge = bridge
        self._workers = workers
        self._saver = saver
        self._turn = asyncio.Lock()
        self._is_mended = False
        self._last, self._spent, self._cost = 0, 0.0, 0.0
        """The last cell after which the state was saved by itself, and the seconds of all and of
        the last of these."""

    async def make(self, name: str | None = None) -> str:
        """Save the idle kernel under a name, which is returned, and let it go on.

        ``name``: None for one that is free. A kernel that hibernates goes on for it.

        :raises NotIdle: when the kernel has something to do
        :raises SnapshotError: when it cannot be saved, or has a checkpoint of that name
        :raises GvisorKernelError: when there is no kernel
        """
        return await self._do(self._make(name))

    async def make_automatic(self) -> str:
        """Do as ``make`` for nobody who asked, before the next run: "before-5" before the fifth."""
        return await self._do(
            self._save(lambda it: (f"before-{it + 1}", "automatic", f"before cell {it + 1}"))
        )

    async def list(self) -> tuple[Checkpoint, ...]:
        """Return the checkpoints, the oldest first. Does not wake a kernel that hibernates.

        :raises GvisorKernelError: when there is no kernel
        """
        return await self._do(self._in_directory(find_checkpoints))

    async def measure(self) -> int:
        """Return the bytes that all of them take on the disk. Raises as ``list``."""
        return await self._do(self._in_directory(lambda it: pages.measure_folder(it / FOLDER)))

    async def remove(self, name: str) -> None:
        """Remove a checkpoint.

        :raises NoCheckpoint: when there is none of that name
        :raises GvisorKernelError: when there is no kernel
        """
        await self._do(self._remove(name))

    async def rewind(self, name: str, made: float | None = None) -> OutputChanges:
        """Let the idle kernel go on from a checkpoint; what it was becomes ``before-rewind``.

        Returns which outputs are not as they were then. ``made``: the time of the checkpoint that
        somebody has chosen; another one may have got its name since.

        :raises NoCheckpoint: when there is none of that name
        :raises NotIdle: when the kernel has something to do
        :raises SnapshotError: when it cannot go back: it goes on as it was
        :raises GvisorKernelError: when there is no kernel, or it does not go on: it stays saved
        """
        return await self._do(self._rewind(name, made))

    async def branch(self, wanted: Sequence[Branch]) -> Sequence[SavedKernel]:
        """Return branches of the kernel: from a checkpoint, or else see ``Hibernator.branch``. Then
        the kernel is not touched.

        :raises NoCheckpoint: when there is none of that name
        :raises SnapshotError: when there cannot be such branches; there are none then
        :raises GvisorKernelError: when there is no kernel
        """
        name = wanted[0].checkpoint
        if name is None:
            return await self._saver.branch(wanted)
        return await self._do(self._branch(name, wanted))

    async def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return await self._bridge.run(self._finish(work))

    # -- on the bridge's loop --------------------------------------------------------------------

    async def _finish(self, work: Coroutine[Any, Any, T]) -> T:
        result: list[T] = []

        async def take_turn() -> None:
            async with self._turn:
                if not self._is_mended:  # a process before this one may have been killed
                    with suppress(GvisorKernelError):
                        await self._in_directory(lambda it: mend(it / FOLDER))
                        self._is_mended = True
                result.append(await work)  # no timeout: SAVE_SECONDS, start_timeout

        # no timeout: it is finished or undone, by steps that have timeouts
        await asyncio.shield(self._workers.undo_by(take_turn()))
        return result[0]

    async def _in_directory(self, look: Callable[[Path], T]) -> T:
        found: T = await self._workers.run(look, self._saver.find_directory())
        return found

    async def _make(self, name: str | None) -> str:
        directory = self._saver.find_directory()
        chosen: str = await self._workers.run(_choose_name, directory, name)
        return await self._save(lambda cell: (chosen, "named", f"after cell {cell}"))

    async def _save(self, choose: Choose) -> str:
        def write(sandbox: SavedSandbox, plan: KernelPlan, run: SnapshotRun) -> SavedKernel:
            return _write(sandbox, plan, run, choose)

        async with self._paused(self._saver.find_directory()):
            saved = await self._saver.copy(write)
        begin_to_keep()
        return saved.place.name

    # -- after cells -----------------------------------------------------------------------------

    def watch(self, kernel: KernelBridge, plan: KernelPlan) -> None:
        """Save ``kernel`` after cells if its setting says so. On the bridge's loop."""

        def consider() -> None:
            known, cost = kernel.hibernation.exchange.known, self._cost or FIRST_COST
            cell = known.cell
            if cell == self._last or self._spent + cost > CELLS_SHARE * known.worked:
                return
            self._last = cell
            self._workers.undo_by(self._save_after(cell, kernel))

        kernel.hibernation.on_rest = consider if plan.spec.checkpoints == "cells" else lambda: None

    async def _save_after(self, cell: int, kernel: KernelBridge) -> None:
        began = time.monotonic()
        try:
            await self._finish(
                self._save(lambda it: (f"cell-{it}", "automatic", f"after cell {it}"))
            )
        except GvisorKernelError as error:
            kernel.note(f"the state after cell {cell} is not saved: {error.fact}")
        self._cost = time.monotonic() - began
        self._spent += self._cost

    # -- the disk --------------------------------------------------------------------------------

    @asynccontextmanager
    async def _paused(self, directory: Path) -> AsyncIterator[None]:
        """Give way: what is packed now is not, and what is there then is packed later."""
        packer, folder = Packer.instance(), directory / FOLDER
        await self._workers.run(packer.leave, folder)
        try:
            yield
        finally:
            packer.begin(folder)

    async def _remove(self, name: str) -> None:
        directory = self._saver.find_directory()
        async with self._paused(directory):
            await self._workers.run(_remove, directory, name)

    async def _branch(self, name: str, wanted: Sequence[Branch]) -> Sequence[SavedKernel]:
        directory = self._saver.find_directory()
        async with self._paused(directory):
            target = await self._workers.run(_find, directory, name)
            await self._workers.run(pages.unpack, target.place)
            return await self._workers.run(branch_saved, target, wanted)

    async def _rewind(self, name: str, made: float | None) -> OutputChanges:
        directory, began = self._saver.find_directory(), time.monotonic()
        async with self._paused(directory):
            target = await self._workers.run(_find, directory, name, made)
            then, now = await self._workers.run(compare_outputs, target)
            unpacking = asyncio.ensure_future(self._workers.run(pages.unpack, target.place))

            async def choose(_: SavedKernel) -> SavedKernel:
                await unpacking  # no timeout: it is done, or fails
                return target

            def keep(before: SavedKernel) -> None:
                _keep(before, name, now)

            try:
                if not await self._workers.run(_has_room, target):
                    await unpacking  # no timeout: it is done, or fails
                kernel, plan = await self._saver.go_on_from(choose, keep)
            except NotIdle as error:
                raise NotIdle(error.fact, "interrupt it, or wait for it, and try again.") from error
            finally:
                # no timeout: the same
                await asyncio.gather(unpacking, return_exceptions=True)
        kernel.hibernation.exchange.note_rewound(name)
        self._last = kernel.hibernation.exchange.known.cell
        request, seconds = plan.request, time.monotonic() - began
        KernelEvents.instance().tell(Rewound(request.kernel_id, request.kernel_name, name, seconds))
        return find_changes(then, now, target.note.saved)


# -- on the disk; these block ----------------------------------------------------------------------


def find_checkpoints(directory: Path) -> tuple[Checkpoint, ...]:
    """Return the checkpoints of the kernel whose sandbox's directory that is, the oldest first."""
    found = []
    with suppress(OSError):
        for place in (directory / FOLDER).iterdir():
            with suppress(OSError):
                if _is_checkpoint(place):
                    about, size = vars(_read_about(place)), pages.measure_image(place)
                    found.append(Checkpoint(place.name, size=size, **about))
    return tuple(sorted(found, key=lambda it: (it.time, it.name)))


def _is_checkpoint(place: Path) -> bool:
    return bool(NAME.fullmatch(place.name)) and place.is_dir()


def _read_about(place: Path) -> _About:
    """Return what a checkpoint is; what is known without, if that cannot be read."""
    with suppress(OSError, ValueError):
        return read_json(read_file(place / ABOUT, MAX_ABOUT), _About, MAX_ABOUT)
    kind: Kind = "automatic" if _AUTOMATIC.fullmatch(place.name) else "named"
    if place.name == BEFORE_REWIND:
        kind = "before-rewind"
    return _About(kind, place.stat().st_mtime, 0, "its description cannot be read")


def _find_place(directory: Path, name: str) -> Path:
    place = directory / FOLDER / name
    if not NAME.fullmatch(name) or not _is_checkpoint(place):
        names = ", ".join(one.name for one in find_checkpoints(directory))
        hint = f"choose one of these: {names}." if names else "save one first."
        raise NoCheckpoint(f"The kernel has no checkpoint {name!r:.80}.", hint)
    return place


def _choose_name(directory: Path, name: str | None) -> str:
    """:raises SnapshotError: when a person or a program gives a name that it cannot have"""
    taken = {one.name for one in find_checkpoints(directory)}
    if name is None:
        return next(one for n in range(1, len(taken) + 2) if (one := f"state-{n}") not in taken)
    if not NAME.fullmatch(name):
        raise SnapshotError(
            f"{name!r:.80} cannot be the name of a checkpoint.",
            "use at most 64 letters, digits, '.', '_' and '-', with a letter or digit first.",
        )
    if name == BEFORE_REWIND or _AUTOMATIC.fullmatch(name):
        raise SnapshotError(
            f"Automatic checkpoints have the name {name!r}.", "choose another name."
        )
    if name in taken:
        raise SnapshotError(
            f"The kernel has a checkpoint {name!r}.", "remove it, or choose another name."
        )
    return name


def _write(
    sandbox: SavedSandbox, plan: KernelPlan, run: SnapshotRun, choose: Choose
) -> SavedKernel:
    directory, cell = sandbox.directory, find_cell(run.known.get("cell"))
    name, kind, what = choose(cell)
    (directory / FOLDER).mkdir(mode=0o700, exist_ok=True)
    going = _find_superfluous(directory, name, sandbox.memory_used() or 0)
    about = _About(kind, time.time(), cell, what)
    beside = {ABOUT: write_json(about), OUTPUTS: write_json(look_at_outputs(directory))}
    saved = save_as(directory / FOLDER / name, sandbox, plan, run, beside)
    for one in going:
        _remove(directory, one)
    if kind == "automatic":
        _remove_automatic(directory, plan.spec.checkpoints_kept)
    return saved


def _find_superfluous(directory: Path, name: str, needed: int) -> list[str]:
    """Return the automatic checkpoints to remove for ``name``, the oldest; it takes ``needed``.

    That is the kernel's memory, and more than what is left of it once it is packed.

    :raises SnapshotError: when all of them would not be enough
    """
    most = min(MAX_SIZE, int(DISK_SHARE * shutil.disk_usage(directory).total))
    if pages.measure_folder(directory / FOLDER) + needed <= most:
        return []
    found = [one for one in find_checkpoints(directory) if one.name != name]
    automatic = [one.name for one in reversed(found) if one.kind == "automatic"]
    kept = [one.name for one in found if one.kind != "automatic"]
    sizes = list(pages.measure_needed(directory / FOLDER / one for one in kept + automatic))
    used = sizes[len(kept) - 1] if kept else 0
    if used + needed > most:
        named = f" Those that have names take {describe_size(used)}." if kept else ""
        raise SnapshotError(
            f"A checkpoint of this kernel needs {describe_size(needed)}, and all together may take"
            f" {describe_size(most)}.{named}",
            f"remove one: gvisor-kernel checkpoints {directory.name} --remove {kept[0]}"
            if kept
            else "let the kernel hold less in memory, or use a larger disk.",
        )
    fits = sum(size + needed <= most for size in sizes[len(kept) :])
    return automatic[fits:]


def _remove_automatic(directory: Path, kept: int) -> None:
    automatic = [one for one in find_checkpoints(directory) if one.kind == "automatic"]
    for one in automatic[: max(0, len(automatic) - kept)]:
        _remove(directory, one.name)


def _remove(directory: Path, name: str) -> None:
    remove(_find_place(directory, name))


def _find(directory: Path, name: str, made: float | None = None) -> SavedKernel:
    """Return a checkpoint, whose image may be packed.

    :raises SnapshotError: when there is none of that name, made at that time, or the kernel cannot
        go on from it
    """
    place, record = _find_place(directory, name), records.read_record(directory)
    if made is not None and _read_about(place).time != made:
        raise SnapshotError(
            f"The checkpoint {name!r} was replaced by another state after you had chosen it.",
            "look at the kernel's checkpoints again.",
        )
    saved = read_saved(place, directory, record.identity) if record is not None else None
    if saved is None:
        raise SnapshotError(f"The checkpoint {name!r} cannot be read.", "use another one.")
    saved.check()
    return saved


def _has_room(saved: SavedKernel) -> bool:
    """Return whether a checkpoint can be unpacked while the kernel is saved."""
    record = records.read_record(saved.directory)
    used = (read_memory(record) or 0) if record is not None else 0
    needed = used + pages.measure_image(saved.place) + MIN_LEFT
    return shutil.disk_usage(saved.directory).free > needed


def _keep(before: SavedKernel, name: str, outputs: NotedOutputs) -> None:
    """Make the state that a rewind has left the checkpoint ``before-rewind``. Raises nothing."""
    place = before.directory / FOLDER / BEFORE_REWIND
    cell = find_cell(before.run.known.get("cell"))
    about = _About("before-rewind", before.note.saved, cell, f"before the rewind to {name}")
    try:
        replace_file(before.place / ABOUT, write_json(about))
        replace_file(before.place / OUTPUTS, write_json(outputs))
        put(before.place, place)
        begin_to_keep()
    except OSError as error:
        log.warning("The state before the rewind to %s is not kept: %s", name, error)
        before.discard()
