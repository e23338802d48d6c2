"""Write the seeds of corpus/link: streams as the two ends really send them, and a few wrong ones.

The first byte of a seed is what ``fuzz_link.prepared`` and ``check`` make of it: bit 0 the role
(1: guest), bits 1 and 2 how far it is (0 opening, 1 idle, 2 running, 3 after a run; a host:
resuming), bits 6 and 7 both set a guest that diverts frames.
"""

from __future__ import annotations

from pathlib import Path

from fuzz_link import prepared

from gvisor_kernel.link import (
    Ask,
    Channel,
    Connection,
    Exited,
    Hello,
    LogSource,
    Message,
    Ping,
    Quiet,
    Resumed,
    Signal,
    Start,
    Started,
    Stats,
)
from gvisor_kernel.link.frames import FLAG_LAST, HEADER, FrameType
from gvisor_kernel.link.state import Role

CORPUS = Path(__file__).parent / "corpus" / "link"
HOST, GUEST = 0, 1
OPENING, IDLE, RUNNING, AFTER = 0, 2, 4, 6
RESUMING = AFTER
DIVERTS = 0xC0


def conversation() -> tuple[bytes, bytes]:
    """Two runs, a word of each kind: what the host received, and what the guest received."""
    host = Connection(Role.HOST, Hello(facts=(("release", "1"),)))
    guest = Connection(Role.GUEST, Hello(facts=(("python", "3"),)))
    to_host = to_guest = b""

    def carry() -> None:
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

    carry()
    for run in (1, 2):
        host.send(Start(run, ("python3", "{connection_file}"), (("A", "b"),), "/workspace", "key"))
        carry()
        guest.send(Started(run))
        host.send_message(Channel.SHELL, [b"id", b"<IDS|MSG>", b"sign", b"{}", b"", b"{}", b"{}"])
        host.send_message(Channel.HB, [b"beat"])
        guest.send_message(Channel.IOPUB, [b"topic", b"x" * 40])
        guest.send_message(Channel.STDIN, [b""])
        guest.send(Stats(3, 9, 50_000_000))
        guest.send_log(LogSource.STDERR, "a line\n")
        host.send(Ping(run))
        host.send(Signal(run, 9))
        host.send(Ask(run))
        carry()
        guest.send(Quiet(run, True))
        carry()
        guest.send(Exited(run, -9))
        carry()
    host.send_stop()
    carry()
    return to_host, to_guest


def restored() -> tuple[bytes, bytes]:
    """A guest in the middle of a run goes on from an image, and is idle: what each received."""
    host, guest = prepared(HOST | RESUMING), prepared(GUEST | RUNNING)
    guest.data_to_send()
    to_guest = host.data_to_send()
    guest.receive_data(to_guest)
    to_host = raw(FrameType.QUIET, b"\0\0\0\1\0") + raw(FrameType.DATA, b"\0", 2)  # stale
    host.receive_data(to_host)
    host.send_message(Channel.SHELL, [b"id", b"request"])
    guest.send(Resumed(1, True))
    guest.send_message(Channel.IOPUB, [b"topic"])
    up, down = guest.data_to_send(), host.data_to_send()
    host.receive_data(up)
    guest.receive_data(down)
    host.send(Ask(1))
    guest.send(Quiet(1, True))
    return to_host + up + guest.data_to_send(), to_guest + down + host.data_to_send()


def raw(kind: int, payload: bytes = b"", channel: int = 0, flags: int = 0) -> bytes:
    return HEADER.pack(kind, channel, flags, 0, len(payload)) + payload


def seeds() -> dict[str, bytes]:
    to_host, to_guest = conversation()
    host_restored, guest_restored = restored()
    parts = b"\0\2" + (3).to_bytes(4, "big") + bytes(4) + b"abc"
    halves = raw(FrameType.DATA, parts[:5], 2) + raw(FrameType.DATA, parts[5:], 2, FLAG_LAST)
    exit_status = b"\0\0\0\1" + (-9).to_bytes(4, "big", signed=True)
    return {
        "guest-whole": bytes([GUEST | OPENING]) + to_guest,
        "host-hello": bytes([HOST | OPENING]) + to_host[:120],
        "host-halves": bytes([HOST | RUNNING | 8]) + halves * 3,
        "host-half-then-exit": bytes([HOST | RUNNING])
        + raw(FrameType.DATA, parts, 2)
        + raw(FrameType.EXIT, exit_status),
        "guest-late": bytes([GUEST | AFTER | 16]) + raw(FrameType.DATA, parts, 1) + halves
        + raw(FrameType.SIGNAL, b"\0\0\0\1\2"),
        "guest-stop": bytes([GUEST | IDLE]) + raw(FrameType.STOP) + b"\xff" * 9,
        "host-log": bytes([HOST | IDLE]) + raw(FrameType.LOG, bytes(range(256)), 2),
        "host-credit": bytes([HOST | RUNNING]) + raw(FrameType.CREDIT, bytes(4), 1),
        "host-credit-over": bytes([HOST | RUNNING]) + raw(FrameType.CREDIT, b"\xff" * 4, 1),
        "host-long": bytes([HOST | RUNNING]) + HEADER.pack(FrameType.DATA, 2, 0, 0, 2**31),
        "host-parts": bytes([HOST | RUNNING])
        + raw(FrameType.DATA, b"\x10\0" + bytes(4 * 4096), 2, FLAG_LAST),
        "guest-restored": bytes([GUEST | RUNNING]) + guest_restored,
        "guest-diverts": bytes([GUEST | RUNNING | DIVERTS]) + guest_restored,
        "host-restored": bytes([HOST | RESUMING]) + host_restored,
        "host-quiet": bytes([HOST | RUNNING]) + raw(FrameType.QUIET, b"\0\0\0\1\1") * 3,
        "host-deep": bytes([HOST | OPENING]) + raw(FrameType.HELLO, b"[" * 5000),
    }  # fmt: skip


def main() -> None:
    CORPUS.mkdir(parents=True, exist_ok=True)
    for name, seed in seeds().items():
        (CORPUS / name).write_bytes(seed)


if __name__ == "__main__":
    main()
