"""The control socket of a kernel, by which other programs of the same user ask about its changes:
both of its ends.

The link of a sandbox belongs to the process that has started it. So that process listens on a
socket, which has a name in the private directory of each of its sandboxes, where ``gvisor-kernel
changes`` finds it. One question and one answer a connection, each a line of JSON. Whoever asks must
be the user of this process, or root: the folder and the socket allow no other, and the kernel of
the host says who it is.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
import time
import weakref
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import msgspec

from gvisor_kernel.bridge import Bridge
from gvisor_kernel.changes.change import (
    Applied,
    Change,
    Changes,
    ChangesError,
    encode,
    encode_changes,
    is_path,
)
from gvisor_kernel.changes.diff import Diff
from gvisor_kernel.changes.kernel_changes import KernelChanges
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.host.descriptors import closing_fd
from gvisor_kernel.host.workers import in_thread
from gvisor_kernel.kernel.branches import Branch, name_branches
from gvisor_kernel.kernel.moves import move
from gvisor_kernel.kernel.session import SandboxedKernel

log = logging.getLogger(__name__)

SOCKET = "control.sock"
MAX_QUESTION = 16 * 1024 * 1024
MAX_ANSWER = 32 * 1024 * 1024
QUESTION_SECONDS = 10.0
ANSWER_SECONDS = 60.0
"""Seconds that an answer may wait to be taken."""
WORK_SECONDS = 600.0
"""Seconds that an answer may take: an apply writes to the user's disk."""
MAX_CLIENTS = 8
DIFFS = 200
"""Changes whose diffs are in one answer, and characters of all of them."""
MAX_DIFFS = 4 * 1024 * 1024
PART = 256 * 1024
T = TypeVar("T")
Branching: TypeAlias = Callable[[Sequence[Branch]], Awaitable[None]]


class Question(msgspec.Struct):
    """Ask for the list of changes, or to apply some, each a path and a state. ``under``, ``named``:
    as for ``KernelChanges.list`` and ``apply``. Or ask to save the kernel, to let it go on, or to
    give up one that is saved; for ``count`` branches, from ``checkpoint`` if that is not None; to
    make the checkpoint ``name``, to remove it, or to go back to it, if it was ``made`` then; or to
    move it to ``name``.
    ``sandbox``: the name of its directory.
    """

    do: str
    sandbox: str = ""
    diff: bool = False
    under: list[str] = []
    changes: list[tuple[str, str]] = []
    named: list[str] = []
    force: bool = False
    count: int = 1
    name: str | None = None
    checkpoint: str | None = None
    made: float | None = None


class _Problem(msgspec.Struct):
    error: str
    hint: str = ""


class _Listed(msgspec.Struct):
    changes: tuple[Change, ...]
    more: bool
    total: int
    diffs: dict[str, str] = {}
    whole: set[str] = set()


class Done(msgspec.Struct):
    """Says that what was asked is done: for what ``name``."""

    name: str = ""


class Branched(msgspec.Struct):
    """The branches that were started: the id of the kernel and the name of each."""

    branches: list[tuple[str, str]]


# by path: below the state directory, whose parents only this user can change


class _Door:
    """The socket at which the kernels of one bridge answer. On its loop."""

    def __init__(self) -> None:
        self._kernels: weakref.WeakValueDictionary[str, ControlSocket]
        self._kernels = weakref.WeakValueDictionary()
        """By the name of the sandbox's directory. Keeps nobody's manager alive: one that is given
        up removes the connection file of its kernel."""
        self._server: asyncio.Server | None = None
        self._clients = 0
        self._turn = asyncio.Lock()

    async def add(self, directory: Path, kernel: ControlSocket) -> None:
        """Give the socket a name in ``directory``. Listen, if nothing did.

        :raises OSError: when that fails
        """
        async with self._turn:
            name = directory / SOCKET
            name.unlink(missing_ok=True)
            for other in list(self._kernels):
                with suppress(OSError):  # that sandbox has ended
                    os.link(directory.with_name(other) / SOCKET, name)
                    break
            else:
                await self._listen(directory)
            self._kernels[directory.name] = kernel

    async def remove(self, directory: Path) -> None:
        """Remove the name, and with the last one the socket. Idempotent."""
        async with self._turn:
            if self._kernels.pop(directory.name, None) is not None:
                (directory / SOCKET).unlink(missing_ok=True)
            if self._server is not None and not self._kernels:
                self._server.close()
                self._server = None

    async def _listen(self, directory: Path) -> None:
        if self._server is not None:
            self._server.close()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            folder = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            with closing_fd(folder):
                # By descriptor, as the path of a socket has at most 107 bytes.
                listener.bind(f"/proc/self/fd/{folder}/{SOCKET}")
                os.chmod(SOCKET, 0o600, dir_fd=folder)
            listener.setblocking(False)
            self._server = await asyncio.start_unix_server(
                self._serve, sock=listener, limit=MAX_QUESTION, backlog=MAX_CLIENTS
            )
        except BaseException:
            listener.close()
            raise

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            if self._clients > MAX_CLIENTS or not _is_own(writer):
                return
            line = await asyncio.wait_for(reader.readline(), QUESTION_SECONDS)
            writer.write(await self._answer(line))
            await asyncio.wait_for(writer.drain(), ANSWER_SECONDS)
        except (OSError, ValueError, TimeoutError, asyncio.CancelledError):
            pass  # who asked too much, or went away, gets no answer
        finally:
            self._clients -= 1
            writer.close()

    async def _answer(self, line: bytes) -> bytes:
        try:
            # In a thread, as are the parts of the work that take long: the loop serves all kernels.
            question = await in_thread(msgspec.json.decode, line, type=Question)
        except (ValueError, RecursionError):
            return _make_problem("The question is malformed.") + b"\n"
        kernel = self._kernels.get(question.sandbox)
        if kernel is None:
            return _make_problem("The process does not have this kernel any more.") + b"\n"
        return await asyncio.wait_for(kernel.answer(question), WORK_SECONDS)


_doors: weakref.WeakKeyDictionary[Bridge, _Door] = weakref.WeakKeyDictionary()


class ControlSocket:
    """Answers questions about one kernel, beside the bridge's loop, from ``open`` to ``close``.

    ``branch`` starts branches of it as kernels of the same server, if there is one. ``find_own``:
    of ``kernel/moves``.
    """

    def __init__(
        self,
        kernel: SandboxedKernel,
        branch: Branching | None = None,
        find_own: Callable[[str], Any] | None = None,
    ) -> None:
        self._find_own = find_own
        self._branch = branch
        self._kernel = kernel
        self._changes = KernelChanges(kernel)
        self._bridge = Bridge.instance()
        self._directory: Path | None = None
        self._answers: set[asyncio.Task[Any]] = set()

    async def open(self) -> None:
        """Answer in the directory of the kernel's present sandbox.

        :raises OSError: when that fails; the kernel works without
        """
        sandbox, saved = self._kernel.sandbox, self._kernel.hibernation.saved
        place = sandbox or saved
        if place is None or place.directory == self._directory:
            return
        await self.close()
        door = _doors.setdefault(self._bridge, _Door())
        await self._bridge.run(door.add(place.directory, self))
        self._directory = place.directory

    async def close(self) -> None:
        """Answer nothing any more. Idempotent."""
        if self._directory is not None and not self._bridge.ended:
            await self._bridge.run(self._end(self._directory))
        self._directory = None

    async def _end(self, directory: Path) -> None:
        await _doors[self._bridge].remove(directory)
        for task in self._answers:
            task.cancel()
        if self._answers:
            await asyncio.wait(self._answers, timeout=1)

    async def answer(self, question: Question) -> bytes:
        """Return the answer, a line."""
        task = asyncio.current_task()
        assert task is not None
        self._answers.add(task)
        try:
            answer = await self._do(question)
        except GvisorKernelError as error:
            answer = _make_problem(error.fact, error.hint)
        except Exception as error:  # files may have been written: whoever asked is told
            log.warning("A question about changes has failed", exc_info=True)
            answer = _make_problem(
                f"The question was not answered, by a fault of this package: {error!r:.200}",
                "look at the files in the folder; the log of the program has more.",
            )
        finally:
            self._answers.discard(task)
        if len(answer) > MAX_ANSWER:
            answer = _make_problem("The answer is too large.")
        return answer + b"\n"

    async def _do(self, question: Question) -> bytes:
        kernel, name = self._kernel, question.name or ""
        match question.do:
            case "list" | "apply":
                return await self._do_changes(question)
            case "branch":
                return encode(Branched(await self._start_branches(question)))
            case "rewind":
                return encode(await kernel.checkpoints.rewind(name, question.made))
            case "checkpoint":
                name = await kernel.checkpoints.make(question.name)
            case "remove":
                await kernel.checkpoints.remove(name)
            case "move":
                await self._move(name)
            case "hibernate" | "resume" | "forget" as verb:
                await getattr(kernel.hibernation, verb)()
            case _:
                raise ChangesError("The question is malformed.")
        return encode(Done(name))

    async def _start_branches(self, question: Question) -> list[tuple[str, str]]:
        branches = name_branches(question.count, question.name, checkpoint=question.checkpoint)
        if self._branch is None:
            raise ChangesError(
                "A program started this kernel, so no Jupyter server would have its branch.",
                "its program can make one: Sandbox.branch().",
            )
        await self._branch(branches)
        return [(branch.kernel_id, branch.name) for branch in branches]

    async def _move(self, to: str) -> None:
        if self._find_own is None:
            raise ChangesError(
                "This kernel was started by a front end that knows no provisioners, and cannot"
                " be moved.",
                "start kernels that are to be moved from a Jupyter server or a program.",
            )
        await move(self._kernel, to, self._find_own)

    async def _do_changes(self, question: Question) -> bytes:
        paths = (path for path, _ in question.changes)
        if not all(map(is_path, (*question.under, *question.named, *paths))):
            raise ChangesError("The paths of the question are malformed.")
        if question.do == "apply":
            wanted, force = question.changes, question.force
            result = await self._changes.apply(wanted, named=question.named, force=force)
            return encode(result)
        found = await self._changes.list(question.under)
        more = await self._show(found) if question.diff else {}
        return await in_thread(encode_changes, found, **more)

    async def _show(self, found: Changes) -> dict[str, object]:
        diffs: dict[str, str] = {}
        whole: list[str] = []
        size = 0
        for change in found.changes[:DIFFS]:
            shown = await self._changes.diff(change)
            size += len(shown.text)
            if size > MAX_DIFFS:
                break
            diffs[change.path] = shown.text
            if shown.is_whole:
                whole.append(change.path)
        return {"diffs": diffs, "whole": whole}


def _make_problem(*texts: str) -> bytes:
    return encode(_Problem(*texts))


def _is_own(writer: asyncio.StreamWriter) -> bool:
    """Return whether the other end is this user or root."""
    other = writer.get_extra_info("socket")
    size = struct.calcsize("3i")
    credentials = other.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    _, uid, _ = struct.unpack("3i", credentials)
    return uid in (0, os.geteuid())


# -- who asks; blocks ------------------------------------------------------------------------------


def list_changes(
    directory: Path, *, diff: bool = False, under: Sequence[str] = ()
) -> tuple[Changes, dict[str, Diff]]:
    """Return the changes of the sandbox with this state directory, and diffs by path.

    ``under``: only those of these paths.

    :raises ChangesError: when they cannot be listed
    """
    found = ask(directory, Question("list", diff=diff, under=list(under)), _Listed)
    diffs = {path: Diff(text, path in found.whole) for path, text in found.diffs.items()}
    return Changes(found.changes, found.more, found.total), diffs


def apply_changes(
    directory: Path, changes: Sequence[Change], *, named: Sequence[str] = (), force: bool = False
) -> Applied:
    """Apply changes as they were listed. ``named``: paths of those that may run by themselves.

    :raises ChangesError: when nothing can be applied
    """
    wanted = [(change.path, change.state) for change in changes]
    question = Question("apply", changes=wanted, named=list(named), force=force)
    return ask(directory, question, Applied)


def ask(directory: Path, question: Question, answer: type[T]) -> T:
    """Ask one question and return the answer.

    :raises ChangesError: when there is none, or it is an error
    """
    end = time.monotonic() + WORK_SECONDS
    received = bytearray()
    try:
        # by path: below the state directory, whose parents only this user can change
        folder = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        with closing_fd(folder), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            asking.settimeout(WORK_SECONDS)
            asking.connect(f"/proc/self/fd/{folder}/{SOCKET}")
            asked = msgspec.structs.replace(question, sandbox=directory.name)
            asking.sendall(msgspec.json.encode(asked) + b"\n")
            while not received.endswith(b"\n") and len(received) <= MAX_ANSWER:
                asking.settimeout(max(end - time.monotonic(), 0.01))
                part = asking.recv(PART)
                if not part:
                    break
                received += part
    except OSError as error:
        raise ChangesError(
            f"The process that has this kernel does not answer: {error.strerror or error}.",
            "the kernel must run, and must have been started by this version of gvisor-kernel.",
        ) from error
    with suppress(ValueError):
        problem = msgspec.json.decode(received, type=_Problem)
        raise ChangesError(problem.error, problem.hint)
    try:
        return msgspec.json.decode(received, type=answer)
    except ValueError as error:
        raise ChangesError(
            "The process that has this kernel gave no answer that can be read.",
            "it may be busy with others: try again.",
        ) from error
