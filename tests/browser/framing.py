"""The frame of pages in a browser of its own, and a server of the page that embeds it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from gvisor_kernel.artifacts.frame import CONNECTIONS, PROBE, make_frame_page

from .lab import WAIT_SECONDS

HOST = """<!doctype html><title>host</title><h1>Host</h1>
<input id="cell">
<iframe id="frame" width="800" height="600"
  sandbox="allow-scripts allow-forms" src="/frame"></iframe>
<script>
window.heard = [];
window.messages = [];
addEventListener('message', event => heard.push([event.origin, event.data]));
function show(type, source, answers, name = 'page.html', renderers = [], task = 'hold') {
  const channel = new MessageChannel();
  const port = channel.port1;
  window.tell = message => port.postMessage(message);
  port.onmessage = ({ data }) => {
    messages.push(data);
    if (data.kind === 'ready') {
      const page = { type, source, name, dark: false, renderers };
      port.postMessage({ kind: 'show', ...page });
    } else if (data.kind === 'call') {
      const known = answers[data.method];
      for (const answer of known ?? [{ error: 'not here' }]) {
        port.postMessage({ kind: 'answer', id: data.id, ...answer });
      }
    }
  };
  document.getElementById('frame').contentWindow.postMessage(task, '*', [channel.port2]);
}
</script>
"""


@dataclass
class Host:
    """A server of the page that embeds the frame, which notes all that asks it for something."""

    server: ThreadingHTTPServer
    udp: socket.socket
    paths: list[str]

    @property
    def port(self) -> int:
        return self.server.server_port


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    page = make_frame_page()
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            headers = {"Content-Type": "text/html; charset=utf-8"}
            path, _, query = self.path.partition("?")
            pages = {"/": HOST.replace("/frame", f"/frame?{query}") if query else HOST}
            body = (pages | {"/frame": page.html, "/frame/probe": PROBE}).get(path, "")
            if path == "/frame":
                headers["Content-Security-Policy"] = page.policy
                headers["Permissions-Policy"] = page.permissions
                if query != "control":
                    headers["Connection-Allowlist"] = CONNECTIONS
            self.send_response(200 if body else 404)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with (
        ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        udp.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Host(server, udp, paths)
        server.shutdown()
        thread.join()


@dataclass
class Shown:
    """A page in its frame."""

    driver: webdriver.Chrome

    def show(self, source: str, answers: dict[str, list[dict[str, Any]]] | None = None) -> None:
        self.driver.execute_script(
            "show('html', arguments[0], arguments[1])", source, answers or {}
        )

    def messages(self, kind: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.driver.execute_script("return messages")
        return [message for message in found if message["kind"] == kind]

    def heard(self) -> dict[str, str]:
        """Return what the page told its host's window."""
        heard = self.driver.execute_script("return heard")
        return dict(data for _, data in heard if isinstance(data, list))

    def enter(self) -> None:
        """Let the page have the keyboard, as JupyterLab does when the person clicks."""
        self.driver.execute_script(
            "tell({kind: 'use', allowed: true}); document.getElementById('frame').focus()"
        )

    def go_inside(self) -> None:
        """Choose the page's frame for what the driver does next."""
        self.driver.switch_to.frame(self.driver.find_element(By.ID, "frame"))
        self.driver.switch_to.frame(self.driver.find_element(By.TAG_NAME, "iframe"))

    def wait(self, condition: Callable[[], Any]) -> Any:
        return WebDriverWait(self.driver, WAIT_SECONDS, 0.1).until(
            lambda _: condition(), f"never: {self.driver.execute_script('return messages')}"
        )


def embed(host: Host, driver: webdriver.Chrome, query: str = "") -> Shown:
    """Open the page that embeds the frame, with nothing of the page before."""
    host.paths.clear()
    driver.get(f"http://127.0.0.1:{host.port}/{query}")
    return Shown(driver)


@pytest.fixture
def shown(host: Host, driver: webdriver.Chrome) -> Shown:
    return embed(host, driver)
