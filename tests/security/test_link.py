"""The link: forged frames that reach the bridge as if PID 1 had sent them.

In an ordinary user's sandbox of a gVisor of 2024 a kernel may open PID 1's ends of the link. Here
PID 1 itself passes them to the kernel (``lent_link``), for every user and gVisor. So the kernel can
send anything; at worst its own sandbox ends, with one error that states a rule. The bridge's memory
does not grow, and other kernels are not affected.
"""

from __future__ import annotations

import re
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import zmq

from gvisor_kernel.bridge import kernel as bridge_kernel
from gvisor_kernel.bridge import limits, sandbox_link
from gvisor_kernel.host import log_files
from gvisor_kernel.host.log_files import MAX_EVENTS, MAX_INSIDE, MAX_STDERR
from gvisor_kernel.link import Channel
from gvisor_kernel.link.connection import FRAME_PRICE

from ..jupyter.helpers import SECONDS, execute, kernel_log, wait_for_text, wait_until
from ..sweeps import ALL, needs_all
from .forging import (
    HOST_SLACK,
    HostMemory,
    assert_answers,
    assert_ends_with,
    assert_restart_works,
    kernel_bridge,
    names_of_the_host,
    read_raw_until_idle,
)
from .inside import Kernel, Neighbour

pytestmark = pytest.mark.usefixtures("unharmed")

MAX_LOG = 4 * (MAX_EVENTS + MAX_INSIDE + MAX_STDERR)
"""Maximum bytes of a sandbox's log: up to four pieces of each of its files."""


def logs_in(folder: Path) -> list[Path]:
    """Return all log files of a sandbox whose directory is ``folder``; there must be some."""
    found = [path for name in log_files.NAMES for path in folder.glob(f"{name}*")]
    assert found
    return found


OVER_CREDIT = r"on iopub costs \d+ bytes of credit; only|ended unexpectedly by signal SIGKILL"
"""The second case: the host reads in small pieces, and the kernel's own end fails first, because of
credit for frames that it never counted. PID 1 then sees the kernel's link closed and kills it."""
VIOLATIONS = {
    "garbage": ("forge(bytes(range(128, 256)) * 100)", r"Unknown frame type 128\."),
    "a huge length": (
        "forge(frame(DATA, channel=IOPUB, length=2**32 - 1))",
        r"announces 4294967295 bytes; the limit is 32760\.",
    ),
    "an unknown channel": ("forge(frame(DATA, b'x', channel=9))", r"has the invalid channel 9\."),
    "a SIGNAL frame": (
        "forge(frame(SIGNAL, run + b'\\x09'))",
        r"The guest may not send SIGNAL\.",
    ),
    "a START frame": (
        "forge(frame(START, json.dumps({'run': 9, 'argv': ['sh']}).encode()))",
        r"The guest may not send START\.",
    ),
    "a second hello": (
        'forge(frame(HELLO, b\'{"protocol": "gvisor-kernel-link", "version": 3, "facts": {}}\'))',
        r"HELLO is not allowed while the link is running\.",
    ),
    "a forged RESUMED": (
        "forge(frame(RESUMED, run + b'\\x00'))",
        r"RESUMED is not allowed while the link is running\.",
    ),
    "the exit of another run": (
        "forge(frame(EXIT, struct.pack('>Ii', 77, 0)))",
        r"A frame names run 77; the current run is \d+\.",
    ),
    "more credit than a window": (
        "forge(frame(CREDIT, struct.pack('>I', 2**32 - 1), SHELL))",
        r"is over the window of 1048576\.",
    ),
    "more data than credit": (
        "forge(frame(DATA, b'x', IOPUB) * 30000)",  # small frames, so that many are read at once
        OVER_CREDIT,
    ),
    "a stream in a run without egress": (
        "forge(frame(OPEN, struct.pack('>I', 1)))",
        r"An? OPEN was sent in a run without egress\.",
    ),
    "parts beyond the message": (
        "forge(frame(DATA, struct.pack('>HI', 1, 2**32 - 1), IOPUB, 1))",
        r"do not add up",
    ),
    "data after its own exit": (
        "forge(frame(EXIT, run + struct.pack('>i', 0)) + frame(DATA, pack(b'x'), IOPUB, 1))",
        r"DATA is not allowed while the link is idle\.",
    ),
    "more than credit, on its own socket": (
        "for _ in range(9): link._socket.send(frame(DATA, b'x', IOPUB) * 14000)",
        OVER_CREDIT,
    ),
}


ALWAYS = ("a START frame", "more data than credit", "more than credit, on its own socket")
"""Violations that are noticed in different places; tests/link has all rules. Other tests here end
with an unknown frame, or go on after a forged exit."""


@pytest.mark.parametrize(
    "attack",
    [name if name in ALWAYS else pytest.param(name, marks=needs_all) for name in VIOLATIONS],
)
def test_protocol_violation_ends_the_sandbox(victim: Kernel, attack: str) -> None:
    log = assert_ends_with(victim, *VIOLATIONS[attack])
    if VIOLATIONS[attack][1] is OVER_CREDIT:
        # The end that noticed it logged the reason.
        assert re.search(
            r"on iopub costs \d+ bytes of credit; only|Credit of \d+ is over the window", log
        )


def test_forged_exit_is_believed_and_next_kernel_gets_new_sandbox(victim: Kernel) -> None:
    """The bridge has to believe it; the kernel that still lives must not affect the next one.

    The exit must not overtake what PID 1 still has of the kernel: that would be a violation.
    """
    sandbox = victim.sandbox.identity
    begin = victim.folder / "outputs" / "begin"

    def let_begin() -> None:
        wait_for_text(victim.client, "the last message")
        begin.touch()

    assert_ends_with(
        victim,
        """
        print("the last message", flush=True)
        while not os.path.exists("/mnt/user-data/outputs/begin"):
            time.sleep(0.01)
        forge(frame(EXIT, run + struct.pack('>i', 42)))
        """,
        "with exit status 42",
        let_begin,
    )
    assert_restart_works(victim)
    assert victim.sandbox.identity != sandbox


def test_sandbox_that_cannot_start_kernels_is_replaced(victim: Kernel) -> None:
    """When no kernel can start in a sandbox any more, the next one gets a new sandbox."""
    sandbox = victim.sandbox.identity
    spoil = """
    os.rename("/run/gvisor-kernel/kernel", "/run/gvisor-kernel/was")
    Path("/run/gvisor-kernel/kernel").touch()
    """
    assert execute(victim.client, textwrap.dedent(spoil)).status == "ok"
    assert_restart_works(victim)
    assert victim.sandbox.identity != sandbox


def test_forged_statistics_and_logs_are_not_acted_on(victim: Kernel) -> None:
    """Statistics, log lines and unrequested answers are shown to people and never acted on."""
    lies = """
    forge(frame(STATS, b"\\xff" * 16) + frame(PONG, b"\\xff" * 8) * 1000 + frame(STARTED, run))
    forge(frame(PING, b"\\xff" * 8) * 1000 + frame(CREDIT, bytes(4), SHELL) * 1000)
    forge(frame(LOG, b"x\\n2026-01-01T00:00:00.000000Z bridge: all is well\\x1b[2J") * 9)
    forge(frame(IDLE_REPLY, run + b"\\x01") * 1000)
    """
    answer = execute(victim.client, textwrap.dedent(lies) + "\n6 * 7")
    assert (answer.status, answer.result) == ("ok", "42")
    assert execute(victim.client, "6 * 7").result == "42"
    stats = kernel_bridge(victim).stats
    if stats.threads != 2**32 - 1:  # PID 1's own statistics came later
        assert stats.threads < 1000
    log = "".join(path.read_text() for path in logs_in(victim.sandbox.directory))
    assert len(re.findall(r"(?m)^\S+Z guest: .*all is well\\x1b\[2J$", log)) == 9
    assert not re.search(r"(?m)^\S+Z bridge: .*all is well", log)


def test_writing_to_every_descriptor_reaches_only_own_link(victim: Kernel) -> None:
    """Its own end of the link is the only descriptor that leads out."""
    directory = victim.sandbox.directory
    assert_ends_with(
        victim,
        """
        found = sorted(glob.glob("/proc/[0-9]*/fd/*"), key=lambda p: (p.endswith("/fd/1"), p))
        stdin, stdout, stderr = borrow_ends()
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
    for line in lines:  # no line on PID 1's stderr can look like one of the bridge
        assert re.match(r"\S+Z (bridge|guest|stdout|stderr|sandbox): ", line), line
        assert line.isprintable()
    assert not [line for line in forged if re.match(r"\S+Z bridge: all", line)]


def test_host_frames_contain_no_host_identity(victim: Kernel, neighbour: Neighbour) -> None:
    """Frames from the host contain this kernel's requests, but no key, path or pid of the host."""
    theirs = neighbour.kernel.manager.session.key.decode()
    hidden = {*names_of_the_host(victim), theirs} - {kernel_bridge(victim)._exchange.kernel_key}
    stolen = victim.folder / "outputs" / "stolen"

    def ask_until_enough_is_stolen() -> None:
        def enough() -> bool:
            victim.client.kernel_info()
            return stolen.exists() and stolen.stat().st_size > 4000

        wait_until(enough, "what was stolen", 20)

    log = assert_ends_with(
        victim,
        """
        stop_pid_1()
        fd = borrow_ends()[0]
        with open("/mnt/user-data/outputs/stolen", "wb", buffering=0) as stolen:
            deadline = time.monotonic() + 20
            while stolen.tell() < 4000 and time.monotonic() < deadline:
                if select.select([fd], [], [], 1)[0]:
                    try:
                        stolen.write(os.read(fd, 65536))
                    except BlockingIOError:
                        pass
        forge(b"enough of it")
        """,
        "Unknown frame type 101",
        ask_until_enough_is_stolen,
    )
    read = stolen.read_bytes()
    assert b"kernel_info_request" in read
    read = re.sub(rb"[0-9a-f-]+_[0-9]+_[0-9]+", b"", read)  # the client chooses message ids
    for name in hidden:  # a short number may be part of a longer one
        assert not re.search(
            rf"(?<!\w){re.escape(name)}(?!\w)", read.decode(errors="replace") + log
        )


FRAMES = """
random.seed(20)
def any_frame():
    kind = random.choice((STATS, LOG, PONG, CREDIT, IDLE_REPLY, STARTED, DATA))
    if random.random() < 0.02:  # an answer to each fills the pipe that nobody reads
        kind = PING
    if kind == LOG:
        return frame(LOG, random.randbytes(random.randrange(40)), random.randrange(3))
    if kind == CREDIT:
        return frame(CREDIT, bytes(4), random.randint(SHELL, HB))
    if kind == DATA:
        parts = [random.randbytes(random.randrange(9)) for _ in range(random.randint(1, 9))]
        return frame(DATA, pack(*parts), random.randint(SHELL, HB), 1)
    payload = {STATS: random.randbytes(16), IDLE_REPLY: run + b"\\x00", STARTED: run}
    return frame(kind, payload.get(kind) or random.randbytes(8))
many = b"".join(any_frame() for _ in range(10_000))
stop_pid_1()
for _ in range(COUNT // 10_000):
    forge(many)
forge(b"\\xff" * 8)
"""


@pytest.mark.once
def test_random_frames_do_not_disturb_neighbour(victim: Kernel, neighbour: Neighbour) -> None:
    """No frame breaks a rule, and the neighbour answers. With ``--all`` a million frames."""
    frames = FRAMES.replace("COUNT", str(1_000_000 if ALL else 200_000))
    assert_ends_with(
        victim, frames, r"Unknown frame type 255\.", lambda: assert_answers(neighbour, 20)
    )


@pytest.mark.parametrize(
    "text",
    ["b'\\n' * 32760", *(pytest.param(t, marks=needs_all) for t in ("b'\\0' * 32760", "b''"))],
)
def test_log_flood_is_bounded(victim: Kernel, neighbour: Neighbour, text: str) -> None:
    """The flood replaces only its own lines in the log, and does not delay the neighbour."""
    directory = victim.sandbox.directory
    victim.client.execute("1")
    count = 300 if "32760" in text else 50_000
    assert_ends_with(
        victim,
        f"""
        stop_pid_1()
        storm = frame(LOG, {text}, 1)
        for _ in range({count} // 50):
            forge(storm * 50)
        forge(b"\\xff" * 8)
        """,
        r"Unknown frame type 255\.",
        lambda: assert_answers(neighbour, 10),
    )
    assert sum(file.stat().st_size for file in logs_in(directory)) < MAX_LOG


@pytest.mark.parametrize(
    "frame",
    [
        "frame(CREDIT, bytes(4), SHELL)",
        *(pytest.param(f, marks=needs_all) for f in ("frame(LOG)", "frame(PONG, bytes(8))")),
    ],
)
def test_frames_that_cost_nothing_are_read_slowly(
    victim: Kernel, neighbour: Neighbour, monkeypatch: pytest.MonkeyPatch, frame: str
) -> None:
    """However many a guest sends, the host spends little time on them."""
    # So low that also a slow machine sends more.
    rate = 64 * 1024
    monkeypatch.setattr(limits, "CONTROL_BURST", rate)
    monkeypatch.setattr(limits, "CONTROL_PER_SECOND", rate)
    monkeypatch.setattr(sandbox_link, "READ_SIZE", 4096)
    link = kernel_bridge(victim)._link
    link._read_size = 4096
    control, began = link.connection.control_received, time.monotonic()
    victim.client.execute(f"stop_pid_1()\nmany = {frame} * 4000\nwhile True: forge(many)")
    wait_until(lambda: link.connection.control_received - control > rate, "the flood")
    assert_answers(neighbour, 10)
    seconds = time.monotonic() - began
    largest_read = 4096 // 8 * (FRAME_PRICE + 8)
    assert link.connection.control_received - control < rate * (1 + seconds) + largest_read
    assert_restart_works(victim)


def test_half_a_frame_blocks_nobody(
    victim: Kernel, neighbour: Neighbour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing waits for the other half, and a restart ends the sandbox from outside."""
    process = Path(f"/proc/{victim.sandbox._sentry}")
    connection = kernel_bridge(victim)._link.connection
    victim.client.execute(
        "stop_pid_1(); forge(frame(DATA, bytes(100), IOPUB)[:50]); time.sleep(100)"
    )
    wait_until(lambda: connection._reader.pending == 50, "half a frame")
    assert_answers(neighbour, 3)
    assert victim.manager.is_alive()
    monkeypatch.setattr(bridge_kernel, "KILL_SECONDS", 0.5)
    assert_restart_works(victim)
    wait_until(lambda: not process.exists(), "the end of the sandbox's process")


# -- floods ---------------------------------------------------------------------------------------

FLOOD = """
def flood():
    '''Send 64 MB on each channel, to a client that does not read.'''
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
    """Connect a client that reads nothing to each channel, and wait until the bridge has it."""
    info = kernel.manager.get_connection_info()
    between = "-" if info["transport"] == "ipc" else ":"
    with ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        for name in ("shell", "iopub", "stdin", "control", "hb"):
            kind = zmq.SUB if name == "iopub" else zmq.DEALER
            client = stack.enter_context(context.socket(kind))
            client.linger, client.rcvhwm, client.rcvbuf = 0, 1, 4096
            if name == "iopub":
                client.subscribe(
                    b"stalled"
                )  # the first subscriber of a topic gets a welcome message
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


def test_flood_on_each_channel_is_bounded(
    victim: Kernel, neighbour: Neighbour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With clients that do not read, a window and a few messages per channel are held."""
    clients = kernel_bridge(victim)._exchange.clients
    monkeypatch.setattr(clients, "_stall_seconds", SECONDS)
    connection = kernel_bridge(victim)._link.connection
    channels = (Channel.SHELL, Channel.IOPUB, Channel.STDIN, Channel.CONTROL)
    memory = HostMemory()
    with stalled_clients(victim):
        assert execute(victim.client, "6 * 7").result == "42"
        msg_id = victim.client.execute(FLOOD)
        wait_until(lambda: all(map(connection.held, channels)), "all channels to be full")
        assert_answers(neighbour, 5)
        # A socket may take one more message meanwhile, and the channel is open until the next.
        wait_until(lambda: all(map(connection.held, channels)), "all channels to be full again")
        assert memory.grown() < HOST_SLACK
        monkeypatch.setattr(clients, "_stall_seconds", 0.1)
        read_raw_until_idle(victim, msg_id)
        assert execute(victim.client, "6 * 7").result == "42"
        assert_ends_with(
            victim,
            """
            stop_pid_1()
            for _ in range(1000):
                forge(frame(DATA, pack(b"stalled", bytes(30000)), HB, 1))
            """,
            r"on hb costs \d+ bytes of credit; only \d+ are left\.",
            lambda: assert_answers(neighbour, 2),
        )
