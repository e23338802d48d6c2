"""The link: whatever a kernel says to the bridge, in its own words or in PID 1's.

A kernel may open PID 1's ends of the link, and has the socket on which it speaks frames itself. So
it can say everything; what it says is its own end at worst, with one error that tells a rule, and
the bridge's memory and its other kernels stay as they were.
"""

from __future__ import annotations

import json
import os
import re
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq

from gvisor_kernel.bridge import clients
from gvisor_kernel.bridge import kernel as bridge_kernel
from gvisor_kernel.bridge.journal import LOG_SIZE, RECORDED_KINDS
from gvisor_kernel.link import Channel

from ..jupyter.helpers import (
    SECONDS,
    WAYS,
    execute,
    next_message,
    reply_to,
    wait_for,
    wait_until,
)
from .inside import PRELUDE, Kernel, Neighbour, attacker

pytestmark = pytest.mark.usefixtures("unharmed")

MIB = 1024 * 1024
HOST_SLACK = 64 * MIB
"""So much more may the host's side hold, whatever a kernel sends, but for half messages."""

SPEAK = """
import random
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
    shout(fd, data, os.write)
    os.close(fd)

def silence():
    '''PID 1 says nothing more itself.'''
    os.kill(1, signal.SIGSTOP)

def shout(end, data, write=socket.socket.send):
    view = memoryview(data)
    while view:
        select.select([], [end], [])
        try:
            view = view[write(end, view[:65536]):]
        except BlockingIOError:
            pass

def own(name):
    '''The kernel's own object of the class called name, some method of which runs.'''
    for frame in sys._current_frames().values():
        while frame is not None:
            thing = frame.f_locals.get("self")
            if type(thing).__name__ == name:
                return thing
            frame = frame.f_back

session = get_ipython().kernel.session

def message(kind, content, ident=None):
    '''The parts of a message of this kernel, signed as its own are.'''
    made = session.msg(kind, content, parent=get_ipython().kernel.get_parent())
    return session.serialize(made, ident=ident)
"""

DIRECT = """
link = own("DirectLink")
Channel = sys.modules["gvisor_kernel.link.frames"].Channel
"""

ZMTP = """
def voices(channel):
    '''The kernel's ends of all connections to one of its sockets; PID 1 has the other of one.'''
    seen = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            which = os.readlink(f"/proc/self/fd/{name}")
            if "socket" not in which or which in seen:  # such as a descriptor made here
                continue
            end = socket.socket(fileno=os.dup(int(name)))
            seen.add(which)
            if str(end.getsockname()).endswith(f"/s-{channel}") and end.getpeername() is not None:
                yield end
        except OSError:
            pass

def shout_on(channel, data):
    for end in voices(channel):
        shout(end, data)
"""


@pytest.fixture(scope="module", autouse=True)
def kept_outputs(ground: Path) -> None:
    """A folder that no sandbox makes, or removes."""
    (ground / "notebooks" / "outputs").mkdir()


@pytest.fixture(scope="module")
def game(ground: Path) -> Iterator[Kernel]:
    with attacker(ground / "notebooks") as kernel:
        yield kernel


@pytest.fixture(scope="module")
def other_game(ground: Path) -> Iterator[Kernel]:
    with attacker(ground / "notebooks") as kernel:
        yield kernel


@pytest.fixture(scope="module")
def relayed_game(ground: Path) -> Iterator[Kernel]:
    settings = {**WAYS["relay"], "memory_limit": "256M"}
    with attacker(ground / "notebooks", settings) as kernel:
        yield kernel


@pytest.fixture
def victim(game: Kernel) -> Kernel:
    """For attacks that end its sandbox; each then has a new one."""
    return armed(game, DIRECT)


@pytest.fixture
def patient(other_game: Kernel) -> Kernel:
    """For attacks that PID 1 deals with: one sandbox for all."""
    return armed(other_game, DIRECT)


@pytest.fixture
def relayed(relayed_game: Kernel) -> Kernel:
    """A kernel that speaks ZMQ to PID 1."""
    return armed(relayed_game, ZMTP)


def armed(kernel: Kernel, code: str) -> Kernel:
    """It knows how to speak, and is another one if the attack before has ended it."""
    if not kernel.manager.is_alive():
        works_again(kernel)
    run = kernel_bridge(kernel)._run
    code = f"{PRELUDE}\n{SPEAK}\n{code}\nrun = struct.pack('>I', {run})"
    assert execute(kernel.client, code).status == "ok"
    return kernel


def works_again(kernel: Kernel) -> None:
    kernel.manager.restart_kernel(now=True)
    kernel.client.wait_for_ready(timeout=60)
    assert execute(kernel.client, "6 * 7").result == "42"


def kernel_bridge(kernel: Kernel) -> Any:
    return kernel.manager.provisioner._kernel._kernel  # type: ignore[union-attr]


class HostMemory:
    """The most memory that this process, which is the bridge's, held since it was made."""

    def __init__(self) -> None:
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

    Returns what the log has more. Nothing in either names the host, whose memory does not grow.
    """
    path = kernel.sandbox.log_path
    before = path.stat().st_size
    hidden = names_of_the_host(kernel)
    memory = HostMemory()
    msg_id = kernel.client.execute(textwrap.dedent(code) + "\ntime.sleep(100)")
    meanwhile()

    def is_error(message: Any) -> bool:
        return bool(
            message["msg_type"] == "error" and message["parent_header"].get("msg_id") == msg_id
        )

    error = wait_for(kernel.client, is_error, f"an error that says {words!r}")["content"]
    assert error["ename"] == "KernelDied", error
    assert re.search(words, error["evalue"]), (error["evalue"], path.read_text()[before:])
    idle = next_message(kernel.client, "iopub", time.monotonic() + 10, "idle")
    assert idle["content"] == {"execution_state": "idle"}
    wait_until(lambda: not kernel.manager.is_alive(), "the kernel's end")
    assert memory.grown() < HOST_SLACK
    log = path.read_bytes()[before:].decode()
    ends = [line for line in log.splitlines() if re.search(words, line)]
    assert 1 <= len(ends) <= 2, log  # that the link ended, and what the cell was told
    for name in hidden:
        assert name not in words_of(error["evalue"])
        assert name not in words_of(log)
    assert kernel.client.iopub_channel.socket.poll(0) == 0, "one error, and nothing after it"
    return log


def names_of_the_host(kernel: Kernel) -> set[str]:
    """What no kernel may come to know, nor make anybody say."""
    sentry = str(kernel.sandbox._sentry)
    keys = kernel.manager.session.key.decode(), kernel_bridge(kernel)._inner_key
    return {str(os.getpid()), sentry, str(kernel.folder), os.environ["XDG_STATE_HOME"], *keys}


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[\w/.-]+", text))


def raw_until_idle(kernel: Kernel, msg_id: str) -> list[list[bytes]]:
    """All that the client gets on iopub to the end of a cell, as it came."""
    found: list[list[bytes]] = []
    iopub = kernel.client.iopub_channel.socket
    while True:
        assert iopub.poll(SECONDS * 1000), f"Waited in vain for the end of {msg_id}."
        found.append(iopub.recv_multipart())
        header, parent, _, content = found[-1][found[-1].index(b"<IDS|MSG>") + 2 :][:4]
        if msg_id.encode() in parent and b'"status"' in header and b'"idle"' in content:
            return found


# -- in PID 1's voice -----------------------------------------------------------------------------

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
        r"came on iopub; credit was \d+\.",
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
        # Or the kernel's own end stumbles first, over credit given back for what it never counted;
        # PID 1 sees its link closed then, and kills it.
        r"came on iopub; credit was \d+\.|ended by itself, by signal SIGKILL",
    ),
}


@pytest.mark.parametrize("attack", BREAKS)
def test_what_breaks_a_rule(victim: Kernel, attack: str) -> None:
    log = ends_by(victim, *BREAKS[attack])
    if attack == "more than credit, on its own socket":
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
    log = victim.sandbox.log_path.read_text()
    assert len(re.findall(r"(?m)^\S+Z guest: .*all is well\\x1b\[2J$", log)) == 9
    assert not re.search(r"(?m)^\S+Z bridge: .*all is well", log)


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
    theirs = beside.kernel.manager.session.key.decode()
    hidden = {*names_of_the_host(victim), theirs} - {kernel_bridge(victim)._inner_key}
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


MILLION = """
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
for _ in range(100):
    say(many)
say(b"\\xff" * 8)
"""


def test_a_million_random_frames(victim: Kernel, beside: Neighbour) -> None:
    """None of which breaks a rule; the neighbour answers all the while."""
    ends_by(victim, MILLION, r"Unknown frame type 255\.", lambda: answers(beside, 20))


def answers(beside: Neighbour, times: int) -> None:
    for _ in range(times):
        beside.check()


@pytest.mark.parametrize("text", ["b'\\n' * 32760", "b'\\0' * 32760", "b''"])
def test_a_storm_of_log(victim: Kernel, beside: Neighbour, text: str) -> None:
    """What it pushes out of the log is its own, and the neighbour does not wait for it."""
    path = victim.sandbox.log_path
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
    assert sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*")) < LOG_SIZE


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
                client.subscribe(b"")
            else:
                client.identity = b"stalled"
            client.connect(f"{info['transport']}://{info['ip']}{between}{info[name + '_port']}")
            if name == "hb":
                client.send(b"beat")
                assert client.poll(SECONDS * 1000)
            elif name == "iopub":
                assert client.poll(SECONDS * 1000), "no welcome"
            else:
                heard = f"a client's message on {name} was dropped"
                client.send(b"no message")
                wait_until(lambda: heard in kernel.sandbox.log_path.read_text(), heard)  # noqa: B023
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


# -- on its own socket ----------------------------------------------------------------------------

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
    "nothing any more": ("link._socket.shutdown(2)", "has closed its end of the link"),
    "its own windows": ("link._flow._outflow[IOPUB].credit = 2**40", "its end of the link"),
}


@pytest.mark.parametrize("voice", VOICES)
def test_what_a_kernel_says_on_its_own_socket(patient: Kernel, voice: str) -> None:
    """PID 1 ends it, and the sandbox is good for another one."""
    code, words = VOICES[voice]
    identity = patient.sandbox.identity
    log = ends_by(patient, f"{code}\nprint('x' * 10**6)", "by signal SIGKILL")
    (told,) = [line for line in log.splitlines() if "and is killed" in line]
    assert words in told
    works_again(patient)
    assert patient.sandbox.identity == identity


def test_its_own_link_held_for_ever(patient: Kernel) -> None:
    """It has made itself mute: a restart helps, and nobody else waits."""
    patient.client.execute("link._lock.acquire(); link._delivery.acquire(); time.sleep(100)")
    identity = patient.sandbox.identity
    works_again(patient)
    assert patient.sandbox.identity == identity


# -- with messages of its own ---------------------------------------------------------------------


def test_messages_for_anothers_clients(victim: Kernel, beside: Neighbour) -> None:
    """By their identity and session, and as an answer to what they asked: only its own get them."""
    theirs = beside.kernel.client
    asked = theirs.session.msg("execute_request")["header"]
    code = f"""
    asked = json.loads({json.dumps(asked, default=str)!r})
    for channel in (SHELL, STDIN, CONTROL, IOPUB):
        kind = "stream" if channel == IOPUB else "execute_reply"
        made = session.msg(kind, {{"name": "stdout", "text": "forged"}}, parent=asked)
        for _ in range(9):
            link.send(Channel(channel), session.serialize(made, ident={theirs.session.bsession!r}))
    """
    msg_id = victim.client.execute(textwrap.dedent(code))
    got = raw_until_idle(victim, msg_id)
    assert len([parts for parts in got if b'"forged"' in parts[-1]]) == 9
    beside.check()
    for channel in (theirs.shell_channel, theirs.stdin_channel, theirs.control_channel):
        assert channel.socket.poll(0) == 0
    assert theirs.iopub_channel.socket.poll(0) == 0


@pytest.mark.parametrize("way", ["patient", "relayed"])
def test_replayed_and_unsigned_messages(request: pytest.FixtureRequest, way: str) -> None:
    """Of the kernel before, with another's signature, with none: each is dropped and noted."""
    kernel: Kernel = request.getfixturevalue(way)
    kept = "/mnt/user-data/outputs/parts"
    text = '{"name": "stdout", "text": "dropped"}'
    keep = f"""
    parts = message("stream", {text})
    Path("{kept}").write_text(repr([bytes(part) for part in parts]))
    """
    assert execute(kernel.client, textwrap.dedent(keep)).status == "ok"
    works_again(kernel)
    armed(kernel, "")
    before = kernel.sandbox.log_path.stat().st_size
    code = f"""
    old = eval(Path("{kept}").read_text())
    new = message("stream", {text})
    changed = [*new[:-1], new[-1].replace(b"dropped", b"droPPed")]
    signatures = [b"", b"0" * 64, old[1], new[1][:-1], new[1].upper(), new[1] + b"0"]
    for parts in [old, changed, *([new[0], one, *new[2:]] for one in signatures), new[1:], new[:5]]:
        get_ipython().kernel.iopub_socket.send_multipart(parts)
    get_ipython().kernel.iopub_socket.send_multipart(message("stream", {{"text": "signed"}}))
    """
    got = raw_until_idle(kernel, kernel.client.execute(textwrap.dedent(code)))
    assert len([parts for parts in got if b'"signed"' in parts[-1]]) == 1
    assert not [
        parts for parts in got if b"dropped" in parts[-1].lower() and b"old" not in parts[-1]
    ]
    log = kernel.sandbox.log_path.read_bytes()[before:].decode()
    assert log.count("a message has a wrong signature") == 8
    assert log.count("was dropped") == 10
    transcript = (kernel.sandbox.transcripts / "transcript.jsonl").read_text()
    entries = [json.loads(line) for line in transcript.splitlines()]
    outputs = [str(entry) for entry in entries if entry["event"] == "output"]
    assert [text for text in outputs if "signed" in text]
    assert not [text for text in outputs if "dropped" in text.lower()]


FORGE = """
def signed(kind, content):
    '''Anything at all, with this kernel's signature.'''
    header = {"msg_id": "forged", "msg_type": kind, "session": "s", "username": "bridge"}
    dicts = [json.dumps(header).encode(), b'{"msg_id": "nobody\\'s"}', b"{}", content]
    return [b"nobody", b"<IDS|MSG>", session.sign(dicts), *dicts]

text = 'x"}\\\\n{"n": 1, "event": "request", "type": "execute_request", "id": "forged"}\\\\n'
text = json.dumps({"name": "stdout", "text": text, "event": "request", "n": 0}).encode()
kinds = ["execute_request", "execute_reply", "stream", "input_request", "input_reply"]
for channel in (SHELL, IOPUB, STDIN, CONTROL):
    for kind in [*kinds, ["execute_request"], None, {}, "x" * 50000]:
        link.send(Channel(channel), signed(kind, text))
for content in (b"", b"\\xff", b"[" * 10000, b'{"a": NaN}', b'{"a": 1e999}', b"9" * 9000,
                b'"\\\\ud800"', b"{}\\n{}", bytes(16384), bytes(99999)):
    link.send(Channel.IOPUB, signed("stream", content))
"""


def test_what_a_kernel_can_make_its_transcript_say(victim: Kernel) -> None:
    """Any output and any reply, to requests that never were, too; no request, and nothing twice."""
    path = victim.sandbox.transcripts / "transcript.jsonl"
    before = len(path.read_bytes().splitlines())
    msg_id = victim.client.execute(FORGE)
    raw_until_idle(victim, msg_id)
    assert reply_to(victim.client, msg_id)["content"]["status"] == "ok"
    entries = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert [entry["n"] for entry in entries] == list(range(1, len(entries) + 1))
    new = entries[before:]
    assert [entry["id"] for entry in new if entry["event"] == "request"] == [msg_id]
    assert all(entry["type"] in RECORDED_KINDS[entry["event"]] for entry in new)
    forged = {(e["event"], e["type"]) for e in new if e["id"] == "nobody's"}
    assert forged == {("reply", "execute_reply"), ("output", "stream"), ("output", "input_request")}
    assert {entry["id"] for entry in new} == {msg_id, "nobody's"}
    assert execute(victim.client, "6 * 7").result == "42"


# -- to PID 1, by ZMQ -----------------------------------------------------------------------------

NO_ZMTP = {
    "garbage on each socket": "for c in range(1, 6): shout_on(c, bytes(range(128, 256)) * 9)",
    "a frame of no size": "shout_on(IOPUB, b'\\2' + b'\\xff' * 8)",
    "an error": "shout_on(SHELL, b'\\4\\x08\\5ERROR\\1x')",
}


@pytest.mark.parametrize("attack", NO_ZMTP)
def test_what_is_no_zmtp(relayed: Kernel, attack: str) -> None:
    identity = relayed.sandbox.identity
    log = ends_by(relayed, NO_ZMTP[attack], "by signal SIGKILL")
    assert len(re.findall(r"The kernel broke ZMQ's rules on \w+, and is killed: ", log)) >= 1
    works_again(relayed)
    assert relayed.sandbox.identity == identity


def test_a_zmtp_frame_without_end(relayed: Kernel) -> None:
    """What PID 1 holds of it is memory of the sandbox, and counted."""
    code = """
    (iopub,) = voices(IOPUB)
    shout(iopub, b"\\2" + struct.pack(">Q", 1 << 39))
    while True:
        shout(iopub, bytes(1 << 20))
    """
    ends_by(relayed, code, "its limit is 256 MiB")
    works_again(relayed)


def test_a_flood_of_zmtp(relayed: Kernel, beside: Neighbour) -> None:
    """Commands and tiny messages on each socket, one of a million parts: it is well after that."""
    code = """
    for channel in range(SHELL, HB + 1):
        shout_on(channel, b"\\4\\7\\4PING\\0\\0" * 5_000 + b"\\0\\1x" * 500)
    shout_on(IOPUB, b"\\1\\1x" * 10**6 + b"\\0\\0")
    """
    before = relayed.sandbox.log_path.stat().st_size
    memory = HostMemory()
    msg_id = relayed.client.execute(textwrap.dedent(code))
    answers(beside, 3)
    raw_until_idle(relayed, msg_id)
    content = reply_to(relayed.client, msg_id)["content"]
    assert content["status"] == "ok", content
    assert execute(relayed.client, "6 * 7").result == "42"
    assert memory.grown() < HOST_SLACK
    log = relayed.sandbox.log_path.read_bytes()[before:].decode()
    assert "A message has 1000001 parts; 1 to 4096 are allowed." in log
    dropped = re.findall(r"message on (\w+) was dropped: a message has no delimiter", log)
    assert sorted(dropped) == sorted(["shell", "iopub", "stdin", "control"] * 500)
