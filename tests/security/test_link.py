"""The link: whatever a kernel says to the bridge, in its own words or in PID 1's.

A kernel may open PID 1's ends of the link, and has the socket on which it speaks frames itself. So
it can say everything; what it says is its own end at worst, with one error that tells a rule, and
the bridge's memory and its other kernels stay as they were.
"""

from __future__ import annotations

import os
import re
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel.bridge.journal import LOG_SIZE

from ..jupyter.helpers import execute, next_message, wait_for, wait_until
from .inside import PRELUDE, Kernel, Neighbour, attacker

pytestmark = pytest.mark.usefixtures("unharmed")

MIB = 1024 * 1024
HOST_SLACK = 64 * MIB
"""So much more may the host's side hold, whatever a kernel sends, but for half messages."""

LINK = """
import gc, random, threading
HEADER = struct.Struct(">BBBBI")
(HELLO, START, STARTED, DATA, CREDIT, SIGNAL, EXIT, STATS, LOG, PING, PONG, STOP, RESUME, RESUMED,
 ASK, QUIET) = range(1, 17)
SHELL, IOPUB, STDIN, CONTROL, HB = range(1, 6)

def frame(kind, payload=b"", channel=0, flags=0, zero=0, length=None):
    length = len(payload) if length is None else length
    return HEADER.pack(kind, channel, flags, zero, length) + payload

def pack(*parts):
    lengths = b"".join(struct.pack(">I", len(part)) for part in parts)
    return struct.pack(">H", len(parts)) + lengths + b"".join(parts)

def say(data):
    '''In PID 1's voice, to the host.'''
    fd = os.open("/proc/1/fd/1", os.O_WRONLY)
    view = memoryview(data)
    while view:
        select.select([], [fd], [])
        try:
            view = view[os.write(fd, view[:65536]):]
        except BlockingIOError:
            pass
    os.close(fd)

def own(name):
    '''The kernel's own object of the class called name.'''
    return next(thing for thing in gc.get_objects() if type(thing).__name__ == name)

def message(kind, content, parent=None):
    '''The parts of a message of this kernel, signed as its own are.'''
    session = get_ipython().kernel.session
    made = session.msg(kind, content, parent=parent or get_ipython().kernel.get_parent())
    return session.serialize(made)

link = own("DirectLink")
run = struct.pack(">I", 1)
"""


@pytest.fixture(scope="module", autouse=True)
def kept_outputs(ground: Path) -> None:
    """A folder that no sandbox makes, or removes."""
    (ground / "notebooks" / "outputs").mkdir()


@pytest.fixture
def victim(ground: Path) -> Iterator[Kernel]:
    """A kernel of its own for each attack, as most attacks end it."""
    with attacker(ground / "notebooks") as kernel:
        assert execute(kernel.client, LINK).status == "ok"
        found = kernel_bridge(kernel)._run
        assert execute(kernel.client, f"run = struct.pack('>I', {found})").status == "ok"
        yield kernel


def kernel_bridge(kernel: Kernel) -> Any:
    return kernel.manager.provisioner._kernel._kernel  # type: ignore[union-attr]


class HostMemory:
    """The most memory that this process, which is the bridge's, held since ``start``."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        self._before = self._read("VmRSS")

    def grown(self) -> int:
        return self._read("VmHWM") - self._before

    @staticmethod
    def _read(name: str) -> int:
        status = Path("/proc/self/status").read_text()
        found = re.search(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)
        assert found is not None
        return int(found[1]) * 1024


def ends_by(
    kernel: Kernel, code: str, words: str, meanwhile: Callable[[], object] = lambda: None
) -> str:
    """Run ``code``; its kernel ends, with one error that says ``words``, in the cell and the log.

    Returns what the log has more. Nothing in either names the host.
    """
    path = kernel.sandbox.log_path
    before = len(path.read_text())
    msg_id = kernel.client.execute(textwrap.dedent(code) + "\ntime.sleep(100)")
    meanwhile()

    def is_error(message: Any) -> bool:
        return bool(
            message["msg_type"] == "error" and message["parent_header"].get("msg_id") == msg_id
        )

    error = wait_for(kernel.client, is_error, f"an error that says {words!r}")["content"]
    assert error["ename"] == "KernelDied", error
    idle = next_message(kernel.client, "iopub", time.monotonic() + 10, "idle")
    assert idle["content"] == {"execution_state": "idle"}
    wait_until(lambda: not kernel.manager.is_alive(), "the kernel's end")
    log = str(path.read_text()[before:])
    ends = [line for line in log.splitlines() if re.search(words, line)]
    assert re.search(words, error["evalue"]), error["evalue"]
    assert 1 <= len(ends) <= 2, log  # that the link ended, and what the cell was told
    assert not names_of_the_host(kernel) & words_of(error["evalue"])
    assert kernel.client.iopub_channel.socket.poll(0) == 0, "one error, and nothing after it"
    return log


def works_again(kernel: Kernel) -> None:
    kernel.manager.restart_kernel(now=True)
    kernel.client.wait_for_ready(timeout=60)
    assert execute(kernel.client, "6 * 7").result == "42"


def names_of_the_host(kernel: Kernel) -> set[str]:
    sandbox = kernel.manager.provisioner._kernel._sandbox  # type: ignore[union-attr]
    sentry = [str(sandbox._sentry)] if sandbox is not None else []
    return {str(os.getpid()), *sentry, str(kernel.folder), os.environ["XDG_STATE_HOME"]}


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[\w/.-]+", text))


BREAKS = {
    "garbage": ("say(bytes(range(128, 256)) * 100)", r"Unknown frame type 128\."),
    "text": ("say(b'hello, world\\n' * 1000)", r"Unknown frame type 104\."),
    "a huge length": (
        "say(frame(DATA, channel=IOPUB, length=2**32 - 1))",
        r"announces 4294967295 bytes; the limit is 32760\.",
    ),
    "an unknown channel": ("say(frame(DATA, b'x', channel=9))", r"names the channel 9\."),
    "unknown flags": ("say(frame(DATA, b'x', IOPUB, flags=0x80))", r"has unknown flags\."),
    "a frame of the host's": (
        "say(frame(SIGNAL, run + b'\\x09'))",
        r"The guest may not send SIGNAL\.",
    ),
    "a start of another kernel": (
        "say(frame(START, json.dumps({'run': 9, 'argv': ['sh']}).encode()))",
        r"The guest may not send START\.",
    ),
    "a stop": ("say(frame(STOP))", r"The guest may not send STOP\."),
    "a second hello": (
        'say(frame(HELLO, b\'{"protocol": "gvisor-kernel-link", "version": 1, "facts": {}}\'))',
        r"HELLO is not allowed while the link is running\.",
    ),
    "a restore that never was": (
        "say(frame(RESUMED, run + b'\\x00'))",
        r"RESUMED is not allowed while the link is running\.",
    ),
    "the exit of another run": (
        "say(frame(EXIT, struct.pack('>Ii', 77, 0)))",
        r"Run 77 is spoken of while run \d+ is on\.",
    ),
    "an exit status beyond all": (
        "say(frame(EXIT, run + struct.pack('>i', 70000)))",
        r"status",
    ),
    "statistics cut short": ("say(frame(STATS, b'123'))", r"STATS"),
    "an answer about another run": (
        "say(frame(QUIET, struct.pack('>IB', 77, 1)))",
        r"Run 77 is spoken of",
    ),
    "more credit than a window": (
        "say(frame(CREDIT, struct.pack('>I', 2**32 - 1), SHELL))",
        r"is over the window of 1048576\.",
    ),
    "more data than credit": (
        "say(frame(DATA, b'x', IOPUB) * 30000)",  # small, so that many are read at once
        r"came on iopub; credit was \d+\.",
    ),
    "a message without parts": (
        "say(frame(DATA, pack()[:2], IOPUB, 1))",
        r"announces 0 parts\.",
    ),
    "parts beyond the message": (
        "say(frame(DATA, struct.pack('>HI', 1, 2**32 - 1), IOPUB, 1))",
        r"do not add up",
    ),
    "an empty fragment": ("say(frame(DATA, b'', IOPUB))", r"A DATA frame is empty\."),
    "data after its own exit": (
        "say(frame(EXIT, run + struct.pack('>i', 0)) + frame(DATA, pack(b'x'), IOPUB, 1))",
        r"DATA is not allowed while the link is idle\.",
    ),
    "more than credit, on its own socket": (
        "for _ in range(9): link._socket.send(frame(DATA, b'x', IOPUB) * 14000)",
        r"came on iopub; credit was \d+\.",
    ),
}


@pytest.mark.parametrize("attack", BREAKS)
def test_what_breaks_a_rule(victim: Kernel, attack: str) -> None:
    code, words = BREAKS[attack]
    memory = HostMemory()
    ends_by(victim, code, words)
    assert memory.grown() < HOST_SLACK


def test_write_to_every_descriptor_of_every_process(victim: Kernel) -> None:
    """Whatever it finds: its own end of the link is the only way out among them."""
    path = victim.sandbox.log_path
    ends_by(
        victim,
        """
        for path in sorted(glob.glob("/proc/[0-9]*/fd/*"), key=lambda p: ("/1/fd/1" in p, p)):
            try:
                fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
                os.write(fd, b"\\xff\\x1b[2J bridge: all is well\\n" * 100)
                os.close(fd)
            except OSError:
                pass
        """,
        r"Unknown frame type 255\.",
    )
    lines = path.read_text().splitlines()
    assert sum(map(len, lines)) < LOG_SIZE
    forged = [line for line in lines if "all is well" in line]
    assert forged
    for line in lines:  # whatever PID 1's stderr is made to say, it is not the bridge
        assert re.match(r"\S+Z (bridge|guest|stdout|stderr|sandbox): ", line), line
        assert line.isprintable()
    assert not [line for line in forged if re.match(r"\S+Z bridge: all", line)]


def test_take_what_the_host_sends(victim: Kernel, beside: Neighbour) -> None:
    """Who reads in PID 1's place reads what this kernel is asked: no key, path, pid of the host."""
    keys = [victim.manager.session.key, beside.kernel.manager.session.key]
    stolen = victim.folder / "outputs" / "stolen"
    log = ends_by(
        victim,
        """
        def steal():
            os.kill(1, signal.SIGSTOP)
            fd = os.open("/proc/1/fd/0", os.O_RDONLY | os.O_NONBLOCK)
            with open("/mnt/user-data/outputs/stolen", "wb", buffering=0) as stolen:
                deadline = time.monotonic() + 20
                while stolen.tell() < 4000 and time.monotonic() < deadline:
                    if select.select([fd], [], [], 1)[0]:
                        try:
                            stolen.write(os.read(fd, 65536))
                        except BlockingIOError:
                            pass
            say(b"enough of it")
        steal()
        """,
        "Unknown frame type 101",
        lambda: wait_until(
            lambda: (
                victim.client.kernel_info() and stolen.exists() and stolen.stat().st_size > 4000
            ),
            "what was stolen",
            20,
        ),
    )
    read = stolen.read_bytes()
    assert b"kernel_info_request" in read
    read = re.sub(rb"[0-9a-f-]+_[0-9]+_[0-9]+", b"", read)  # ids of messages are the client's words
    for name in (*keys, *(name.encode() for name in names_of_the_host(victim))):
        assert name not in read
        assert name.decode() not in log


VOICES = {
    "garbage": ("link._socket.send(bytes(range(256)))", "type 0 with"),
    "half a frame": (
        "link._socket.send(frame(DATA, pack(b'x'), IOPUB, 1)[:12])",
        "part of a frame",
    ),
    "a huge length": ("link._socket.send(frame(DATA, b'x', IOPUB, length=2**31))", "may not pass"),
    "an exit": ("link._socket.send(frame(EXIT, run + bytes(4)))", "type 7 "),
    "statistics": ("link._socket.send(frame(STATS, bytes(16)))", "type 8 "),
    "a log": ("link._socket.send(frame(LOG, b'bridge: all is well', 0))", "type 9 "),
    "a heartbeat": ("link._socket.send(frame(DATA, pack(b'x'), HB, 1))", "on channel 5 "),
    "a second hello": ("link._socket.send(frame(HELLO, b'{}'))", "type 1 "),
    "a restore that never was": ("link._socket.send(frame(RESUMED, run + b'\\1'))", "type 14 "),
    "an answer that is none": ("link._socket.send(frame(QUIET, b'1'))", "QUIET"),
}


@pytest.fixture(scope="module")
def patient(ground: Path) -> Iterator[Kernel]:
    """One sandbox for all attacks that its PID 1 deals with; each has a kernel of its own."""
    with attacker(ground / "notebooks") as kernel:
        yield kernel


@pytest.mark.parametrize("voice", VOICES)
def test_what_a_kernel_says_on_its_own_socket(patient: Kernel, voice: str) -> None:
    """PID 1 ends it, and the sandbox is good for another one."""
    code, words = VOICES[voice]
    assert execute(patient.client, PRELUDE + LINK).status == "ok"
    identity = patient.sandbox.identity
    log = ends_by(patient, code, "by signal SIGKILL")
    (told,) = [line for line in log.splitlines() if "broke the rules of its link" in line]
    assert words in told
    works_again(patient)
    assert patient.sandbox.identity == identity
