"""Write the seeds of both corpora: bytes as the two ends really send them, and some invalid ones.

``fuzz_link.make_end`` and ``check`` read the first byte of a seed: bit 0 is the role (1: guest);
bits 1 and 2 are the state (0 opening, 1 idle, 2 running, 3 after a run, or resuming for a host);
if bits 6 and 7 are set, a guest diverts frames. In a seed of corpus/streams only the role counts
(``make_streams_end``).
"""

from __future__ import annotations

from pathlib import Path

from fuzz_link import make_end, make_streams_end

from gvisor_kernel.link import (
    Channel,
    Connection,
    Exited,
    Hello,
    IdleQuery,
    IdleReply,
    LogSource,
    Message,
    Ping,
    Resumed,
    Signal,
    Start,
    Started,
    Stats,
    Trim,
)
from gvisor_kernel.link.frames import (
    FLAG_LAST,
    HEADER,
    FrameType,
    encode_bytes,
    encode_grant,
    encode_short,
)
from gvisor_kernel.link.state import Role
from gvisor_kernel.link.streams import STREAM_WINDOW, Finished, Opened, Streams

CORPUS = Path(__file__).parent / "corpus"
HOST, GUEST = 0, 1
OPENING, IDLE, RUNNING, AFTER = 0, 2, 4, 6
RESUMING = AFTER
DIVERTS = 0xC0


def conversation() -> tuple[bytes, bytes]:
    """Make two runs with most types of frames; return what host and guest received."""
    host = Connection(Role.HOST, Hello(facts=(("release", "1"),)))
    guest = Connection(Role.GUEST, Hello(facts=(("python", "3"),)))
    to_host = to_guest = b""

    def exchange() -> None:
        nonlocal to_host, to_guest
        while True:
            down, up = host.data_to_send(), guest.data_to_send()
            if not down and not up:
                return
            to_guest += down
            to_host += up
            guest.receive_data(down)
            host.receive_data(up)
            for end in (host, guest):
                for event in iter(end.next_event, None):
                    if isinstance(event, Message):
                        end.consumed(event)

    exchange()
    for run in (1, 2):
        argv, environment = ("python3", "{connection_file}"), (("A", "b"),)
        host.send(Start(run, argv, environment, "/workspace", "key", egress=run == 1))
        exchange()
        guest.send(Started(run))
        host.send_message(Channel.SHELL, [b"id", b"<IDS|MSG>", b"sign", b"{}", b"", b"{}", b"{}"])
        host.send_message(Channel.HB, [b"beat"])
        guest.send_message(Channel.IOPUB, [b"topic", b"x" * 40])
        guest.send_message(Channel.STDIN, [b""])
        guest.send(Stats(3, 9, 50_000_000))
        guest.send_log(LogSource.STDERR, "a line\n")
        host.send(Ping(run))
        host.send(Signal(run, 9))
        host.send(IdleQuery(run))
        host.send(Trim(run))
        if run == 1:
            guest.divert_stream(encode_short(FrameType.OPEN, 1) + encode_bytes(1, b"question"))
            exchange()
            host.passed_on(100_000)
            host.divert_stream(encode_bytes(1, b"answer") + encode_short(FrameType.FINISH, 1))
        exchange()
        guest.send(IdleReply(run, True))
        exchange()
        guest.send(Exited(run, -9))
        exchange()
    return to_host, to_guest


def resume_restored() -> tuple[bytes, bytes]:
    """Resume a restored guest and find it idle; return what host and guest received."""
    host, guest = make_end(HOST | RESUMING), make_end(GUEST | RUNNING)
    guest.data_to_send()
    to_guest = host.data_to_send()
    guest.receive_data(to_guest)
    to_host = raw_frame(FrameType.IDLE_REPLY, b"\0\0\0\1\0") + raw_frame(
        FrameType.DATA, b"\0", 2
    )  # stale
    host.receive_data(to_host)
    host.send_message(Channel.SHELL, [b"id", b"request"])
    guest.send(Resumed(1, True))
    guest.send_message(Channel.IOPUB, [b"topic"])
    up, down = guest.data_to_send(), host.data_to_send()
    host.receive_data(up)
    guest.receive_data(down)
    host.send(IdleQuery(1))
    guest.send(IdleReply(1, True))
    return to_host + up + guest.data_to_send(), to_guest + down + host.data_to_send()


def talk_on_streams() -> tuple[bytes, bytes]:
    """Use the streams that a guest of ``fuzz_link`` has; return what each end received."""
    host, guest = Streams(Role.HOST), make_streams_end(GUEST)
    to_host = to_guest = b""
    while True:
        up = guest.data_to_send()
        for event in host.receive_data(up):
            if isinstance(event, Opened):
                host.send(event.stream, b"answer")
            elif isinstance(event, Finished):
                host.finish(event.stream)
        host.consumed(2, len(up) // 2 if host.sendable(2) and len(up) > 1000 else 0)
        down = host.data_to_send()
        if not up and not down:
            break
        guest.receive_data(down)
        to_host, to_guest = to_host + up, to_guest + down
    guest.reset(1)
    host.reset(2)
    return to_host + guest.data_to_send(), to_guest + host.data_to_send()


def make_stream_seeds() -> dict[str, bytes]:
    to_host, to_guest = talk_on_streams()
    host, guest = bytes([HOST]), bytes([GUEST])
    opens = b"".join(encode_short(FrameType.OPEN, number) for number in (1, 2))
    block = encode_bytes(1, bytes(200))
    return {
        "guest-whole": guest + to_guest,
        "host-whole": host + to_host[:3000],
        "host-turns": host + opens + (block + encode_bytes(2, b"x")) * 3,
        "host-finish": host + opens + block + encode_short(FrameType.FINISH, 1) + block,
        "host-finish-twice": host + opens + encode_short(FrameType.FINISH, 2) * 2,
        "host-reset": host + opens + encode_short(FrameType.RESET, 1) + block,
        "host-many": host
        + b"".join(encode_short(FrameType.OPEN, number) for number in range(1, 258)),
        "host-grant": host + opens + encode_grant(1, 1),
        "host-zero": host + encode_grant(0, STREAM_WINDOW),
        "guest-late": guest + encode_short(FrameType.RESET, 2) + encode_grant(2, 2**32 - 1),
        "guest-high": guest + encode_bytes(4, b"x"),
        "guest-open": guest + opens,
        "guest-grants": guest + encode_grant(1, 0),
    }


def raw_frame(kind: int, payload: bytes = b"", channel: int = 0, flags: int = 0) -> bytes:
    return HEADER.pack(kind, channel, flags, 0, len(payload)) + payload


def make_seeds() -> dict[str, bytes]:
    to_host, to_guest = conversation()
    host_restored, guest_restored = resume_restored()
    parts = b"\0\2" + (3).to_bytes(4, "big") + bytes(4) + b"abc"
    halves = raw_frame(FrameType.DATA, parts[:5], 2) + raw_frame(
        FrameType.DATA, parts[5:], 2, FLAG_LAST
    )
    exit_status = b"\0\0\0\1" + (-9).to_bytes(4, "big", signed=True)
    return {
        "guest-whole": bytes([GUEST | OPENING]) + to_guest,
        "host-hello": bytes([HOST | OPENING]) + to_host[:120],
        "host-halves": bytes([HOST | RUNNING | 8]) + halves * 3,
        "host-half-then-exit": bytes([HOST | RUNNING])
        + raw_frame(FrameType.DATA, parts, 2)
        + raw_frame(FrameType.EXIT, exit_status),
        "guest-late": bytes([GUEST | AFTER | 16]) + raw_frame(FrameType.DATA, parts, 1) + halves
        + raw_frame(FrameType.SIGNAL, b"\0\0\0\1\2"),
        "host-log": bytes([HOST | IDLE]) + raw_frame(FrameType.LOG, bytes(range(256)), 2),
        "host-credit": bytes([HOST | RUNNING]) + raw_frame(FrameType.CREDIT, bytes(4), 1),
        "host-credit-over": bytes([HOST | RUNNING]) + raw_frame(FrameType.CREDIT, b"\xff" * 4, 1),
        "host-long": bytes([HOST | RUNNING]) + HEADER.pack(FrameType.DATA, 2, 0, 0, 2**31),
        "host-parts": bytes([HOST | RUNNING])
        + raw_frame(FrameType.DATA, b"\x10\0" + bytes(4 * 4096), 2, FLAG_LAST),
        "guest-restored": bytes([GUEST | RUNNING]) + guest_restored,
        "guest-diverts": bytes([GUEST | RUNNING | DIVERTS]) + guest_restored,
        "host-restored": bytes([HOST | RESUMING]) + host_restored,
        "host-idle-reply": bytes([HOST | RUNNING])
        + raw_frame(FrameType.IDLE_REPLY, b"\0\0\0\1\1") * 3,
        "host-streams": bytes([HOST | RUNNING])
        + encode_short(FrameType.OPEN, 1)
        + encode_bytes(1, b"x" * 50) * 5
        + encode_short(FrameType.RESET, 1),
        "host-stream-zero": bytes([HOST | RUNNING]) + encode_grant(0, 1),
        "guest-streams": bytes([GUEST | RUNNING])
        + encode_bytes(1, b"x")
        + encode_grant(1, 1)
        + encode_short(FrameType.RESET, 0)
        + encode_bytes(1, b"dropped"),
        "guest-late-streams": bytes([GUEST | AFTER]) + encode_bytes(1, b"x") + encode_grant(0, 9),
        "host-deep": bytes([HOST | OPENING]) + raw_frame(FrameType.HELLO, b"[" * 5000),
    }  # fmt: skip


def main() -> None:
    for target, seeds in (("link", make_seeds()), ("streams", make_stream_seeds())):
        (CORPUS / target).mkdir(parents=True, exist_ok=True)
        for name, seed in seeds.items():
            (CORPUS / target / name).write_bytes(seed)


if __name__ == "__main__":
    main()
