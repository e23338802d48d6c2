"""A server at the address of a Docker engine that answers what a test says."""

from __future__ import annotations

import contextlib
import json
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

HEALTHY: dict[str, Any] = {
    "/version": {"ApiVersion": "1.45", "MinAPIVersion": "1.24"},
    "/info": {
        "OSType": "linux",
        "MemoryLimit": True,
        "PidsLimit": True,
        "Runtimes": {"runc": {"path": "runc"}, "runsc": {"path": "/usr/bin/runsc"}},
    },
}


class Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def __init__(self, path: Path, answers: dict[str, Any]) -> None:
        super().__init__(str(path), Handler)
        self.answers = answers
        self.gone = threading.Event()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def address_string(self) -> str:
        return "engine"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        found = [v for k, v in self.server.answers.items() if self.path.split("?")[0].endswith(k)]
        if not found:
            self._send(404, {"message": "No such thing"})
        elif found[0] is None:  # the engine hangs
            self.server.gone.wait()
        else:
            self._send(200, found[0])

    do_HEAD = do_POST = do_GET

    def _send(self, status: int, content: Any) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def fake_engine(path: Path, **answers: Any) -> Iterator[str]:
    """Run the server and yield its address. ``answers`` replace healthy ones; None: it hangs."""
    server = Server(path, {**HEALTHY, **{f"/{name}": value for name, value in answers.items()}})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"unix://{path}"
    finally:
        server.gone.set()
        server.shutdown()
        server.server_close()
        thread.join()
