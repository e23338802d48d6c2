"""Resources: what a kernel takes is its own affair up to its limits, and nobody else's beyond."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..faults.test_memory import Peak
from ..jupyter.helpers import connected, execute, wait_for, wait_until
from .inside import PRELUDE, Kernel, Neighbour, attacker

pytestmark = pytest.mark.usefixtures("unharmed")

MIB = 1024 * 1024
PIDS = 64
SETTINGS = {"pids_limit": PIDS, "memory_limit": "400M", "disk_limit": "64M"}

HOST_SLACK = 64 * MIB
"""So much more may the host's side hold, whatever a kernel sends."""
RESPONSIVE = 1.0
"""Seconds: the median answer of a neighbour on a busy machine."""

BOMBS = {
    "children that stay": """
while True:
    try:
        pid = os.fork()
    except OSError:
        break
    count += 1
    if pid == 0:
        signal.pause()
""",
    "children of children": """
def burst(depth):
    for _ in range(8):
        try:
            pid = os.fork()
        except OSError:
            return
        if pid == 0:
            if depth:
                burst(depth - 1)
            signal.pause()
burst(4)
""",
    "zombies": """
while True:
    try:
        pid = os.fork()
    except OSError:
        break
    count += 1
    if pid == 0:
        os._exit(0)
""",
    "threads": """
import _thread
try:
    while count < 5000:
        _thread.start_new_thread(signal.pause, ())
        count += 1
except RuntimeError:
    pass
""",
}
SMALL = """
import subprocess, sys
bomb = subprocess.Popen([sys.executable, "-S", "-E", "-c", %r], stdout=subprocess.PIPE,
                        start_new_session=True)
line = bomb.stdout.readline()
"""
"""Starts a bomb in a small process, as forking a whole kernel takes its time."""


COUNT = """
def tasks():
    found = 0
    for path in glob.glob("/proc/[0-9]*/task"):
        try:
            found += len(os.listdir(path))
        except OSError:
            pass  # it has ended
    return found

def bombs():
    found = []
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            found += [path] * ("-S" in Path(path).read_text().split(chr(0)))
        except OSError:
            pass
    return found
"""


@pytest.mark.parametrize("bomb", BOMBS)
def test_bomb(kernel: Kernel, beside: Neighbour, bomb: str) -> None:
    """The pids limit ends the growth; the kernel goes on, and can clear up."""
    code = f"import os, signal\ncount = 0\n{BOMBS[bomb]}\nprint(count, flush=True)\nsignal.pause()"
    try:
        kernel.run(COUNT + SMALL % code + "found = None")
        beside.check()
        # PID 1 and its child are root of the sandbox, and not counted.
        count = kernel.run("found = tasks()")
        assert count <= PIDS + 8
        assert count > PIDS / 2 or bomb == "zombies"  # which gVisor does not list
    finally:
        left = kernel.run("""
            os.killpg(bomb.pid, signal.SIGKILL)
            bomb.communicate()
            deadline = time.monotonic() + 20
            while (found := bombs()) and time.monotonic() < deadline:
                time.sleep(0.02)
        """)
    assert left == []
    assert kernel.run("found = subprocess.run(['true']).returncode") == 0


def test_orphans_are_reaped(kernel: Kernel) -> None:
    """Twice as many as there is room for, one after another: PID 1 takes each."""
    code = """
import os, time
failed = 0
for _ in range(2 * 64):
    pid = os.fork()
    if pid == 0:
        for _ in range(500):  # full for a moment, while PID 1 has others to take
            try:
                if os.fork() == 0:
                    os._exit(0)
                os._exit(0)
            except OSError:
                time.sleep(0.01)
        os._exit(1)
    failed += os.waitpid(pid, 0)[1] != 0
print(failed)
"""
    run = f"subprocess.check_output([sys.executable, '-S', '-E', '-c', {code!r}])"
    assert kernel.run(f"found = int({run})") == 0


def test_open_files(kernel: Kernel) -> None:
    """Each process has its share; one that has used it up is told, and nobody else is."""
    found = kernel.run("""
        import resource
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        found = [most]
        for path, soft in (("/dev/null", most), ("/mnt/user-data/uploads/data.csv", 10000)):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, most))
            held = []
            try:
                while len(held) < 100000:
                    held.append(os.open(path, os.O_RDONLY))
            except OSError as error:
                found += [errno.errorcode[error.errno], len(held)]
            for fd in held:
                os.close(fd)
        found.append(Path("/mnt/user-data/uploads/data.csv").read_text())
    """)
    most = found.pop(0)
    assert most <= 65536
    assert found.pop() == "1,2\n"
    for error, count in zip(found[::2], found[1::2], strict=True):
        assert error in ("EMFILE", "ENFILE")
        assert count < most


def test_cpu_hogs(kernel: Kernel, beside: Neighbour) -> None:
    kernel.run("""
        hogs = [subprocess.Popen([sys.executable, "-S", "-E", "-c", "while True: pass"])
                for _ in range(4)]
        found = None
    """)
    try:
        seconds = []
        for _ in range(8):
            begun = time.monotonic()
            beside.check()
            seconds.append(time.monotonic() - begun)
    finally:
        kernel.run("[hog.kill() or hog.wait() for hog in hogs]; found = None")
    assert statistics.median(seconds) < RESPONSIVE


# Output.


def held_by_us() -> int:
    """Bytes of anonymous memory of this process, in which the bridge runs."""
    _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    return (resident - shared) * os.sysconf("SC_PAGESIZE")


@pytest.fixture
def talker(ground: Path) -> Iterator[Kernel]:
    folder = ground.parent / "talker"
    folder.mkdir(exist_ok=True)
    with attacker(folder) as kernel:
        yield kernel


def test_prints_for_ever_to_a_closed_browser(talker: Kernel, beside: Neighbour) -> None:
    """The kernel is slowed down, nothing piles up, and whoever comes back can stop it."""
    client = talker.client
    client.execute("while True: print('x' * 100000, flush=True)")
    wait_for(client, lambda m: m["msg_type"] == "stream", "the first of the flood")
    client.stop_channels()
    before, most = held_by_us(), 0
    for _ in range(10):
        beside.check()
        most = max(most, held_by_us() - before)
    assert most < HOST_SLACK
    with connected_again(talker) as again:
        assert execute(again, "6 * 7").result == "42"


def connected_again(kernel: Kernel) -> Any:
    """A client that comes while the kernel is busy: interrupt first, then wait for it."""
    kernel.manager.interrupt_kernel()
    return connected(kernel.manager)


@pytest.mark.slow
@pytest.mark.once
def test_a_gigabyte_of_output(talker: Kernel, beside: Neighbour) -> None:
    """All of it arrives, and passes through a bounded room."""
    client = talker.client
    before, most, received, at = held_by_us(), 0, 0, 0
    msg_id = client.execute("for _ in range(256): print('x' * (1 << 22), end='', flush=True)")

    def look(message: dict[str, Any]) -> bool:
        nonlocal most, received, at
        if message["parent_header"].get("msg_id") != msg_id:
            return False
        if message["msg_type"] == "stream":
            received += len(message["content"]["text"])
            if received >> 27 > at:
                at = received >> 27
                most = max(most, held_by_us() - before)
                beside.check()
        return message["content"].get("execution_state") == "idle"

    wait_for(client, look, "the end of the flood", 150)
    assert received == 1 << 30
    assert most < HOST_SLACK + 64 * MIB  # of which the client's own is some


# Memory beyond the limit, where it is not the kernel's own: tests/faults/test_memory.py has those.

LIMIT = 300 * MIB
SLACK = 256 * MIB
HOGS = {
    "a million files": ("os.mkdir('/tmp/d')\nfor i in range(10**6): os.mkdir(f'/tmp/d/{i}')"),
    "a million links": (
        "os.mkdir('/tmp/l')\nfor i in range(10**6): os.symlink('x' * 4000, f'/tmp/l/{i}')"
    ),
    "full pipes and sockets": (
        "import resource\nheld = []\n"
        "while True:\n"
        "    for one, two in (os.pipe()[::-1], [s.detach() for s in socket.socketpair()]):\n"
        "        os.set_blocking(one, False)\n"
        "        held.append(two)\n"
        "        try:\n"
        "            while True: os.write(one, b'x' * 65536)\n"
        "        except BlockingIOError: pass"
    ),
    "a sparse file, mapped": (
        "import mmap\nf = open('/dev/shm/sparse', 'w+b')\nf.truncate(100 << 20)\n"
        "g = open('/tmp/sparse', 'w+b')\ng.truncate(1 << 30)\n"
        "for file, size in ((f, 100 << 20), (g, 1 << 30)):\n"
        "    m = mmap.mmap(file.fileno(), size)\n"
        "    for i in range(0, size, 4096): m[i] = 1"
    ),
}


@pytest.fixture(scope="module")
def doomed(ground: Path) -> Iterator[Kernel]:
    """A kernel that is killed, and started again, by each attack."""
    folder = ground.parent / "doomed"
    folder.mkdir(exist_ok=True)
    with attacker(folder, {"memory_limit": LIMIT, "disk_limit": 2048 * MIB}) as kernel:
        yield kernel


@pytest.mark.parametrize(
    "hog",
    [
        pytest.param(
            hog, marks=[pytest.mark.slow, pytest.mark.once] if hog == "a million files" else []
        )
        for hog in HOGS
    ],
)
def test_memory_of_the_sandbox_itself(doomed: Kernel, hog: str) -> None:
    """Names, links, and what stands in pipes is not in the kernel's memory, and counts as well."""
    client = doomed.client
    assert execute(client, PRELUDE).status == "ok"
    with Peak(doomed.sandbox) as peak:
        msg_id = client.execute(HOGS[hog])
        message = wait_for(
            client,
            lambda m: m["msg_type"] == "error" and m["parent_header"].get("msg_id") == msg_id,
            "the error output",
        )
        wait_until(lambda: not doomed.manager.is_alive(), "the kernel's end")
    try:
        assert "memory_limit" in message["content"]["evalue"]
        assert "300 MiB" in message["content"]["evalue"]
        assert peak.bytes < LIMIT + SLACK
    finally:
        doomed.manager.restart_kernel(now=True)
        client.wait_for_ready(timeout=60)
    assert execute(client, "6 * 7").result == "42"
