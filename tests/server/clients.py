"""Asks the extension of a server over REST, and waits for its events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from ..jupyter.helpers import SECONDS
from ..jupyter.server import JupyterServer


class Client:
    """Asks the extension of one server."""

    def __init__(self, server: JupyterServer) -> None:
        self.server = server
        self.api = f"{server.url}/gvisor-kernel/api"

    def ask(self, method: str, path: str, **more: Any) -> requests.Response:
        more.setdefault("headers", {"Authorization": f"token {self.server.token}"})
        return requests.request(method, f"{self.api}/{path}", timeout=SECONDS, **more)

    def sandbox(self, kernel: str) -> dict[str, Any]:
        answer = self.ask("GET", f"kernels/{kernel}")
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found


@contextmanager
def running_server(folder: Path, *options: str, prefix: str = "") -> Iterator[JupyterServer]:
    """Start a server with the extension, which makes nothing ready, and stop it at the end."""
    server = JupyterServer(
        folder, "--GVisorServer.warm=False", *options, extensions=("gvisor_kernel.server",)
    )
    server.prefix = prefix
    try:
        server.start()
        yield server
    finally:
        server.stop()


def wait_for_event(connection: Any, name: str) -> dict[str, Any]:
    """Wait for the next event of this schema; its websocket has a timeout."""
    while True:
        event: dict[str, Any] = json.loads(connection.recv())
        if event["schema_id"] == f"urn:gvisor-kernel:event:{name}:v1":
            return event
