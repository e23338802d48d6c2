"""A client that subscribes to a kernel's output and reads nothing until it is told to.

python stalled.py CONNECTION-FILE: writes ``waiting`` until output has come for the first time,
then ``subscribed``; at a line on stdin it reads until the kernel is idle, and writes how many
bytes came, and how many the largest message had. A program of its own: its memory is not to be
counted with anybody's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import zmq

POLL_MS = 100


def main() -> None:
    info = json.loads(Path(sys.argv[1]).read_text())
    port, ip, transport = info["iopub_port"], info["ip"], info["transport"]
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
    socket.setsockopt(zmq.RCVHWM, 1)
    socket.setsockopt(zmq.RCVBUF, 64 * 1024)
    socket.setsockopt(zmq.SUBSCRIBE, b"")
    socket.connect(f"{transport}://{ip}{'-' if transport == 'ipc' else ':'}{port}")
    # A client that stands still from here on must have nothing of earlier cells before it.
    while not socket.poll(POLL_MS):
        print("waiting", flush=True)
    while socket.poll(POLL_MS):
        socket.recv_multipart()
    print("subscribed", flush=True)
    sys.stdin.readline()
    total = largest = 0
    while True:
        frames = socket.recv_multipart()
        size = sum(map(len, frames))
        total, largest = total + size, max(largest, size)
        if total > 10**9 and any(b'"execution_state": "idle"' in frame for frame in frames):
            break
    print(total, largest, flush=True)


if __name__ == "__main__":
    main()
