"""A client that reads everything that a kernel publishes as fast as it comes, and keeps nothing.

python drain.py CONNECTION-FILE: prints the total number of bytes after each message. A separate
program, so that reading does not use time of the measured process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import zmq


def main() -> None:
    info = json.loads(Path(sys.argv[1]).read_text())
    port, ip, transport = info["iopub_port"], info["ip"], info["transport"]
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
    socket.setsockopt(zmq.RCVHWM, 1)
    socket.setsockopt(zmq.SUBSCRIBE, b"")
    socket.connect(f"{transport}://{ip}{'-' if transport == 'ipc' else ':'}{port}")
    total = 0
    while True:
        total += sum(map(len, socket.recv_multipart(copy=False)))
        print(total, flush=True)


if __name__ == "__main__":
    main()
