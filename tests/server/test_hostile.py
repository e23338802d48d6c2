"""Attacks on the extension: nobody's requests, odd ids, large and slow bodies, floods."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
import requests

from gvisor_kernel.server.extension import ROUTES

from ..jupyter.helpers import SECONDS, wait_until
from ..jupyter.server import JupyterServer
from ..sweeps import needs_all
from .clients import Client, running_server

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
LARGE = 100 * 1024 * 1024


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JupyterServer]:
    with running_server(
        tmp_path_factory.mktemp("hostile"),
    ) as server:
        yield server


@pytest.fixture(scope="module")
def kernel(server: JupyterServer) -> Iterator[str]:
    yield (kernel := str(server.ask("POST", "kernels", name="gvisor-python")["id"]))
    server.ask("DELETE", f"kernels/{kernel}")


def paths(kernel: str) -> list[str]:
    """Return the path of each route."""
    names = {"kernel_id": kernel, "name": "plotly"}
    return [
        re.sub(r"\(\?P<(\w+)>[^)]*\)", lambda group: names[group[1]], path)
        .replace("\\", "")
        .lstrip("/")
        for path, _ in ROUTES
    ]


def test_nobody_is_answered_on_any_route_by_any_method(client: Client, kernel: str) -> None:
    with requests.Session() as nobody:
        for path in paths(kernel):
            for method in METHODS:
                for headers in ({}, {"Authorization": "token x"}, {"Cookie": "_xsrf=1"}):
                    answer = nobody.request(
                        method,
                        f"{client.api}/{path}",
                        headers={**headers, "X-XSRFToken": "1"},
                        json={"kernel_name": "gvisor-python"} if method == "POST" else None,
                        timeout=SECONDS,
                        allow_redirects=False,
                    )
                    assert answer.status_code in (403, 405), (method, path, headers)
                    assert "sandbox" not in answer.text
    assert client.sandbox(kernel)["state"] != "ended"


def test_page_of_another_site_posts_nowhere(client: Client, kernel: str) -> None:
    with requests.Session() as browser:
        login = f"{client.server.url}/tree?token={client.server.token}"
        browser.get(login, timeout=SECONDS)
        assert browser.get(f"{client.api}/sandboxes", timeout=SECONDS).ok
        evil = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
        for path in paths(kernel):
            for headers in ({}, evil, {**evil, "Content-Type": "text/plain"}):
                address = f"{client.api}/{path}"
                answer = browser.post(address, data="{}", headers=headers, timeout=SECONDS)
                assert answer.status_code in (403, 404, 405), (path, headers)
    assert client.sandbox(kernel)["state"] != "ended"


@pytest.mark.parametrize(
    "odd",
    ["..", "%2e%2e", "%00", "a" * 300, "%2f", "<b>", "%0d%0aX: y", "\u0661", "a%20b", "~", "-"],
)
def test_odd_ids_are_not_found(client: Client, odd: str) -> None:
    for path in ("", "/log", "/unkept", "/changes"):
        assert client.ask("GET", f"kernels/{odd}{path}").status_code == 404
    assert client.ask("POST", f"kernels/{odd}/kill").status_code == 404


TWICE = r"""
import json
kernel = get_ipython().kernel
kernel.session.pack = lambda it: json.dumps(it, default=str).encode()
message = kernel.session.msg("stream", {"name": "stdout", "text": "half \ud800."})
parts = kernel.session.serialize(message, b"stream")
for _ in range(3):
    kernel.iopub_socket.send_multipart(parts)
"""


def test_a_kernel_that_repeats_itself_is_heard_and_saved(
    server: JupyterServer, kernel: str
) -> None:
    with server.page(kernel) as page:
        page.execute(TWICE)
        text = page.wait_for_text("half")["content"]["text"]
        page.wait_for_state("idle")
        page.execute("1 + 1")
        page.wait_for_state("busy")
        page.wait_for_state("idle")
    wait_until(
        lambda: server.ask("GET", f"kernels/{kernel}")["execution_state"] == "idle",
        "the server to hear that the kernel is idle",
    )
    output = {"output_type": "stream", "name": "stdout", "text": text}
    cell = {
        **{"cell_type": "code", "id": "a", "source": "", "metadata": {}, "execution_count": 1},
        "outputs": [output],
    }
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [cell]}
    server.ask("PUT", "contents/said.ipynb", type="notebook", format="json", content=notebook)
    assert text == "half \ufffd."


def begin(client: Client, path: str, *headers: str) -> socket.socket:
    """Send a request without its body."""
    address = urlsplit(client.api)
    connection = socket.create_connection((address.hostname, address.port), timeout=SECONDS)
    lines = [f"POST {address.path}/{path} HTTP/1.1", "Host: 127.0.0.1", *headers, "", ""]
    connection.sendall("\r\n".join(lines).encode())
    return connection


@needs_all
def test_large_body_is_refused(client: Client, kernel: str) -> None:
    """Jupyter's server reads it, up to its own limit; nobody parses it."""
    body = b"[" * LARGE
    assert client.ask("POST", "warm", data=body).status_code == 400
    assert client.ask("POST", f"kernels/{kernel}/changes/apply", data=body).status_code == 400
    assert client.ask("POST", "warm", data=body, headers={}).status_code == 403
    assert client.sandbox(kernel)["state"] != "ended"


def test_slow_body_delays_nobody(client: Client, kernel: str) -> None:
    token = f"Authorization: token {client.server.token}"
    slow = [begin(client, "warm", token, "Content-Length: 100") for _ in range(50)]
    try:
        for connection in slow:
            connection.sendall(b"{")
        assert client.ask("GET", "sandboxes").ok
    finally:
        for connection in slow:
            connection.close()
    assert client.ask("GET", "sandboxes").ok


def test_deep_and_odd_json_is_refused(client: Client, kernel: str) -> None:
    odd = ("[" * 60_000, '{"a":' * 10_000, "NaN", "1e999", '{"kernel_name": NaN}', "\xff", "", "[]")
    for body in odd:
        for path in ("warm", f"kernels/{kernel}/changes/apply", f"kernels/{kernel}/changes/undo"):
            answer = client.ask("POST", path, data=body.encode("latin-1"))
            assert answer.status_code == 400, (path, body[:20])
    many = json.dumps({"changes": [{"path": f"{n}", "state": ""} for n in range(10_001)]})
    assert client.ask("POST", f"kernels/{kernel}/changes/apply", data=many).status_code in (
        400,
        409,
    )


def test_kernel_s_lines_in_the_log_are_told_from_the_bridge_s(
    client: Client, kernel: str, server: JupyterServer
) -> None:
    forged = "2026-01-01T00:00:00.000000Z bridge: the kernel was restored from a snapshot"
    with server.page(kernel) as page:
        code = f"import os; os.write(2, b'\\r\\n{forged}\\n\\x00{forged}\\n')"
        page.wait_for_reply(page.execute(code))
        page.wait_for_reply(page.execute("1"))
    log = client.ask("GET", f"kernels/{kernel}/log").json()["lines"]
    assert any(forged in line for line in log)
    assert not any(line.startswith(forged) for line in log)


@needs_all
def test_a_thousand_requests_at_once(client: Client, kernel: str) -> None:
    one = ("sandboxes", f"kernels/{kernel}", f"kernels/{kernel}/unkept", f"kernels/{kernel}/log")
    with ThreadPoolExecutor(100) as threads:
        found = threads.map(lambda n: client.ask("GET", one[n % len(one)]).status_code, range(1000))
        assert set(found) == {200}
