"""A kernel whose states are encrypted on the disk: hibernated, branched, rewound, and refused."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel import Sandbox
from gvisor_kernel.errors import SandboxError, SnapshotError
from gvisor_kernel.host import memory_folder, processes
from gvisor_kernel.host.private_directories import own_state
from gvisor_kernel.runtimes.mounts.plan import Places
from gvisor_kernel.runtimes.state.listed import find_all
from gvisor_kernel.runtimes.state.pages import pack_all
from gvisor_kernel.runtimes.state.sealed import Cipher

from ..patience import scale_seconds
from .test_hibernation import find_listed, find_saved, wait_until

SECRET = os.urandom(12).hex()
BEGIN = f"n, secret = 0, bytes.fromhex({SECRET.encode().hex()!r}).decode()"
STEP = "n += 1; n, len(secret)"
TAKE = """
import os, threading, time
blocks = []
def take():
    while not os.path.exists("/mnt/user-data/outputs/go"):
        time.sleep(0.01)
    while True:
        blocks.append(os.urandom(1 << 20) * 16)
threading.Thread(target=take, daemon=True).start()
"""

KILLED = """
import os, signal, sys
from contextlib import contextmanager
from pathlib import Path
from gvisor_kernel.runtimes.state.sealed import Cipher
from tests.api.test_encrypted import make_sandbox

opened = Cipher.opened

@contextmanager
def kill(*arguments):
    with opened(*arguments) as plain:
        print(next(plain.iterdir()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        yield plain

Cipher.opened = kill
sandbox = make_sandbox(Path(sys.argv[1]))
sandbox.run("n = 0")
sandbox.hibernate()
sandbox.run("n")
"""


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.touch(0o600)
    path.write_text(os.urandom(32).hex())
    return path


@pytest.fixture
def sandbox(tmp_path: Path, key: Path) -> Iterator[Sandbox]:
    with make_sandbox(key) as sandbox:
        yield sandbox


def make_sandbox(key: Path, memory: str = "1G", outputs: Path | None = None) -> Sandbox:
    return Sandbox(
        uploads=None,
        outputs=outputs,
        memory=memory,
        transcripts=False,
        hibernate_key=f"file:{key}",
    )


def step(sandbox: Sandbox) -> int:
    execution = sandbox.run(STEP)
    assert execution.error is None, execution.error
    number, length = (execution.text or "").strip("()").split(",")
    assert int(length) == len(SECRET)
    return int(number)


def refusal(sandbox: Sandbox) -> str:
    error = sandbox.run(STEP).error
    assert error is not None
    assert error.name == "NotResumed"
    assert find_listed(sandbox).state == "hibernated"
    assert left_in_memory() == []
    return error.value


def left_in_memory() -> list[str]:
    found = Path(memory_folder.SHARED).glob(f"{memory_folder.PREFIX}*")
    return [path.name for path in found if path.lstat().st_uid == os.geteuid()]


def find_plain(key: Path) -> list[Path]:
    """Return the files of the state directory that have the secret, or the key."""
    wanted = (SECRET.encode(), key.read_bytes(), bytes.fromhex(key.read_text()))
    found = []
    for folder, _, names in os.walk(own_state() / "sandboxes"):  # not packages, which are copied
        for path in (Path(folder, name) for name in names):
            with suppress(FileNotFoundError):  # removed meanwhile
                if path.is_file() and any(word in path.read_bytes() for word in wanted):
                    found.append(path)
    return found


def test_states_are_on_the_disk_encrypted_and_go_on(sandbox: Sandbox, key: Path) -> None:
    assert sandbox.run(BEGIN).ok
    assert step(sandbox) == 1
    sandbox.checkpoint("one")
    sandbox.hibernate()
    saved, kept = find_saved(sandbox), find_listed(sandbox).directory / "checkpoints"
    images = [path for place in (saved, kept / "one") for path in (place / "image").iterdir()]
    assert len(images) >= 2
    assert {path.suffix for path in images} == {".sealed"}
    assert {path.stat().st_mode & 0o777 for path in images} == {0o600}
    assert '"plan"' not in (saved / "kernel.json").read_text()
    assert find_plain(key) == []
    assert left_in_memory() == []
    (branch,) = sandbox.branch(name="other")  # while it sleeps, from what was saved
    with branch:
        assert find_plain(key) == []
        assert step(branch) == 2
    assert step(sandbox) == 2
    (branch,) = sandbox.branch(from_checkpoint="one")
    with branch:
        assert step(branch) == 2
    sandbox.rewind("one")
    assert step(sandbox) == 2
    assert find_plain(key) == []
    assert left_in_memory() == []
    pack_all(kept)
    assert not list(kept.glob("*/packed"))
    assert SECRET not in Places(find_listed(sandbox).directory).log.read_text()


def test_what_was_changed_is_refused_and_stays(
    sandbox: Sandbox, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sandbox.run(BEGIN).ok
    assert step(sandbox) == 1
    sandbox.checkpoint("one")
    sandbox.hibernate()
    saved, aside = find_saved(sandbox), tmp_path / "aside"
    pages = max((saved / "image").iterdir(), key=lambda path: path.stat().st_size)
    whole = pages.stat().st_size
    # The one before it, which has the same file.
    other = saved.parent / "checkpoints" / "one" / "image" / pages.name
    for what, words in (
        ("key", "the key is another one"),
        ("gone", "cannot be read"),
        ("byte", "a file was changed"),
        ("cut", "a file was changed"),
        ("other", "a file was changed"),
        ("missing", "cannot be decrypted"),
        ("room", "are free"),
    ):
        changed = pages if what in ("byte", "cut", "other", "missing") else key
        changed.rename(aside)
        with monkeypatch.context() as patch:
            if what == "key":
                key.touch(0o600)
                key.write_text(os.urandom(32).hex())
            elif what == "room":
                shutil.copy(aside, key)
                patch.setattr(memory_folder, "find_room", lambda _: 1024)
            elif what in ("byte", "cut"):
                shutil.copy(aside, pages)
                with pages.open("r+b") as file:
                    file.seek(whole // 2)
                    file.truncate() if what == "cut" else file.write(b"changed")
            elif what == "other":
                shutil.copy(other, pages)
            assert words in refusal(sandbox), what
        aside.rename(changed)
    # Without the key nothing is saved, and a kernel that is awake goes on.
    assert step(sandbox) == 2
    key.rename(aside)
    with pytest.raises(SnapshotError, match=f"The file {key} cannot be read"):
        sandbox.hibernate()
    with pytest.raises(SnapshotError, match="cannot be read"):
        sandbox.rewind("one")
    aside.rename(key)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
        with pytest.raises(SnapshotError, match=r"pip install 'gvisor-kernel\[encrypt\]'"):
            sandbox.hibernate()
    assert not saved.exists()
    assert step(sandbox) == 3


def test_a_process_that_is_killed_in_a_wake_leaves_nothing_in_memory(key: Path) -> None:
    """Its last sandbox has ended as the kernel went to sleep."""
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(key)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        plain = Path(process.stdout.readline().strip())
        assert plain.parts[:3] == Path(memory_folder.SHARED).parts
        assert process.wait(scale_seconds(60)) == -signal.SIGKILL
    wait_until(lambda: not plain.parent.exists())
    wait_until(lambda: not any(it.state == "hibernated" for it in find_all()))


def test_a_kernel_that_has_most_of_its_memory_is_saved(key: Path) -> None:
    """What is written in memory counts as its own: it would be killed above its limit."""
    with make_sandbox(key, memory="384M") as sandbox:
        assert sandbox.run(f"import os; {BEGIN}; block = os.urandom(190 << 20)").ok
        sandbox.hibernate()
        assert step(sandbox) == 1


def test_a_kernel_that_takes_the_room_of_its_image_is_ended(
    key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cgroup's limit is raised meanwhile, and an ordinary user's kernel has no cgroup."""
    with make_sandbox(key, memory="384M", outputs=tmp_path / "out") as sandbox:
        assert sandbox.run(TAKE).ok
        sentry, seal = find_listed(sandbox).record.processes["sentry"], Cipher._seal

        def wait(*arguments: Any) -> Iterator[bytes]:
            (tmp_path / "out" / "go").touch()
            wait_until(lambda: not processes.is_alive(sentry))
            return seal(*arguments)

        monkeypatch.setattr(Cipher, "_seal", wait)
        with pytest.raises(SandboxError, match="The sandbox has ended"):
            sandbox.hibernate()
        assert not find_saved(sandbox).exists()
