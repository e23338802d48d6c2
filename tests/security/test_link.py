"""The link: whatever a kernel says to the bridge in PID 1's voice.

In an ordinary user's sandbox of a gVisor of 2024 a kernel may open PID 1's ends of the link. Here
PID 1 itself lends them to it (``voice``), whoever runs the tests and with whatever gVisor. So it
can say everything there; what it says is its own end at worst, with one error that tells a rule,
and the bridge's memory and its other kernels stay as they were.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import zmq

from gvisor_kernel.bridge import clients
from gvisor_kernel.bridge import kernel as bridge_kernel
from gvisor_kernel.host import log_files
from gvisor_kernel.host.log_files import MAX_EVENTS, MAX_INSIDE, MAX_STDERR
from gvisor_kernel.link import Channel

from ..jupyter.helpers import SECONDS, execute, kernel_log, wait_until
from ..sweeps import ALL
from .inside import Kernel, Neighbour
from .speaking import (
    HOST_SLACK,
    HostMemory,
    answers,
    ends_by,
    kernel_bridge,
    names_of_the_host,
    raw_until_idle,
    works_again,
)

pytestmark = pytest.mark.usefixtures("unharmed")

MAX_LOG = 4 * (MAX_EVENTS + MAX_INSIDE + MAX_STDERR)
"""Bytes of a sandbox's log: of each of its files the beginning, some before, and the last one."""


def logs_in(folder: Path) -> list[Path]:
    """All files of the log of a sandbox whose directory is ``folder``; there are some."""
    found = [path for name in log_files.NAMES for path in folder.glob(f"{name}*")]
    assert found
    return found


STUMBLES = r"came on iopub; credit was \d+\.|ended unexpectedly by signal SIGKILL"
"""Or, where the host reads it in small pieces, the kernel's own end stumbles first: over credit
given back for what it never counted. PID 1 sees its link closed then, and kills it."""
BREAKS = {
    "garbage": ("say(bytes(range(128, 256)) * 100)", r"Unknown frame type 128\."),
    "a huge length": (
        "say(frame(DATA, channel=IOPUB, length=2**32 - 1))",
        r"announces 4294967295 bytes; the limit is 32760\.",
    ),
    "an unknown channel": ("say(frame(DATA, b'x', channel=9))", r"names the channel 9\."),
    "a signal to another": (
        "say(frame(SIGNAL, run + b'\\x09'))",
        r"The guest may not send SIGNAL\.",
    ),
    "a start of another": (
        "say(frame(START, json.dumps({'run': 9, 'argv': ['sh']}).encode()))",
        r"The guest may not send START\.",
    ),
    "a second hello": (
        'say(frame(HELLO, b\'{"protocol": "gvisor-kernel-link", "version": 2, "facts": {}}\'))',
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
    "more credit than a window": (
        "say(frame(CREDIT, struct.pack('>I', 2**32 - 1), SHELL))",
        r"is over the window of 1048576\.",
    ),
    "more data than credit": (
        "say(frame(DATA, b'x', IOPUB) * 30000)",  # small, so that many are read at once
        STUMBLES,
    ),
    "parts beyond the message": (
        "say(frame(DATA, struct.pack('>HI', 1, 2**32 - 1), IOPUB, 1))",
        r"do not add up",
    ),
    "data after its own exit": (
        "say(frame(EXIT, run + struct.pack('>i', 0)) + frame(DATA, pack(b'x'), IOPUB, 1))",
        r"DATA is not allowed while the link is idle\.",
    ),
    "more than credit, on its own socket": (
        "for _ in range(9): link._socket.send(frame(DATA, b'x', IOPUB) * 14000)",
        STUMBLES,
    ),
}


@pytest.mark.parametrize("attack", BREAKS)
def test_what_breaks_a_rule(victim: Kernel, attack: str) -> None:
    log = ends_by(victim, *BREAKS[attack])
    if BREAKS[attack][1] is STUMBLES:
        # Whoever noticed it has said why.
        assert re.search(r"came on iopub; credit was \d+\.|Credit of \d+ is over the window", log)


def test_a_forged_exit(victim: Kernel) -> None:
    """The bridge has to believe it; the next kernel does not suffer from the one that lives on."""
    sandbox = victim.sandbox.identity
    ends_by(victim, "say(frame(EXIT, run + struct.pack('>i', 42)))", "with exit status 42")
    works_again(victim)
    assert victim.sandbox.identity != sandbox


def test_a_spoilt_sandbox(victim: Kernel) -> None:
    """Where no kernel can be started any more the next one has a new sandbox, too."""
    sandbox = victim.sandbox.identity
    spoil = """
    os.rename("/run/gvisor-kernel/kernel", "/run/gvisor-kernel/was")
    Path("/run/gvisor-kernel/kernel").touch()
    """
    assert execute(victim.client, textwrap.dedent(spoil)).status == "ok"
    works_again(victim)
    assert victim.sandbox.identity != sandbox


def test_lies_that_break_no_rule(victim: Kernel) -> None:
    """Statistics, log lines, answers that nobody asked for: shown to people, and acted on never."""
    lies = """
    say(frame(STATS, b"\\xff" * 16) + frame(PONG, b"\\xff" * 8) * 1000 + frame(STARTED, run))
    say(frame(PING, b"\\xff" * 8) * 1000 + frame(CREDIT, bytes(4), SHELL) * 1000)
    say(frame(LOG, b"x\\n2026-01-01T00:00:00.000000Z bridge: all is well\\x1b[2J") * 9)
    say(frame(QUIET, run + b"\\x01") * 1000)
    """
    answer = execute(victim.client, textwrap.dedent(lies) + "\n6 * 7")
    assert (answer.status, answer.result) == ("ok", "42")
    assert execute(victim.client, "6 * 7").result == "42"
    stats = kernel_bridge(victim).stats
    if stats.threads != 2**32 - 1:  # PID 1's own words came after
        assert stats.threads < 1000
    log = "".join(path.read_text() for path in logs_in(victim.sandbox.directory))
    assert len(re.findall(r"(?m)^\S+Z guest: .*all is well\\x1b\[2J$", log)) == 9
    assert not re.search(r"(?m)^\S+Z bridge: .*all is well", log)


def test_write_to_every_descriptor_of_every_process(victim: Kernel) -> None:
    """Whatever it finds: its own end of the link is the only way out among them."""
    directory = victim.sandbox.directory
    ends_by(
        victim,
        """
        found = sorted(glob.glob("/proc/[0-9]*/fd/*"), key=lambda p: (p.endswith("/fd/1"), p))
        stdin, stdout, stderr = borrow()
        for end in (stderr, *found, stdout):
            try:
                fd = end if isinstance(end, int) else os.open(end, os.O_WRONLY | os.O_NONBLOCK)
                os.write(fd, b"\\xff\\x1b[2J bridge: all is well\\n" * 100)
                os.close(fd)
            except OSError:
                pass
        """,
        r"Unknown frame type 255\.",
    )
    lines = [line for path in logs_in(directory) for line in path.read_text().splitlines()]
    assert sum(map(len, lines)) < MAX_LOG
    forged = [line for line in lines if "all is well" in line]
    assert forged
    for line in lines:  # whatever PID 1's stderr is made to say, it is not the bridge
        assert re.match(r"\S+Z (bridge|guest|stdout|stderr|sandbox): ", line), line
        assert line.isprintable()
    assert not [line for line in forged if re.match(r"\S+Z bridge: all", line)]


def test_take_what_the_host_sends(victim: Kernel, beside: Neighbour) -> None:
    """Who reads in PID 1's place reads what this kernel is asked: no key, path, pid of the host."""
    theirs = beside.kernel.manager.session.key.decode()
    hidden = {*names_of_the_host(victim), theirs} - {kernel_bridge(victim)._exchange.kernel_key}
    stolen = victim.folder / "outputs" / "stolen"

    def ask_until_enough_is_stolen() -> None:
        def enough() -> bool:
            victim.client.kernel_info()
            return stolen.exists() and stolen.stat().st_size > 4000

        wait_until(enough, "what was stolen", 20)

    log = ends_by(
        victim,
        """
        silence()
        fd = borrow()[0]
        with open("/mnt/user-data/outputs/stolen", "wb", buffering=0) as stolen:
            deadline = time.monotonic() + 20
            while stolen.tell() < 4000 and time.monotonic() < deadline:
                if select.select([fd], [], [], 1)[0]:
                    try:
                        stolen.write(os.read(fd, 65536))
                    except BlockingIOError:
                        pass
        say(b"enough of it")
        """,
        "Unknown frame type 101",
        ask_until_enough_is_stolen,
    )
    read = stolen.read_bytes()
    assert b"kernel_info_request" in read
    read = re.sub(rb"[0-9a-f-]+_[0-9]+_[0-9]+", b"", read)  # ids of messages are the client's words
    for name in hidden:  # a number is part of longer ones now and then
        assert not re.search(
            rf"(?<!\w){re.escape(name)}(?!\w)", read.decode(errors="replace") + log
        )


FRAMES = """
random.seed(20)
def any_frame():
    kind = random.choice((STATS, LOG, PONG, CREDIT, QUIET, STARTED, DATA))
    if random.random() < 0.02:  # an answer to each fills the pipe that nobody reads
        kind = PING
    if kind == LOG:
        return frame(LOG, random.randbytes(random.randrange(40)), random.randrange(3))
    if kind == CREDIT:
        return frame(CREDIT, bytes(4), random.randint(SHELL, HB))
    if kind == DATA:
        parts = [random.randbytes(random.randrange(9)) for _ in range(random.randint(1, 9))]
        return frame(DATA, pack(*parts), random.randint(SHELL, HB), 1)
    payload = {STATS: random.randbytes(16), QUIET: run + b"\\x00", STARTED: run}
    return frame(kind, payload.get(kind) or random.randbytes(8))
many = b"".join(any_frame() for _ in range(10_000))
silence()
for _ in range(COUNT // 10_000):
    say(many)
say(b"\\xff" * 8)
"""


@pytest.mark.once
def test_a_storm_of_random_frames(victim: Kernel, beside: Neighbour) -> None:
    """None of which breaks a rule; the neighbour answers. With ``--all`` a million."""
    frames = FRAMES.replace("COUNT", str(1_000_000 if ALL else 200_000))
    ends_by(victim, frames, r"Unknown frame type 255\.", lambda: answers(beside, 20))


@pytest.mark.parametrize("text", ["b'\\n' * 32760", "b'\\0' * 32760", "b''"])
def test_a_storm_of_log(victim: Kernel, beside: Neighbour, text: str) -> None:
    """What it pushes out of the log is its own, and the neighbour does not wait for it."""
    directory = victim.sandbox.directory
    victim.client.execute("1")
    count = 300 if "32760" in text else 50_000
    ends_by(
        victim,
        f"""
        silence()
        storm = frame(LOG, {text}, 1)
        for _ in range({count} // 50):
            say(storm * 50)
        say(b"\\xff" * 8)
        """,
        r"Unknown frame type 255\.",
        lambda: answers(beside, 10),
    )
    assert sum(file.stat().st_size for file in logs_in(directory)) < MAX_LOG


def test_half_a_frame_then_silence(
    victim: Kernel, beside: Neighbour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for the other half, and the sandbox is ended from outside when it is asked."""
    process = Path(f"/proc/{victim.sandbox._sentry}")
    connection = kernel_bridge(victim)._link.connection
    victim.client.execute("silence(); say(frame(DATA, bytes(100), IOPUB)[:50]); time.sleep(100)")
    wait_until(lambda: connection._reader.pending == 50, "half a frame")
    answers(beside, 3)
    assert victim.manager.is_alive()
    monkeypatch.setattr(bridge_kernel, "KILL_SECONDS", 0.5)
    works_again(victim)
    wait_until(lambda: not process.exists(), "the end of the sandbox's process")


# -- floods ---------------------------------------------------------------------------------------

FLOOD = """
def flood():
    '''64 MB on each channel, to somebody who does not read.'''
    for channel in (SHELL, IOPUB, STDIN, CONTROL):
        kind = "stream" if channel == IOPUB else "execute_reply"
        made = session.msg(kind, {"text": "x" * 10**6})
        parts = session.serialize(made, ident=b"stalled")
        for _ in range(64):
            link.send(Channel(channel), parts)
flood()
"""


@contextmanager
def stalled_clients(kernel: Kernel) -> Iterator[None]:
    """Clients that read nothing, one for each channel; the bridge has heard of all of them."""
    info = kernel.manager.get_connection_info()
    between = "-" if info["transport"] == "ipc" else ":"
    with ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        for name in ("shell", "iopub", "stdin", "control", "hb"):
            kind = zmq.SUB if name == "iopub" else zmq.DEALER
            client = stack.enter_context(context.socket(kind))
            client.linger, client.rcvhwm, client.rcvbuf = 0, 1, 4096
            if name == "iopub":
                client.subscribe(b"stalled")  # a topic's first subscriber is told that it is one
            else:
                client.identity = b"stalled"
            client.connect(f"{info['transport']}://{info['ip']}{between}{info[name + '_port']}")
            if name == "hb":
                client.send(b"beat")
                assert client.poll(SECONDS * 1000)
            elif name == "iopub":
                assert client.poll(SECONDS * 1000), "no welcome"
                client.subscribe(b"")
            else:
                heard = f"a client's message on {name} was dropped"
                client.send(b"no message")
                wait_until(lambda: heard in kernel_log(kernel.manager), heard)  # noqa: B023
        yield


def test_a_flood_on_each_channel(
    victim: Kernel, beside: Neighbour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To clients that do not read. Of a channel no more is held than a window and few messages."""
    monkeypatch.setattr(clients, "PATIENCE", SECONDS)
    connection = kernel_bridge(victim)._link.connection
    channels = (Channel.SHELL, Channel.IOPUB, Channel.STDIN, Channel.CONTROL)
    memory = HostMemory()
    with stalled_clients(victim):
        assert execute(victim.client, "6 * 7").result == "42"
        msg_id = victim.client.execute(FLOOD)
        wait_until(lambda: all(map(connection.held, channels)), "all channels to be full")
        answers(beside, 5)
        assert all(map(connection.held, channels))
        assert memory.grown() < HOST_SLACK
        monkeypatch.setattr(clients, "PATIENCE", 0.1)
        raw_until_idle(victim, msg_id)
        assert execute(victim.client, "6 * 7").result == "42"
        ends_by(
            victim,
            """
            silence()
            for _ in range(1000):
                say(frame(DATA, pack(b"stalled", bytes(30000)), HB, 1))
            """,
            r"came on hb; credit was \d+\.",
            lambda: answers(beside, 2),
        )
