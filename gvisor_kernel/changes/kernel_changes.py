"""The changes of one running kernel: listed, read, applied. Use it in any loop.

What the sandbox answers is bounded and checked here; the folder on disk is opened anew each time,
and only if it is still the one that the sandbox was shown.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import IO, Any, Literal, TypeVar

from gvisor_kernel.changes.apply import AGAIN, Applying, clear_all, explain, order
from gvisor_kernel.changes.backups import Backup, Backups, Head
from gvisor_kernel.changes.change import (
    MAX_CHANGES,
    MAX_FILE,
    Applied,
    Change,
    Changes,
    ChangesError,
    Claim,
    RefusedChange,
    is_path,
    name_path,
    note_more,
    select,
)
from gvisor_kernel.changes.compare import (
    MAX_LISTED,
    UNKEPT_HASHED,
    compare,
    find_unkept,
    list_claims,
    read_claims,
)
from gvisor_kernel.changes.diff import Diff, diff_texts, remark
from gvisor_kernel.changes.folder import look, open_file
from gvisor_kernel.config.settings import ASK, NEVER, NEW_FILES
from gvisor_kernel.config.validators import PROJECT
from gvisor_kernel.errors import GvisorKernelError, SandboxError
from gvisor_kernel.host.folders import Identity, Opened, reopen
from gvisor_kernel.host.workers import in_thread
from gvisor_kernel.kernel.facts import Left
from gvisor_kernel.kernel.session import SandboxedKernel
from gvisor_kernel.kernel.workspace import find_view
from gvisor_kernel.link.service_messages import MAX_DATA
from gvisor_kernel.runtimes.base import MountView
from gvisor_kernel.shown_text import printable_name
from gvisor_kernel.spec.layout import UPLOADS, WORKSPACE

LOOK_SECONDS = 5.0
"""Seconds that the sandbox looks."""
ANSWER_SECONDS = 20.0
"""Seconds that its answer is waited for."""
READ_SECONDS = 30.0
SHORT_LOOK_SECONDS, SHORT_ANSWER_SECONDS = 0.2, 5.0
"""The same for ``find_unkept``, which looks at the disk for 0.3 s then."""
MAX_SHOWN = 8 * 1024 * 1024
"""Bytes of a file that ``read`` returns."""
MAX_SIZE = 2**63
MAX_ERROR = 200
"""Characters of an error's text in the sandbox."""
MEMORY = 1024 * 1024
"""Bytes of a file that wait in memory, and not on disk, before it is written."""
NO_SANDBOX = "The sandbox has ended, and its changes with it."
ASLEEP = "The kernel hibernates, and is not woken for this."
NO_FOLDER = "the kernel was shown no folder of this computer"
OTHER_CONTENT = "the sandbox answered something else than when it was looked at"
CHANGED_INSIDE = "the kernel has changed it since it was listed: look again"
NOT_SHOWN = "its content was not looked at for the list, so it is not shown: it may be large"
CHANGED_OUTSIDE = "it has changed on disk since it was listed: look again"
RUNS = "it may run later without being opened"
LATE = "there was no time for it"
OFF = (
    'Nothing of this kernel is applied: its setting apply is "off".',
    'write to outputs/, or set apply to "ask", shut the kernel down and start it again.',
)
UNSEEN = "it is so large that its content was not looked at; apply it with force"

T = TypeVar("T")
Side = Literal["old", "new"]


class KernelChanges:
    """The changes of ``kernel`` in /workspace, against the folder that it was shown."""

    def __init__(self, kernel: SandboxedKernel) -> None:
        self._kernel = kernel

    async def list(self, under: Iterable[str] = ()) -> Changes:
        """Return the changes, by path. ``under``: only those of these paths, as ``select`` does.

        :raises ChangesError: when the sandbox does not answer as it should, or its folder on disk
            is not there any more
        :raises SandboxError: when no kernel runs
        """
        changes, _ = await self.look([name_path(path) for path in under])
        return changes

    async def find_unkept(self) -> Left:
        """Return the files that would end with the sandbox now. A cheap look, of half a second.

        A kernel that hibernates is not woken.

        :raises ChangesError: when the sandbox does not answer as it should
        :raises SandboxError: when no kernel runs
        """
        sandbox = self._kernel.sandbox
        if sandbox is None:
            is_saved = self._kernel.hibernation.saved is not None
            raise ChangesError(ASLEEP if is_saved else NO_SANDBOX)
        question = {
            "do": "changes",
            "limit": MAX_LISTED,
            "seconds": SHORT_LOOK_SECONDS,
            "digests": True,
            "hashed": UNKEPT_HASHED,
            "only_written": True,
            "under": [],
        }
        content, _ = await self._ask(question, SHORT_ANSWER_SECONDS, wakes=False)
        applies_new = self._setting == NEW_FILES
        return await in_thread(find_unkept, sandbox, content, applies_new=applies_new)

    async def read(self, path: str, side: Side, state: str) -> bytes | None:
        """Return a file's content in the sandbox ("new") or on disk ("old"); None if there is none.

        It is the content that was listed with the ``state`` of a change, and that an apply of this
        state writes.

        :raises ChangesError: when it cannot be read, has more than MAX_SHOWN bytes, or is not what
            was listed
        """
        path = name_path(path)
        seen, _, claim = state.partition(" ")
        if side == "old":
            return await in_thread(self._read_old, path, seen)
        if claim == "removed":
            return None
        digest = claim.rpartition(".")[2] if claim.startswith("file.") else ""
        if not digest:  # nothing would bind an apply to what is shown
            raise ChangesError(f"{printable_name(path)}: {NOT_SHOWN}")
        with tempfile.SpooledTemporaryFile(MEMORY) as file:
            try:
                _, found = await self._fetch(path, MAX_SHOWN, file)
            except _NotThere:
                return None
            if found != digest:
                raise ChangesError(f"{printable_name(path)}: {CHANGED_INSIDE}")
            file.seek(0)
            return file.read()

    async def diff(self, change: Change) -> Diff:
        """Return the text diff of a change as it was listed, or a remark why there is none.

        It can be printed: names, control characters and what nobody sees are escaped.
        """
        if change.type != "file":
            return remark(change.path, f"A {change.type}.", change.kind)
        try:
            # In place of a folder: that has no text.
            is_folder = change.state.startswith("folder.")
            old = None if is_folder else await self.read(change.path, "old", change.state)
            new = await self.read(change.path, "new", change.state)
        except ChangesError as error:
            words = f"Not shown: {error.fact}"
            return remark(change.path, words, change.kind, is_whole=False)
        return await in_thread(diff_texts, change.path, old, new)

    async def apply(
        self,
        wanted: Iterable[tuple[str, str]],
        *,
        named: Collection[str] = (),
        force: bool = False,
    ) -> Applied:
        """Apply changes to the folder on disk: each a path and the ``state`` that was looked at.

        What has changed on one of both sides since then, and what is a conflict, is refused;
        ``force`` replaces what is on disk now. Links and special files are never written. A file
        that may run by itself (``Change.runs``) is applied only if ``named`` has its path: a person
        or a program has named that one, and not a folder or all.

        :raises ChangesError: when nothing can be applied
        """
        states, named = dict(wanted), set(named)
        if not states:
            return Applied((), (), None)
        if len(states) > MAX_CHANGES:
            raise ChangesError(f"At most {MAX_CHANGES} changes can be applied at once.")
        if self._setting == NEVER:
            raise ChangesError(*OFF)
        changes, claims = await self.look([path for path in states if is_path(path)])
        found = {change.path: change for change in changes.changes}
        refused = [
            RefusedChange(path, "it is no change, or not any more")
            for path in states.keys() - found.keys()
        ]
        chosen = []
        for path in states.keys() & found.keys():
            is_named = path in named
            reason = _find_obstacle(found[path], states[path], is_named=is_named, force=force)
            if reason is None:
                chosen.append(found[path])
            else:
                refused.append(RefusedChange(path, reason))
        return await self.apply_looked(chosen, claims, refused, force=force)

    async def apply_looked(
        self,
        chosen: Iterable[Change],
        claims: Mapping[str, Claim],
        refused: Iterable[RefusedChange],
        *,
        force: bool,
        is_automatic: bool = False,
        end: float | None = None,
    ) -> Applied:
        """Apply what ``look`` has listed, until ``end`` (the loop's time). What is on disk now is
        replaced only if that was listed. ``force``: also what was not read for the list.
        ``refused``: further ones. ``is_automatic``: nobody has asked for it.

        :raises ChangesError: when nothing can be applied
        """
        root = await in_thread(self._open)
        if root is None:
            raise ChangesError(f"Changes cannot be applied: {NO_FOLDER}.")
        with root:
            backup = await _finish(self._begin, root, is_automatic)
            with ExitStack() as stack:
                await _finish(_enter, stack, backup)
                work = Applying(root, backup)
                work.refused += refused
                for change in sorted(chosen, key=order):
                    try:
                        async with asyncio.timeout_at(end):
                            await asyncio.sleep(0)  # ends what has no time any more
                            claim = claims.get(change.path)
                            await self._apply_one(work, root, change, claim, force)
                    except TimeoutError:
                        if change.path not in work.applied:
                            work.refuse(change.path, LATE)
            if not work.applied:
                await _finish(backup.remove)
            return work.result

    async def apply_asked(
        self,
        asked: Sequence[Change | str],
        named: Iterable[str],
        *,
        unseen: bool,
        force: bool,
    ) -> Applied:
        """Apply changes as they were listed, and with ``unseen`` what is below paths now.

        Files that may run by themselves need their own path in ``asked`` or ``named``.

        :raises ChangesError: a path is not changed, or was not seen, or nothing can be applied
        """
        chosen = [change for change in asked if isinstance(change, Change)]
        paths = [path for path in asked if isinstance(path, str)]
        if paths and not unseen:
            raise ChangesError(
                f"The path {paths[0]!r} does not say which content was seen.",
                "apply a Change that changes() gave, or what is there now: unseen=True.",
            )
        listed = await self.list(paths) if paths else Changes((), False, 0)
        chosen += select(listed, paths)
        own = {name_path(path) for path in (*paths, *named)}
        result = await self.apply([(c.path, c.state) for c in chosen], named=own, force=force)
        return note_more(result, listed)

    # -- inner -----------------------------------------------------------------------------------

    async def _apply_one(
        self, work: Applying, root: Opened, change: Change, claim: Claim | None, force: bool
    ) -> None:
        with tempfile.SpooledTemporaryFile(MEMORY) as file:
            try:
                if change.kind == "removed":
                    await self._check_missing(change.path)
                elif change.type == "file":
                    assert claim is not None
                    await self._fetch_claimed(claim, file, force)
                file.seek(0)
            except _NotThere:
                work.refuse(change.path, OTHER_CONTENT)
                return
            except GvisorKernelError as error:  # also: the sandbox has ended
                work.refuse(change.path, error.fact)
                return
            except OSError as error:
                place = tempfile.gettempdir()
                work.refuse(change.path, f"it cannot be copied to {place}: {explain(error)}")
                return

            def write() -> None:
                try:
                    disk = look(root, change.path)
                except OSError as error:
                    work.refuse(change.path, explain(error))
                    return
                text = "absent" if disk is None else disk.text
                if text != change.state.split(" ")[0]:
                    work.refuse(change.path, AGAIN)
                    return
                work.apply(change, disk, file)

            await _finish(write)

    async def look(self, under: Sequence[str] = ()) -> tuple[Changes, Mapping[str, Claim]]:
        """Return the changes, as ``list`` does, and what the sandbox has said of each."""
        question = {
            "do": "changes",
            "limit": MAX_CHANGES,
            "seconds": LOOK_SECONDS,
            "digests": True,
            "under": list(under),
        }
        content, _ = await self._ask(question, ANSWER_SECONDS)
        started, facts = self._kernel.started, self._kernel.describe()
        hides = facts is not None and facts.spec.uploads == PROJECT

        def work() -> tuple[Changes, Mapping[str, Claim]]:
            claims, more, total = read_claims(content)
            root = self._open()
            if root is None:
                return list_claims(claims, NO_FOLDER, more=more, total=total), claims
            with root:
                ours = Backups.open().find_ours(self._find_id())
                found = compare(
                    *(root, claims, started), more=more, total=total, ours=ours, hides=hides
                )
                return found, claims

        return await in_thread(work)

    async def _check_missing(self, path: str) -> None:
        question = {"do": "exists", "path": f"{WORKSPACE}/{path}"}
        content, _ = await self._ask(question, READ_SECONDS)
        if content.get("exists") is not False:
            raise ChangesError(OTHER_CONTENT)

    async def _fetch_claimed(self, claim: Claim, file: IO[bytes], force: bool) -> None:
        if claim.size > MAX_FILE:
            raise ChangesError(f"it has more than {MAX_FILE} bytes")
        if not claim.digest and not force:
            raise ChangesError(UNSEEN)
        size, digest = await self._fetch(claim.path, claim.size, file)
        if size != claim.size or claim.digest not in ("", digest):
            raise ChangesError(OTHER_CONTENT)

    async def _fetch(self, path: str, limit: int, file: IO[bytes]) -> tuple[int, str]:
        """Write a file's content in the sandbox to ``file``; return its size and SHA-256.

        :raises _NotThere: when there is none
        """
        size, digest = 0, hashlib.sha256()
        while True:
            question = {"do": "read", "path": f"{WORKSPACE}/{path}", "offset": size}
            content, data = await self._ask({**question, "size": MAX_DATA}, READ_SECONDS)
            error, total = content.get("error"), content.get("total")
            if error == "No such file or directory":
                raise _NotThere(path)
            if isinstance(error, str):
                words = printable_name(error[:MAX_ERROR])
                raise ChangesError(f"it cannot be read in the sandbox ({words})")
            if type(total) is not int or not 0 <= total < MAX_SIZE:
                raise ChangesError(OTHER_CONTENT)
            if total > limit or size + len(data) > limit:
                grown = limit not in (MAX_SHOWN, MAX_FILE)  # the size that was listed
                raise ChangesError(CHANGED_INSIDE if grown else f"it has more than {limit} bytes")
            size += len(data)
            digest.update(data)
            await _finish(file.write, data)
            if len(data) < MAX_DATA:
                return size, digest.hexdigest()

    async def _ask(
        self, question: Mapping[str, object], seconds: float, *, wakes: bool = True
    ) -> tuple[dict[str, Any], bytes]:
        call = await self._kernel.open_call(question, wakes=wakes)
        try:
            limit = question.get("limit")
            answering = call.receive_list(limit) if isinstance(limit, int) else call.receive()
            answer = await asyncio.wait_for(answering, seconds)
        except TimeoutError:
            raise ChangesError(
                f"The sandbox did not answer within {seconds:g} s.",
                "its kernel may use all processors or be stopped: wait, or interrupt it.",
            ) from None
        finally:
            with suppress(SandboxError):
                await call.close()
        if question["do"] not in ("read",) and "error" in answer.content:
            raise ChangesError("The sandbox cannot look at its files.")
        return answer.content, answer.data

    @property
    def _setting(self) -> str:
        facts = self._kernel.describe()
        return ASK if facts is None else facts.spec.apply

    def _find_view(self) -> MountView | None:
        sandbox = self._kernel.sandbox
        if sandbox is None:
            raise ChangesError(NO_SANDBOX)
        return find_view(sandbox, UPLOADS)

    def _find_id(self) -> str:
        sandbox = self._kernel.sandbox
        return "" if sandbox is None else sandbox.directory.name

    def _open(self) -> Opened | None:
        view = self._find_view()
        if view is None or view.identity is None:
            return None
        try:
            return reopen(view.source, view.identity)
        except OSError as error:
            raise ChangesError(
                f"The folder {view.source} is not the one that the kernel was shown any more"
                f" ({error.strerror}).",
                "put it back where it was.",
            ) from error

    def _begin(self, root: Opened, is_automatic: bool) -> Backup:
        clear_all()
        identity = Identity(*root.identity)
        return Backups.open().begin(Head(self._find_id(), root.path, identity, is_automatic))

    def _read_old(self, path: str, seen: str) -> bytes | None:
        root = self._open()
        if root is None:
            return None
        try:
            with root, open_file(root, path) as file:
                content = file.read(MAX_SHOWN + 1)
                disk, inode = look(root, path), os.fstat(file.fileno()).st_ino
                if disk is None or (disk.text, disk.inode) != (seen, inode):
                    raise ChangesError(f"{printable_name(path)}: {CHANGED_OUTSIDE}")
        except (FileNotFoundError, NotADirectoryError):
            if seen != "absent":
                raise ChangesError(f"{printable_name(path)}: {CHANGED_OUTSIDE}") from None
            return None
        except OSError as error:
            raise ChangesError(f"it cannot be read on disk ({explain(error)})") from error
        if len(content) > MAX_SHOWN:
            raise ChangesError(f"it has more than {MAX_SHOWN} bytes")
        return content


class _NotThere(Exception):
    """The sandbox has no such file."""


def _enter(stack: ExitStack, backup: Backup) -> None:
    try:
        stack.enter_context(backup.working())
    except OSError as error:
        backup.remove()
        raise ChangesError(f"Old files cannot be kept: {explain(error)}.") from error


async def _finish(work: Callable[..., T], *arguments: Any) -> T:
    """Do ``work`` in a thread. Somebody who cancels this waits for its end: it uses descriptors
    that are closed then."""
    task = asyncio.ensure_future(in_thread(work, *arguments))
    try:
        return await asyncio.shield(task)  # no timeout: a step on the user's disk
    except asyncio.CancelledError:
        await asyncio.wait({task})  # no timeout: a step on the user's disk, by open descriptors
        raise


def _find_obstacle(change: Change, state: str, *, is_named: bool, force: bool) -> str | None:
    if change.is_refused:
        return change.conflict
    if change.runs is not None and not is_named:
        return f"{RUNS} ({change.runs}): name this file by its own path"
    (disk, _, claim), (seen, _, claimed) = change.state.partition(" "), state.partition(" ")
    if claim != claimed:  # nobody has seen what is there now
        return OTHER_CONTENT
    if force:
        return None
    return AGAIN if disk != seen else change.conflict
