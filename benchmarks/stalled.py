"""A client that subscribes to a kernel's output and reads nothing until a line on stdin.

python stalled.py CONNECTION-FILE: prints ``waiting`` until the first output has come, then
``subscribed``. After a line on stdin it reads until the kernel is idle, and prints the total bytes
and the bytes of the largest message. A separate program, so that its memory is not counted.
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
    # Messages of earlier cells must be read before the client stalls.
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
