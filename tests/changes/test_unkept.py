"""Which files are told as lost; what a sandbox says of them may be made up."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gvisor_kernel.changes.change import ChangesError
from gvisor_kernel.changes.compare import MAX_NAMED, find_unkept
from gvisor_kernel.host.folders import Identity
from gvisor_kernel.kernel.workspace import describe_left, list_left, read_left
from gvisor_kernel.link.service_messages import PROCESS, encode_service
from gvisor_kernel.runtimes.base import MountView
from gvisor_kernel.server.sandboxes import LOOK_SECONDS, UnkeptLooks
from gvisor_kernel.spec.layout import UPLOADS

pytestmark = pytest.mark.once


class Shown:
    """Stands for a sandbox that was shown ``folder``."""

    def __init__(self, folder: Path, directory: Path) -> None:
        self.directory = directory
        status = folder.stat()
        identity = Identity(status.st_dev, status.st_ino)
        self.view = SimpleNamespace(mounts=(MountView(str(folder), UPLOADS, True, identity),))


def entry(path: object, content: bytes = b"x", digest: str | None = None) -> list[object]:
    found = hashlib.sha256(content).hexdigest() if digest is None else digest
    return [path, "written", "file", len(content), 1, found]


def say(*entries: object, more: object = False, total: object = None) -> dict[str, Any]:
    return {
        "entries": list(entries),
        "more": more,
        "total": len(entries) if total is None else total,
    }


@pytest.fixture
def shown(tmp_path: Path) -> Any:
    (tmp_path / "n").mkdir()
    (tmp_path / "n/same").write_text("x")
    (tmp_path / "n/other").write_text("y")
    (tmp_path / "n/link").symlink_to("same")
    (tmp_path / "outside").write_text("x")
    (tmp_path / "n/out").symlink_to(tmp_path)
    return Shown(tmp_path / "n", tmp_path / "state")


def test_what_is_the_same_on_disk_is_kept(shown: Any) -> None:
    """A link is not followed to find that out, and what was not read is not the same."""
    said = say(
        *(entry(name) for name in ("same", "other", "link", "out/outside", "none")),
        entry("same-unread", digest=""),
    )
    left = find_unkept(shown, said)
    assert left.paths == ("other", "link", "out/outside", "none", "same-unread")
    assert (left.total, left.more) == (5, False)


def test_what_will_be_applied_at_the_end_is_kept(shown: Any) -> None:
    said = say(*(entry(name) for name in ("new.csv", "other", "a/new.png", "new.py", ".new.csv")))
    left = find_unkept(shown, said, applies_new=True)
    assert left.paths == ("other", "new.py", ".new.csv")


def test_many_files_are_counted_and_some_named(shown: Any) -> None:
    names = [entry("same"), *(entry(f"f{number}") for number in range(100))]
    left = find_unkept(shown, say(*names, more=True, total=10**6))
    assert (left.total, left.more, len(left.paths)) == (10**6 - 1, True, MAX_NAMED)


@pytest.mark.parametrize(
    "said",
    [
        say(entry("../x")),
        say(entry("/etc/passwd")),
        say(entry(5)),
        say(entry("x"), entry("x")),
        say(["x"]),
        say("x"),
        say(entry("x", digest="5")),
        say(entry("x"), total=True),
        say(entry("x"), total=-1),
        say(entry("x"), total=2**70),
        {"entries": {}, "total": 1},
        {},
    ],
)
def test_nonsense_is_refused(shown: Any, said: dict[str, Any]) -> None:
    with pytest.raises(ChangesError):
        find_unkept(shown, said)


def test_words_for_the_log_are_bounded() -> None:
    """Where nobody compares with the disk, too."""
    said = say(*(entry(f"\x1b{number}" + "n" * 500) for number in range(200)), total=10**30)
    part = encode_service(PROCESS, {**said, "ended": True})
    content = read_left(part)
    assert content is not None
    left = list_left(content)
    assert left is not None
    words = describe_left(left)
    assert len(words) < 2000
    assert words.isprintable()
    for odd in (b"", b"x" * 12, encode_service(PROCESS, {"ended": True})):
        assert read_left(odd) is None
    assert list_left({"entries": [], "total": "5"}) is None


def test_no_answer_is_older_than_its_question_but_a_moment() -> None:
    """A page asks once after each cell: what was seen before the cell's end was its last word."""
    states = iter(range(9))

    class Slow:
        async def find_unkept(self) -> int:
            found = next(states)
            await asyncio.sleep(2 * LOOK_SECONDS)
            return found

    async def ask() -> list[Any]:
        looks = UnkeptLooks(lambda _: cast(Any, Slow()))
        facts = SimpleNamespace(identity="a", saved=None)
        kernel = cast(Any, SimpleNamespace(sandbox=facts, describe=lambda: facts))
        first = [asyncio.create_task(looks.read(kernel)) for _ in range(3)]
        await asyncio.sleep(1.5 * LOOK_SECONDS)  # its cell has ended after the look began
        second = [asyncio.create_task(looks.read(kernel)) for _ in range(3)]
        answers = [*await asyncio.gather(*first, *second), await looks.read(kernel)]
        looks.end()
        return answers

    assert asyncio.run(ask()) == [0, 0, 0, 1, 1, 1, 2]
