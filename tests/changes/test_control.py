"""The control socket: who may ask, and how much; and what is said at the end of a run."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from gvisor_kernel.changes import control
from gvisor_kernel.changes.change import ChangesError
from gvisor_kernel.changes.control import MAX_CLIENTS, SOCKET, ControlSocket, Done, Question
from gvisor_kernel.kernel.session import SandboxedKernel
from gvisor_kernel.kernel.workspace import UNSEEN, describe_left, list_left, read_left
from gvisor_kernel.link.service_messages import PROCESS, encode_service

from ..jupyter.helpers import wait_until
from ..patience import scale_seconds

NOBODY = 65534
SECONDS = scale_seconds(30)
MALFORMED = b'{"error":"The question is malformed."'
ASK = """
import os, socket, sys
os.chdir(sys.argv[1])
user = int(sys.argv[2])
os.setgroups([])
os.setresgid(user, user, user)
os.setresuid(user, user, user)
with socket.socket(socket.AF_UNIX) as asking:
    asking.settimeout(30)
    asking.connect(sys.argv[3])
    try:
        asking.sendall(b'{}\\n')
        print(asking.recv(100))
    except ConnectionError:
        print(b"")
"""


def listen(place: Path, resume: object = None) -> ControlSocket:
    """Let the control socket of a kernel listen in the directory of its sandbox."""
    place.mkdir(mode=0o700)
    hibernation = SimpleNamespace(saved=None, hibernate=None, resume=resume, forget=None)
    kernel = SimpleNamespace(sandbox=SimpleNamespace(directory=place), hibernation=hibernation)
    listening = ControlSocket(cast("SandboxedKernel", kernel))
    asyncio.run(listening.open())
    return listening


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """The directory of a sandbox whose control socket listens."""
    place = tmp_path / "sandbox"
    listening = listen(place)
    yield place
    asyncio.run(listening.close())


def connect(place: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(SECONDS)
    folder = os.open(place, os.O_PATH)
    try:
        made.connect(f"/proc/self/fd/{folder}/{SOCKET}")
    finally:
        os.close(folder)
    return made


def receive(asking: socket.socket) -> bytes:
    """Return the answer; b"" if the connection was closed without one."""
    received = b""
    try:
        while part := asking.recv(1 << 16):
            received += part
    except ConnectionError:
        pass
    return received


def count_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_kernels_of_one_process_have_one_socket(tmp_path: Path) -> None:
    asked = []

    def make_resume(name: str) -> Callable[[], Awaitable[None]]:
        async def resume() -> None:
            asked.append(name)

        return resume

    made = {}
    for name in ("a", "b", "c"):
        made[name] = listen(tmp_path / name, make_resume(name))
        if name == "a":
            before = count_files()
    assert count_files() == before
    for gone in ("", "a", "c"):  # the first one, whose socket the others have
        if gone:
            asyncio.run(made.pop(gone).close())
            with pytest.raises(ChangesError, match="does not answer"):
                control.ask(tmp_path / gone, Question("resume"), Done)
        for name in made:
            control.ask(tmp_path / name, Question("resume"), Done)
            assert asked.pop() == name
    (tmp_path / "b" / SOCKET).unlink()  # as when the directory is removed before
    made["d"] = listen(tmp_path / "d", make_resume("d"))
    control.ask(tmp_path / "d", Question("resume"), Done)
    for one in made.values():
        asyncio.run(one.close())
    wait_until(lambda: count_files() == before - 1, "the socket to be closed")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_user_gets_no_answer(place: Path) -> None:
    """The rights of folder and socket are taken away here: the kernel's word alone refuses."""
    place.chmod(0o711)
    (place / SOCKET).chmod(0o666)
    for user, is_answered in ((0, True), (NOBODY, False)):
        ask = [sys.executable, "-I", "-c", ASK, str(place), str(user), SOCKET]
        done = subprocess.run(ask, capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == 0, done.stderr
        assert ("malformed" in done.stdout) == is_answered, done.stdout


def test_half_open_connections_end_and_others_are_refused_meanwhile(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = [connect(place) for _ in range(MAX_CLIENTS)]
    for one in held:
        one.sendall(b"{")
    for _ in range(300):
        with connect(place) as more:
            assert receive(more) == b""
    with pytest.raises(ChangesError, match=r"no answer|does not answer"):
        control.list_changes(place)
    for one in held:
        one.sendall(b"}\n")
        assert receive(one).startswith(MALFORMED)
        one.close()
    monkeypatch.setattr(control, "QUESTION_SECONDS", 0.05)
    with connect(place) as slow:
        slow.sendall(b"{")
        assert receive(slow) == b""


def test_without_descriptors_a_question_waits(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    asking = socket.socket(socket.AF_UNIX)
    asking.settimeout(SECONDS)
    folder = os.open(place, os.O_PATH)
    with caplog.at_level(logging.ERROR, "asyncio"), asking:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
        try:
            asking.connect(f"/proc/self/fd/{folder}/{SOCKET}")
            wait_until(lambda: bool(caplog.records), "accept to fail")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            os.close(folder)
        asking.sendall(b"{}\n")
        assert receive(asking).startswith(MALFORMED)


def test_a_fault_of_this_package_is_told(place: Path) -> None:
    """Files may have been written before it."""
    with pytest.raises(ChangesError, match="by a fault of this package: AttributeError"):
        control.list_changes(place)


@pytest.mark.parametrize(
    "garbage", [b"\xff\x00\n", b'{"a":' + b"[" * 100_000 + b"\n", b"1\n", b"\n", b"[]\n"]
)
def test_garbage_is_malformed(garbage: bytes, place: Path) -> None:
    with connect(place) as asking:
        asking.sendall(garbage)
        assert receive(asking).startswith(MALFORMED)


def test_a_question_without_an_end_is_not_kept(place: Path) -> None:
    with connect(place) as asking, pytest.raises(ConnectionError):
        asking.sendall(bytes(3 * control.MAX_QUESTION))


def left(entries: list[str], *, total: object, more: bool) -> str:
    """Return what is said after a message of PID 1 that names these files."""
    named = [[name, "file", 1, None] for name in entries]
    content = {"entries": named, "total": total, "more": more, "ended": True}
    found = read_left(encode_service(PROCESS, content))
    assert found is not None
    listed = list_left(found)
    return "" if listed is None else describe_left(listed)


def test_what_was_left_is_said_as_far_as_it_was_seen() -> None:
    assert left([], total=0, more=False) == ""
    assert left([], total=0, more=True) == UNSEEN
    assert "and is not in the folder" in UNSEEN  # all that was looked at may be there
    assert "sandbox: a\ufffd?, b. " in left(["a\ufffd\x1b", "b"], total=2, more=False)
    assert " and 5 more. " in left(["a"], total=6, more=False)
    assert " and at least 5 more. " in left(["a"], total=6, more=True)
    assert " and 990 more. " in left(["a"] * 200, total=1000, more=False)
    assert left(["a"], total="1", more=False) == ""
    assert read_left(b"garbage") is None
