"""The copy of a kernel's files on a node, without a sandbox: how it is made, fetched and removed.

The command ``fetch`` runs as a process of its own, as srun or ssh would start it.
"""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from gvisor_kernel.config.mounts import ExtraMount
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import ArchiveError, LaunchError, SandboxError
from gvisor_kernel.host.folders import open_path
from gvisor_kernel.host.processes import ProcessId, identify
from gvisor_kernel.node import files
from gvisor_kernel.node.files import ENDED, USED, Copy, find_copy, sweep_copies, take_files
from gvisor_kernel.runtimes.base import LaunchRequest
from gvisor_kernel.runtimes.copies.contents import Contents
from gvisor_kernel.runtimes.nodes.copies import Fetch
from gvisor_kernel.runtimes.nodes.orders import (
    CHUNK,
    LENGTH,
    Files,
    Here,
    Order,
    Sent,
    read_chunks,
    write_chunks,
    write_fact,
)

from ..docker.test_outputs import entry, pack, tree

NAME = "01hzzzzzzzzzzzzzzzzzzzzzzz"
SPEC = SandboxSpec(
    uploads="uploads",
    outputs="outputs",
    skills=None,
    mounts=(ExtraMount("mounts/0", "/data"),),
)
REQUEST = LaunchRequest("gvisor-python", "an id", Path("/of the server"), "/usr/bin/python3", {})
ORDER = Order(SPEC, REQUEST, copy=NAME)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the node, as ``python -m gvisor_kernel.node --state`` sets it."""
    base = tmp_path / "state"
    base.mkdir(mode=0o700)
    place = base / "gvisor-kernel-node" / os.uname().nodename
    monkeypatch.setenv("XDG_STATE_HOME", str(place))
    return base


def take(*entries: tuple[tarfile.TarInfo, bytes]) -> Copy:
    copy, _ = take_files(ORDER, iter([pack(*entries)]))
    return copy


def use(copy: Copy) -> Copy:
    """Let the copy have an output of a kernel."""
    copy.mark_used()
    (copy.outputs / "made").write_text("inside")
    return copy


def set_owner(copy: Copy, helper: ProcessId) -> None:
    """Let ``helper`` be the process that has made the copy."""
    path = copy.path / files.OWNER
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "process": vars(helper)}))


def orphan(copy: Copy) -> Copy:
    """Let its helper be one that has died."""
    set_owner(copy, ProcessId(os.getpid(), 1))
    return copy


# -- pieces ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_pieces_are_read_as_they_were_written_and_not_one_byte_more(size: int) -> None:
    content = os.urandom(size)
    split = [content[:7], content[7:]]
    stream = io.BytesIO(b"".join(write_chunks(split)) + b"the link")
    assert b"".join(read_chunks(stream.read)) == content
    assert stream.read() == b"the link"


def test_piece_that_is_too_long_is_refused() -> None:
    stream = io.BytesIO(LENGTH.pack(CHUNK + 1) + bytes(CHUNK + 1))
    with pytest.raises(ArchiveError, match="more than"):
        list(read_chunks(stream.read))


def test_archive_above_its_limit_is_refused() -> None:
    stream = io.BytesIO(b"".join(write_chunks([bytes(4 * CHUNK)])))
    with pytest.raises(ArchiveError, match="more than"):
        list(read_chunks(stream.read, 2 * CHUNK))


# -- the copy --------------------------------------------------------------------------------------


def test_copy_is_private_and_has_the_paths_of_the_spec(state: Path) -> None:
    copy, order = take_files(ORDER, iter([pack(entry("uploads/data.csv", b"1,2"))]))
    assert (copy.files / "uploads" / "data.csv").read_text() == "1,2"
    assert copy.path.stat().st_mode & 0o777 == 0o700
    assert str(copy.path).startswith(f"{state}/gvisor-kernel-copies/")
    assert order.spec.uploads == str(copy.files / "uploads")
    assert order.spec.outputs == str(copy.outputs)
    assert order.spec.skills is None
    assert order.spec.mounts == (ExtraMount(str(copy.files / "mounts/0"), "/data"),)
    assert order.request.folder == copy.files
    copy.remove()
    assert not copy.path.exists()


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc", "A", "x" * 41, "a\n"])
def test_odd_name_of_a_copy_is_refused(name: str) -> None:
    with pytest.raises(LaunchError, match="no name"):
        take_files(replace(ORDER, copy=name), iter([]))
    assert find_copy(name) is None


def test_copy_of_another_helper_is_left_alone() -> None:
    copy = use(take())
    with pytest.raises(LaunchError, match="File exists"):
        take()
    assert (copy.outputs / "made").exists()


def test_nothing_is_left_of_a_copy_that_was_not_finished(state: Path) -> None:
    """A link that would lead out is a link; a file below it is refused, and so is a damaged end."""
    with pytest.raises(LaunchError, match="refused"):
        take_files(ORDER, iter([pack(entry("uploads/a", bytes(9000)))[:4000]]))

    def cut() -> Iterator[bytes]:
        yield pack(entry("uploads/a", bytes(9000)))[:4000]
        raise ConnectionError("the host has gone")

    with pytest.raises(LaunchError, match="the host has gone"):
        take_files(ORDER, cut())
    assert list(state.glob("gvisor-kernel-copies/*/*")) == []


def test_names_that_lead_out_of_the_copy_are_left_out(tmp_path: Path) -> None:
    copy = take(
        entry("../above", b"x"),
        entry(f"{tmp_path}/absolute", b"x"),
        entry("uploads", kind=tarfile.DIRTYPE),
        entry("uploads/way", kind=tarfile.SYMTYPE, target=str(tmp_path)),
        entry("uploads/way/file", b"x"),
        entry("uploads/pipe", kind=tarfile.FIFOTYPE),
    )
    assert copy.left_out >= 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state"]
    assert sorted(path.name for path in copy.path.iterdir()) == ["files", "owner"]


def test_copy_on_a_full_disk_is_refused(tmp_path: Path, state: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root mounts a small disk")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "none", state], check=True)
    try:
        with pytest.raises(LaunchError, match="has room for"):
            take(entry("uploads/large", bytes(2 << 20)))
        assert list(state.glob("gvisor-kernel-copies/*/*")) == []
    finally:
        subprocess.run(["umount", state], check=True)


def test_folders_of_any_depth_and_mode_are_removed(tmp_path: Path) -> None:
    copy = use(take())
    kept = tmp_path / "kept"
    kept.write_text("of the node")
    fd = os.open(copy.outputs, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(3000):
        os.symlink(kept, "link", dir_fd=fd)
        os.mkdir("moved-0", dir_fd=fd)
        inner = os.open("moved-0", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.mkdir("closed", 0o000, dir_fd=fd)
    os.close(fd)
    copy.remove()
    assert not copy.path.exists()
    assert kept.read_text() == "of the node"


# -- who waits, and how long -----------------------------------------------------------------------


def test_copy_without_outputs_is_removed_at_the_end() -> None:
    copy = take(entry("uploads/data.csv", b"1,2"))
    copy.mark_used()
    assert not copy.finish()
    assert not copy.path.exists()


def test_lingering_ends_when_the_copy_is_fetched_or_a_signal_comes() -> None:
    copy = use(take())
    assert copy.finish()
    read, write = os.pipe()
    lingering = threading.Thread(target=copy.linger, args=(read,))
    lingering.start()
    assert lingering.is_alive()
    copy.remove()
    lingering.join(60)
    assert not lingering.is_alive()
    again = use(take())
    os.write(write, b"x")
    again.linger(read)
    assert again.path.exists()
    os.close(read)
    os.close(write)


def test_removal_that_was_killed_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the helper that waits, and by a sweep. Another process may have removed a part."""

    class Killed(BaseException):
        pass

    def stop(_: object) -> None:
        raise Killed

    read, write = os.pipe()
    for finish in (lambda copy: copy.linger(read), lambda _: sweep_copies()):
        copy = use(take(entry("uploads/sub/data.csv", b"1,2")))
        assert copy.finish()
        with monkeypatch.context() as patch:
            patch.setattr(files, "remove_at_any_depth", stop)
            with pytest.raises(Killed):
                copy.remove()
        assert (copy.outputs / "made").exists()
        orphan(copy)
        finish(copy)
        assert not copy.path.exists()
    os.close(read)
    os.close(write)


def test_two_processes_may_remove_a_copy_at_once() -> None:
    copy = use(take())
    for number in range(300):
        (copy.outputs / str(number) / "a" / "b").mkdir(parents=True)
    others = [threading.Thread(target=copy.remove) for _ in range(3)]
    for other in others:
        other.start()
    for other in others:
        other.join(60)
    assert not copy.path.exists()


def test_sweep_removes_what_nobody_needs() -> None:
    """Not what a helper that lives has, nor outputs that wait for less than a week."""
    copy = use(take())
    sweep_copies()
    assert copy.path.exists()
    orphan(copy)
    sweep_copies()
    assert copy.has(ENDED)
    sweep_copies()
    assert copy.path.exists()
    old = time.time() - files.KEPT_SECONDS - 60
    os.utime(copy.path / ENDED, (old, old))
    sweep_copies()
    assert not copy.path.exists()
    unused = orphan(take(entry("outputs/of the host", b"x")))
    sweep_copies()
    assert not unused.path.exists()


# -- the command -----------------------------------------------------------------------------------


def command(state: Path) -> list[str]:
    return [sys.executable, "-P", "-m", "gvisor_kernel.node", "--state", str(state), "fetch"]


def collect(
    argv: list[str], word: str, *, confirm: bool = True, silent: float = 60
) -> bytes | None:
    """Return the archive that the command sends; None if it has none."""
    with Fetch(argv, dict(os.environ), silent=silent) as fetch:
        if not fetch.ask(word, NAME):
            return None
        archive = b"".join(fetch.pieces())
        process = fetch._process
        if confirm:
            fetch.confirm()
        else:  # the host is gone before it has written everything
            assert process.stdin is not None
            process.stdin.close()
            process.wait(60)
        return archive


def names(archive: bytes | None) -> list[str]:
    assert archive is not None
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        return sorted(name.removeprefix("./") for name in opened.getnames())


def test_outputs_are_sent_again_and_again_until_the_last_time(state: Path) -> None:
    copy = use(take())
    (copy.outputs / "link").symlink_to("/etc/passwd")
    os.mkfifo(copy.outputs / "pipe")
    assert names(collect(command(state), "now")) == [".", "link", "made"]
    with Fetch(command(state), dict(os.environ)) as fetch:
        assert fetch.ask("now", NAME)
        assert names(b"".join(fetch.pieces())) == [".", "link", "made"]
        assert fetch.left_out == 1
    copy.mark(ENDED)
    assert names(collect(command(state), "last", confirm=False)) == [".", "link", "made"]
    assert copy.path.exists()
    assert names(collect(command(state), "last")) == [".", "link", "made"]
    assert not copy.path.exists()
    assert collect(command(state), "last") is None


def test_helper_that_has_lost_its_host_is_ended_first(state: Path) -> None:
    copy = use(take())
    with subprocess.Popen(["sleep", "600"]) as helper:
        known = identify(helper.pid)
        assert known is not None
        set_owner(copy, known)
        assert names(collect(command(state), "now")) == [".", "made"]
        assert helper.poll() is None
        assert names(collect(command(state), "last")) == [".", "made"]
        assert helper.wait(60) == -15


# -- a node that sends something else --------------------------------------------------------------


def say(tmp_path: Path, data: bytes, words: str = "") -> list[str]:
    """Return a command that sends ``data``, and ``words`` on stderr, and ends."""
    path = tmp_path / "data"
    path.write_bytes(data)
    return ["sh", "-c", f"read -r question; printf %s '{words}' >&2; cat {path}"]


HERE = write_fact(Files(found=True))
SENT = write_fact(Sent(0))


def test_words_of_a_login_script_are_skipped(tmp_path: Path) -> None:
    data = b"Welcome!\nno end " + HERE + b"".join(write_chunks([b"abc"])) + SENT
    assert collect(say(tmp_path, data), "now") == b"abc"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x" * 200_000,
        write_fact(Here("n1")),
        HERE,
        HERE + LENGTH.pack(100) + b"abc",
        HERE + LENGTH.pack(3) + b"abc",
        HERE + LENGTH.pack(3) + b"abc" + LENGTH.pack(0),
    ],
    ids=["nothing", "words", "another fact", "no piece", "half a piece", "no end", "no count"],
)
def test_archive_that_does_not_end_is_an_error(tmp_path: Path, data: bytes) -> None:
    """It is fetched again, and never taken for the whole."""
    with pytest.raises(SandboxError) as raised:
        collect(say(tmp_path, data, "srun: error: node n1 is down"), "now")
    assert "node n1 is down" in raised.value.detail


def test_silent_node_is_given_up() -> None:
    with pytest.raises(SandboxError, match="nothing came"):
        collect(["sleep", "600"], "now", silent=0.3)


def test_node_that_never_ends_is_given_up(tmp_path: Path) -> None:
    """It is never silent, and its archive has no end."""
    endless = r"while :; do printf '\0\4\0\0'; head -c 262144 /dev/zero; done"
    argv = ["sh", "-c", f"{read_and_say(tmp_path)}; {endless}"]
    with Fetch(argv, dict(os.environ), seconds=1) as fetch:
        assert fetch.ask("last", NAME)
        with pytest.raises(SandboxError, match="too long"):
            for _ in fetch.pieces():
                pass


def test_node_that_sends_byte_by_byte_is_given_up(tmp_path: Path) -> None:
    """Also where a copy may take as long as it takes: bytes in large pieces, or small pieces."""
    slow = r"printf '\0\4\0\0'; while :; do printf x; sleep 0.1; done"
    with pytest.raises(SandboxError, match=rf"only \d+ of {CHUNK} bytes came in 0.5 s"):
        collect(["sh", "-c", f"{read_and_say(tmp_path)}; {slow}"], "now", silent=0.5)
    small = r"while :; do printf '\0\0\0\1x'; done"
    with pytest.raises(ArchiveError, match="has less than"):
        collect(["sh", "-c", f"{read_and_say(tmp_path)}; {small}"], "now")


def read_and_say(tmp_path: Path) -> str:
    """Return a script that reads the question and says that there is a copy."""
    (tmp_path / "here").write_bytes(HERE)
    return f"read -r question; cat {tmp_path}/here"


def test_outputs_are_fetched_by_a_server_with_many_descriptors(tmp_path: Path) -> None:
    """``select`` takes no descriptor above 1023."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    with ExitStack() as held:
        held.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(1100):
            held.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        data = HERE + b"".join(write_chunks([b"abc"])) + SENT
        assert collect(say(tmp_path, data), "now") == b"abc"


def test_files_that_are_sent_are_read_while_they_change(tmp_path: Path) -> None:
    """What was copied in is copied back by the same code."""
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "a").write_text("one")
    with open_path(str(source)) as opened:
        contents = Contents(folders=[("uploads", opened, "uploads")])
        copy, _ = take_files(ORDER, contents.archive(1 << 20))
    assert tree(copy.files / "uploads") == {"sub": "/", "sub/a": "one"}
    assert not copy.has(USED)
