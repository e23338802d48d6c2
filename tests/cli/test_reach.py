"""Doctor's check of running servers: what a page's script could reach; hostile answers are data."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from gvisor_kernel.cli.checks import reach, servers
from gvisor_kernel.runtimes.checks import Check

SPECS = {
    "python3": {"spec": {"metadata": {}}},
    "ours": {
        "spec": {"metadata": {"kernel_provisioner": {"provisioner_name": "gvisor-provisioner"}}}
    },
}
KNOWN = "0123"


class Fake(BaseHTTPRequestHandler):
    """A Jupyter server that answers as its class says."""

    specs: Any = SPECS
    found: frozenset[str] = frozenset()
    """Paths that exist beside those that each server has."""
    origin = ""
    needs_token = True
    raw: bytes | None = None

    def do_GET(self) -> None:
        if self.raw is not None:
            self.wfile.write(self.raw)
            return
        path = self.path.removeprefix("/base/").partition("?")[0]
        has_token = self.headers.get("Authorization") == f"token {KNOWN}"
        body: Any = {"kernelspecs": self.specs} if path == "api/kernelspecs" else {}
        known = path in ("api", "api/contents", "api/kernelspecs") or path in self.found
        allowed = has_token or not self.needs_token or path == "api"
        self.send_response((200 if known else 404) if allowed else 403)
        if self.origin:
            self.send_header("Access-Control-Allow-Origin", self.origin)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *arguments: Any) -> None: ...


@contextmanager
def running(root: Path, **answers: Any) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Server", (Fake,), answers))
    Thread(target=server.serve_forever).start()
    port = server.server_port
    file = Path(os.environ["JUPYTER_RUNTIME_DIR"], f"jpserver-{port}.json")
    said = {"pid": os.getpid(), "url": f"http://127.0.0.1:{port}/base/", "token": KNOWN}
    file.write_text(json.dumps({**said, "root_dir": str(root)}))
    try:
        yield
    finally:
        file.unlink()
        server.shutdown()
        server.server_close()


def check(root: Path, **answers: Any) -> Check:
    with running(root, **answers):
        (found,) = reach.check_reach()
    return found


def test_ordinary_server_is_described_with_the_fix(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    found = check(tmp_path, found=frozenset({"api/terminals", "api/contents/.git"}))
    assert found.state == "ok"
    assert "terminals" in found.fact
    assert "kernels without a sandbox (python3)" in found.fact
    assert "hidden files" in found.fact
    assert "home" not in found.fact
    assert "gvisor-kernel lab FOLDER" in found.fix


def test_home_open_origin_and_missing_token_are_named() -> None:
    home = Path(os.environ["HOME"])
    found = check(home, origin="*", needs_token=False, specs={"ours": SPECS["ours"]})
    assert found.state == "warning"
    for text in ("home", "all sites (allow_origin)", "(no token)"):
        assert text in found.fact
    assert "without a sandbox" not in found.fact


def test_closed_server_is_said_to_be(tmp_path: Path) -> None:
    found = check(tmp_path, specs={"ours": SPECS["ours"]})
    assert (found.state, found.fix) == ("ok", "")
    assert "files of one folder" in found.fact


@pytest.mark.parametrize(
    "answers",
    [
        {"raw": b"\x1b[2Jgarbage\r\n"},
        {"raw": b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n"},
        {"raw": b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 100_000},
        {"specs": []},
        {"specs": {"a": 1}},
        {"specs": {"a": {"spec": {"metadata": []}}}},
        {"specs": "x" * 5_000_000},
    ],
    ids=["garbage", "redirect", "nested", "list", "number", "metadata", "long"],
)
def test_hostile_answer_is_data(tmp_path: Path, answers: dict[str, Any]) -> None:
    found = check(tmp_path, **answers)
    assert found.state == "ok"
    assert found.fact.isprintable()


def test_names_are_escaped_and_few(tmp_path: Path) -> None:
    found = check(tmp_path, specs={f"\x1b[2J\n{n}": SPECS["python3"] for n in range(9000)})
    assert found.fact.isprintable()
    assert len(found.fact) < 1000


def test_server_that_does_not_answer_takes_no_longer_than_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = Event()
    monkeypatch.setattr(reach, "MAX_SECONDS", 0.2)
    server = reach.Server(os.getpid(), "", "")
    monkeypatch.setattr(reach, "ask", lambda *_, **__: ended.wait())
    found = reach.check_server(server, frozenset())
    ended.set()
    assert "does not answer" in found.fact


@pytest.mark.parametrize("begin", [b"", b"HTTP/1.1 200 OK\r\n\r\n["])
def test_server_that_answers_byte_by_byte_takes_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begin: bytes
) -> None:
    """Each byte comes in time. Without a limit for all of them, this would never end."""
    monkeypatch.setattr(servers, "SECONDS", 0.3)
    gone = Event()

    def dribble(self: Fake) -> None:
        self.wfile.write(begin)
        with suppress(OSError):
            while not gone.wait(0.05):
                self.wfile.write(b" ")

    with running(tmp_path, do_GET=dribble):
        try:
            assert [servers.list_kernels(it) for it in servers.find_servers()] == [[]]
        finally:
            gone.set()


def test_no_server_is_said() -> None:
    (found,) = reach.check_reach()
    assert "no server" in found.fact
