"""What PID 1 takes from a kernel's own socket, and what it refuses."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from gvisor_kernel.guest.passage import KernelSocket
from gvisor_kernel.link import Channel, Hello, IdleReply, RemoteProtocolError
from gvisor_kernel.link.frames import HEADER, MAX_PAYLOAD, FrameType, encode_frame

TAKEN = {
    (kind, channel)
    for kind in (FrameType.DATA, FrameType.CREDIT)
    for channel in (Channel.SHELL, Channel.IOPUB, Channel.STDIN, Channel.CONTROL)
}
"""Frames that are handed on to the host."""
ALL = [(kind, channel) for kind in FrameType for channel in range(max(Channel) + 2)]


@pytest.fixture
def ends() -> Iterator[tuple[KernelSocket, socket.socket]]:
    """PID 1's end, and the end of a kernel that has said hello."""
    ours, kernels = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    end = KernelSocket(ours)
    kernels.send(encode_frame(FrameType.HELLO, Hello(facts=()).encode()))
    assert end.read() == b""
    yield end, kernels
    end.close()
    kernels.close()


def frame(kind: int, channel: int, payload: bytes = b"x") -> bytes:
    return HEADER.pack(kind, channel, 0, 0, len(payload)) + payload


@pytest.mark.parametrize(("kind", "channel"), ALL, ids=lambda value: str(int(value)))
def test_only_listed_frames_are_taken(
    ends: tuple[KernelSocket, socket.socket], kind: FrameType, channel: int
) -> None:
    end, kernels = ends
    sent = frame(kind, channel)
    kernels.send(sent)
    if (kind, channel) in TAKEN:
        assert end.read() == sent
    else:
        with pytest.raises(RemoteProtocolError):
            end.read()


@pytest.mark.parametrize(
    "packet",
    [
        bytes(range(256)),
        frame(FrameType.DATA, Channel.IOPUB)[:-1],
        frame(FrameType.DATA, Channel.IOPUB) + frame(FrameType.DATA, Channel.IOPUB)[:4],
        frame(FrameType.DATA, Channel.IOPUB) + frame(FrameType.EXIT, 0),
        HEADER.pack(FrameType.DATA, Channel.IOPUB, 0, 0, 2**31) + b"x",
        HEADER.pack(FrameType.DATA, Channel.IOPUB, 0, 0, MAX_PAYLOAD + 1),
        frame(FrameType.IDLE_REPLY, 0, b"1"),
    ],
    ids=["garbage", "cut", "cut later", "an exit later", "huge", "too long", "wrong reply"],
)
def test_malformed_packet_is_refused(
    ends: tuple[KernelSocket, socket.socket], packet: bytes
) -> None:
    end, kernels = ends
    kernels.send(packet)
    with pytest.raises(RemoteProtocolError):
        end.read()


def test_answer_about_idleness_is_kept_here(ends: tuple[KernelSocket, socket.socket]) -> None:
    end, kernels = ends
    kernels.send(encode_frame(FrameType.IDLE_REPLY, IdleReply(7, True).encode()))
    assert end.read() == b""
    assert end.idle_reply == IdleReply(7, True)


def test_end_of_the_kernels_socket_is_noticed(ends: tuple[KernelSocket, socket.socket]) -> None:
    end, kernels = ends
    kernels.shutdown(socket.SHUT_RDWR)
    assert end.read() == b""
    assert end.closed
