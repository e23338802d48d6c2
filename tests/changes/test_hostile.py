"""A sandbox that lies about its files, or answers something else than it did at the look."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gvisor_kernel.changes import kernel_changes
from gvisor_kernel.changes.apply import Applying, undo_apply
from gvisor_kernel.changes.backups import Backups
from gvisor_kernel.changes.change import Applied, ChangesError, encode
from gvisor_kernel.changes.kernel_changes import LATE, OTHER_CONTENT, UNSEEN, KernelChanges
from gvisor_kernel.errors import SandboxError
from gvisor_kernel.kernel.session import SandboxedKernel
from gvisor_kernel.link.service_messages import MAX_DATA, ServiceMessage
from gvisor_kernel.runtimes.base import MountView
from gvisor_kernel.spec.layout import UPLOADS

from ..patience import scale_seconds
from .helpers import entry, open_root

SECONDS = scale_seconds(30)


class Call:
    def __init__(self, answer: ServiceMessage | None) -> None:
        self.answer = answer

    async def receive(self) -> ServiceMessage:
        if self.answer is None:
            await asyncio.Event().wait()
        assert self.answer is not None
        return self.answer

    async def receive_list(self, limit: int) -> ServiceMessage:
        return await self.receive()

    async def close(self) -> None:
        pass


class Kernel:
    """A kernel whose sandbox answers what a test wants."""

    def __init__(self, folder: Path, state: Path) -> None:
        with open_root(folder) as root:
            view = MountView(root.path, UPLOADS, True, root.identity)
        self.sandbox = SimpleNamespace(view=SimpleNamespace(mounts=(view,)), directory=state)
        self.started = 1e10
        self.entries: list[list[object]] = []
        self.content = b"new"
        self.total: object = None
        self.exists: object = False
        self.is_silent = False
        self.error: object = None

    def describe(self) -> None:
        return None

    async def open_call(self, question: Mapping[str, Any], data: bytes = b"", **_: bool) -> Call:
        if self.is_silent:
            return Call(None)
        content: dict[str, object] = {"exists": self.exists}
        if question["do"] == "changes":
            total = len(self.entries)
            content = {"entries": self.entries, "total": total, "more": False}
        elif question["do"] == "read":
            total = len(self.content) if self.total is None else self.total
            content = {"total": total} if self.error is None else {"error": self.error}
            data = self.content[question["offset"] :][: question["size"]]
        return Call(ServiceMessage(1, content, data))


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    (tmp_path / "shown").mkdir()
    (tmp_path / "state").mkdir()
    yield Kernel(tmp_path / "shown", tmp_path / "state")
    for backup in list(Backups.open().newest_first()):
        backup.remove()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def apply_after(
    kernel: Kernel, change_it: Any = None, *, named: Sequence[str] = (), force: bool = False
) -> Applied:
    """Look, let the sandbox or the disk change, and apply what was looked at."""

    async def work() -> Applied:
        changes = KernelChanges(cast("SandboxedKernel", kernel))
        found = await changes.list()
        if change_it is not None:
            change_it()
        wanted = [(c.path, c.state) for c in found.changes]
        return await changes.apply(wanted, named=named, force=force)

    return asyncio.run(work())


def reasons(result: Applied) -> list[str]:
    assert not result.applied
    assert result.undo is None
    return [one.reason for one in result.refused]


def test_what_was_looked_at_is_applied(kernel: Kernel, tmp_path: Path) -> None:
    kernel.entries = [entry("a", digest=digest(b"new"))]
    result = apply_after(kernel)
    assert result.applied == ("a",)
    assert (tmp_path / "shown" / "a").read_bytes() == b"new"


def test_other_content_than_at_the_look_is_refused(kernel: Kernel, tmp_path: Path) -> None:
    kernel.entries = [entry("a", digest=digest(b"old"))]
    assert reasons(apply_after(kernel)) == [OTHER_CONTENT]
    assert reasons(apply_after(kernel, force=True)) == [OTHER_CONTENT]
    assert not (tmp_path / "shown" / "a").exists()


@pytest.mark.parametrize(
    ("error", "shown"),
    [("\ud800", r"\ud800"), ("\x1b]0;x\nok \u202e", r"\x1b]0;x\nok \u202e")],
)
def test_an_error_in_an_answer_hides_no_result(kernel: Kernel, error: str, shown: str) -> None:
    kernel.entries = [entry("a", digest=digest(b"new"))]

    def fail() -> None:
        kernel.error = error

    result = apply_after(kernel, fail)
    assert len(result.refused) == 1
    told = json.loads(encode(result))
    assert told["refused"][0]["path"] == "a"
    assert f"it cannot be read in the sandbox ({shown})" in told["refused"][0]["reason"]


def test_a_claim_that_changes_after_the_look_is_refused(kernel: Kernel) -> None:
    kernel.entries = [entry("a", digest=digest(b"old"))]

    def change_it() -> None:
        kernel.entries = [entry("a", digest=digest(b"new"))]

    assert reasons(apply_after(kernel, change_it)) == [OTHER_CONTENT]
    kernel.entries = [entry("a", digest=digest(b"old"))]
    assert reasons(apply_after(kernel, change_it, force=True)) == [OTHER_CONTENT]


def test_what_is_shown_is_what_was_listed(kernel: Kernel, tmp_path: Path) -> None:
    """A kernel that has other content for the eye than for the apply shows nothing."""
    kernel.entries = [entry("a", digest=digest(b"new"))]
    (tmp_path / "shown" / "a").write_text("disk")

    async def work() -> None:
        changes = KernelChanges(cast("SandboxedKernel", kernel))
        (change,) = (await changes.list()).changes
        assert await changes.read("a", "new", change.state) == b"new"
        assert await changes.read("a", "old", change.state) == b"disk"
        kernel.content = b"for the eye"
        with pytest.raises(ChangesError, match="since it was listed"):
            await changes.read("a", "new", change.state)
        shown = await changes.diff(change)
        assert "for the eye" not in shown.text
        assert "\\ Not shown: a: the kernel has changed it since it was listed" in shown.text
        assert not shown.is_whole
        kernel.entries = [entry("a")]  # the sandbox says no digest
        (unseen,) = (await changes.list()).changes
        with pytest.raises(ChangesError, match="so it is not shown"):
            await changes.read("a", "new", unseen.state)
        assert "so it is not shown" in (await changes.diff(unseen)).text
        (tmp_path / "shown" / "a").write_text("other")
        with pytest.raises(ChangesError, match="on disk since it was listed"):
            await changes.read("a", "old", change.state)
        (tmp_path / "shown" / "a").unlink()
        with pytest.raises(ChangesError, match="on disk since it was listed"):
            await changes.read("a", "old", change.state)

    asyncio.run(work())


@pytest.mark.parametrize("path", ["Makefile", ".git/config"])
def test_a_file_that_may_run_by_itself_is_applied_only_if_it_is_named(
    path: str, kernel: Kernel, tmp_path: Path
) -> None:
    kernel.entries = [
        entry(".git", what="folder"),
        entry("data.csv", digest=digest(b"new")),
        entry(path, digest=digest(b"new")),
    ]
    result = apply_after(kernel, force=True)
    assert set(result.applied) == {".git", "data.csv"}
    (refused,) = result.refused
    assert refused.path == path
    assert "may run later without being opened" in refused.reason
    assert not (tmp_path / "shown" / path).exists()
    is_repository = path.startswith(".git/")
    result = apply_after(kernel, named=[path])
    assert bool(result.refused) == is_repository
    assert (tmp_path / "shown" / path).exists() != is_repository
    if is_repository:
        assert path in apply_after(kernel, named=[path], force=True).applied


def test_a_file_without_a_digest_needs_force(kernel: Kernel) -> None:
    kernel.entries = [entry("a")]
    assert reasons(apply_after(kernel)) == [UNSEEN]
    assert apply_after(kernel, force=True).applied == ("a",)


def test_a_file_that_never_ends_is_refused(kernel: Kernel) -> None:
    kernel.entries = [entry("a", digest=digest(b"new"))]
    kernel.content = bytes(3 * MAX_DATA)
    assert "since it was listed" in reasons(apply_after(kernel))[0]
    kernel.content, kernel.total = b"", 3
    assert reasons(apply_after(kernel)) == [OTHER_CONTENT]
    kernel.total = "3"
    assert reasons(apply_after(kernel)) == [OTHER_CONTENT]


def test_a_file_that_is_there_again_is_not_removed(kernel: Kernel, tmp_path: Path) -> None:
    (tmp_path / "shown" / "a").touch()
    kernel.entries = [entry("a", "removed")]
    kernel.exists = True
    assert reasons(apply_after(kernel)) == [OTHER_CONTENT]
    assert (tmp_path / "shown" / "a").exists()


def test_paths_that_nobody_has_changed_are_refused(kernel: Kernel) -> None:
    async def work() -> Applied:
        changes = KernelChanges(cast("SandboxedKernel", kernel))
        return await changes.apply([("../../etc/passwd", "x"), ("b", "absent removed")])

    assert len(reasons(asyncio.run(work()))) == 2


def test_a_file_that_changed_on_disk_after_the_look_is_refused(
    kernel: Kernel, tmp_path: Path
) -> None:
    file = tmp_path / "shown" / "a"
    file.write_text("before")
    kernel.entries = [entry("a", digest=digest(b"new"))]
    assert "on disk" in reasons(apply_after(kernel, lambda: file.write_text("mine")))[0]
    assert file.read_text() == "mine"


def test_a_folder_that_was_replaced_is_not_written(kernel: Kernel, tmp_path: Path) -> None:
    kernel.entries = [entry("a", digest=digest(b"new"))]

    def change_it() -> None:
        (tmp_path / "shown").rename(tmp_path / "moved")
        (tmp_path / "shown").symlink_to(tmp_path / "state")

    with pytest.raises(ChangesError, match="not the one"):
        apply_after(kernel, change_it)
    assert os.listdir(tmp_path / "state") == []  # noqa: PTH208


def test_a_sandbox_that_does_not_answer_is_not_waited_for(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_changes, "ANSWER_SECONDS", 0.01)
    kernel.is_silent = True
    with pytest.raises(ChangesError, match="did not answer"):
        apply_after(kernel)


def test_the_disks_side_is_read_without_links(kernel: Kernel, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "shown" / "link").symlink_to(tmp_path / "secret")
    changes = KernelChanges(cast("SandboxedKernel", kernel))
    with pytest.raises(ChangesError):
        asyncio.run(changes.read("link", "old", "absent removed"))
    with pytest.raises(ChangesError):
        asyncio.run(changes.read("../secret", "old", "absent removed"))


def test_without_room_for_what_is_fetched_a_change_is_refused(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_changes.tempfile, "tempdir", str(tmp_path / "missing"))
    kernel.content = bytes(kernel_changes.MEMORY + 1)
    kernel.entries = [entry("a", size=len(kernel.content), digest=digest(kernel.content))]
    assert "cannot be copied to" in reasons(apply_after(kernel))[0]


def test_a_sandbox_that_ends_at_an_apply_leaves_what_was_applied(
    kernel: Kernel, tmp_path: Path
) -> None:
    kernel.entries = [entry(name, digest=digest(b"new")) for name in ("a", "b")]
    real, calls = kernel.open_call, 0

    async def open_call(question: Mapping[str, Any], data: bytes = b"", **_: bool) -> Call:
        nonlocal calls
        calls += question["do"] == "read"
        if calls > 1:
            raise SandboxError("The sandbox has ended.")
        return await real(question, data)

    kernel.open_call = open_call  # type: ignore[method-assign]
    result = apply_after(kernel)
    assert result.applied == ("a",)
    assert [one.reason for one in result.refused] == ["The sandbox has ended."]
    assert undo_apply(result.undo).undone == ("a",)
    assert not (tmp_path / "shown" / "a").exists()


def test_who_cancels_an_apply_waits_for_its_step(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.entries = [entry("a", digest=digest(b"new"))]
    begun, goes_on = threading.Event(), threading.Event()
    real = Applying.apply

    def slow(self: Applying, *arguments: Any) -> None:
        begun.set()
        assert goes_on.wait(SECONDS)
        real(self, *arguments)

    monkeypatch.setattr(Applying, "apply", slow)

    async def work() -> None:
        changes = KernelChanges(cast("SandboxedKernel", kernel))
        found = await changes.list()
        task = asyncio.ensure_future(changes.apply([(c.path, c.state) for c in found.changes]))
        assert await asyncio.to_thread(begun.wait, SECONDS)
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        goes_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(work())
    assert (tmp_path / "shown" / "a").read_bytes() == b"new"
    assert undo_apply().undone == ("a",)


def test_two_kernels_of_one_folder_apply_and_look_at_once(kernel: Kernel, tmp_path: Path) -> None:
    """Each path is applied from one kernel; the other is refused. A look never fails by that."""
    (tmp_path / "other").mkdir()
    other = Kernel(tmp_path / "shown", tmp_path / "other")
    paths = [f"f{number}" for number in range(30)]
    for one, content in ((kernel, b"one"), (other, b"two")):
        one.content = content
        one.entries = [entry(path, digest=digest(content)) for path in paths]

    async def look() -> None:
        for _ in range(10):
            await KernelChanges(cast("SandboxedKernel", kernel)).list()

    both_looked = threading.Barrier(
        2
    )  # what one has applied before the other looks may be replaced
    with ThreadPoolExecutor() as pool:
        applying = [
            pool.submit(apply_after, one, partial(both_looked.wait, SECONDS))
            for one in (kernel, other)
        ]
        pool.submit(asyncio.run, look()).result(SECONDS)
        results = [work.result(SECONDS) for work in applying]
    assert sorted(results[0].applied + results[1].applied) == sorted(paths)
    for result, content in zip(results, (b"one", b"two"), strict=True):
        assert all((tmp_path / "shown" / path).read_bytes() == content for path in result.applied)
        assert {one.path for one in result.refused} == set(paths) - set(result.applied)
        if result.undo is not None:
            assert not undo_apply(result.undo).refused
    assert list((tmp_path / "shown").iterdir()) == []


def test_where_nobody_looks_nothing_is_replaced_and_a_claim_binds(
    kernel: Kernel, tmp_path: Path
) -> None:
    """As the setting ``apply`` has it: also what the list did not read, but no more than it said.
    A file that appears on disk meanwhile stays, and no time is no reason to wait."""
    whole = ["a.csv", "written", "file", 3, 1, digest(b"new")]
    unread = ["b.csv", "written", "file", 3, 1, ""]
    other = ["c.csv", "written", "file", 3, 1, digest(b"old")]
    grown = ["d.csv", "written", "file", 2, 1, ""]
    late = ["e.csv", "written", "file", 3, 1, ""]
    kernel.entries = [whole, unread, other, grown, late]

    async def work(seconds: float) -> Applied:
        changes = KernelChanges(cast("SandboxedKernel", kernel))
        listed, claims = await changes.look()
        (tmp_path / "shown" / "e.csv").write_text("mine")
        end = asyncio.get_running_loop().time() + seconds
        return await changes.apply_looked(listed.changes, claims, (), force=True, end=end)

    result = asyncio.run(work(SECONDS))
    assert result.applied == ("a.csv", "b.csv")
    assert {one.path for one in result.refused} == {"c.csv", "d.csv", "e.csv"}
    assert (tmp_path / "shown" / "e.csv").read_text() == "mine"
    kernel.entries = [["f.csv", "written", "file", 3, 1, ""]]
    result = asyncio.run(work(-1))
    assert [one.reason for one in result.refused] == [LATE], result
