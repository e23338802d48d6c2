"""Asks for pages as the extension in a browser does: requests and answers in parts."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from ..egress.upstream import Fake
from ..jupyter.server import JupyterServer
from .clients import Client


@dataclass
class Parts:
    """An answer: what came before the body, the body, and why it is not whole."""

    whom: dict[str, Any] = field(default_factory=dict)
    head: dict[str, Any] = field(default_factory=dict)
    body: bytes = b""
    why: str | None = None


class Reader:
    """Reads the parts of an answer as they come."""

    def __init__(self, answer: requests.Response) -> None:
        assert answer.status_code == 200, answer.text
        self.answer = answer

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size and (more := self.answer.raw.read(size - len(data))):
            data += more
        assert len(data) == size, "the answer broke off"
        return data

    def next(self) -> bytes:
        """Return the next part; b"" at the end of the body."""
        return self._read(int.from_bytes(self._read(4), "big"))

    def rest(self) -> Parts:
        parts = Parts(whom=json.loads(self.next()))
        while part := self.next():
            if parts.head:
                parts.body += part
            else:
                parts.head = json.loads(part)
        parts.why = self.answer.raw.read().decode()
        return parts


class Fetcher:
    """Asks as the extension in a browser does, for a page in the server's folder."""

    def __init__(self, server: JupyterServer, upstream: Fake) -> None:
        self.client = Client(server)
        self.upstream = upstream
        self.api = f"https://127.0.0.1:{upstream.port}"

    def ticket(self, name: str = "page.html") -> str:
        path = self.client.server.folder / name
        path.write_text("page")
        answer = self.client.ask("GET", "outputs/content", params={"path": name})
        return answer.headers["Gvisor-Kernel-Ticket"]

    def ask(self, path: str, body: bytes = b"", **more: Any) -> requests.Response:
        url = path if not path.startswith("/") else f"{self.api}{path}"
        head = {"ticket": more.pop("ticket", None) or self.ticket(), "url": url, **more}
        return self.send(json.dumps(head).encode(), body)

    def send(self, head: bytes, body: bytes = b"") -> requests.Response:
        content = len(head).to_bytes(4, "big") + head + body
        return self.client.ask("POST", "fetch", data=content, stream=True)

    def read(self, path: str, body: bytes = b"", **more: Any) -> Parts:
        with self.ask(path, body, **more) as answer:
            return Reader(answer).rest()

    def refusal(self, path: str, **more: Any) -> tuple[int, str]:
        with self.ask(path, **more) as answer:
            return answer.status_code, answer.json()["message"]


def worker_of(server: JupyterServer) -> int | None:
    """Return the pid of the process for routes that a server has."""
    assert server.process is not None
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"gvisor_kernel.egress.worker" in words and str(server.process.pid).encode() in words:
            return int(path.parts[2])
    return None
