"""Outputs and what pages keep, over REST from a real server with a kernel."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from gvisor_kernel.artifacts.item import MAX_VALUE

from ..egress.upstream import Fake
from ..jupyter.server import JupyterServer
from .clients import Client, running_server
from .fetching import Fetcher, worker_of


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JupyterServer]:
    folder = tmp_path_factory.mktemp("artifacts")
    with running_server(
        folder,
        "--ServerApp.allow_unauthenticated_access=False",
    ) as server:
        yield server


WRITE = """
import os
from pathlib import Path
out = Path("/mnt/user-data/outputs")
(out / "sub").mkdir()
(out / "sub/<b>.html").write_text("<script>alert(1)</script>")
(out / "sub/plot.svg").write_text("<svg/>")
(out / "other.html").write_text("other")
os.symlink("/etc/passwd", out / "link")
with (out / "large.bin").open("wb") as file:
    file.truncate(3 * 1024 ** 3)
"""


@pytest.fixture(scope="module")
def kernel(server: JupyterServer) -> str:
    kernel = str(server.ask("POST", "kernels", name="gvisor-python", path="n.ipynb")["id"])
    with server.page(kernel) as page:
        assert page.wait_for_reply(page.execute(WRITE))["status"] == "ok"
    return kernel


def read(client: Client, **query: str) -> requests.Response:
    return client.ask("GET", "outputs/content", params=query)


def keep(client: Client, ticket: str, do: str, **more: Any) -> requests.Response:
    return client.ask("POST", "storage", json={"ticket": ticket, "do": do, **more})


def test_outputs_are_listed_and_read(client: Client, kernel: str, server: JupyterServer) -> None:
    found = client.ask("GET", "outputs", params={"kernel_id": kernel}).json()
    assert not found["more"]
    assert {file["path"]: file["size"] for file in found["files"]} == {
        "sub/<b>.html": 25,
        "sub/plot.svg": 6,
        "other.html": 5,
        "large.bin": 3 * 1024**3,
    }
    answer = read(client, kernel_id=kernel, path="sub/<b>.html")
    assert answer.content == b"<script>alert(1)</script>"
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Content-Security-Policy"].startswith("sandbox")
    assert answer.headers["Gvisor-Kernel-Type"] == "text/html"
    beside = read(client, ticket=answer.headers["Gvisor-Kernel-Ticket"], path="plot.svg")
    assert beside.content == b"<svg/>"
    for path in ("link", "../x", "missing", "sub", "/etc/passwd", "a\0b"):
        assert read(client, kernel_id=kernel, path=path).status_code == 404, path
    for path in ("../other.html", "../../x"):
        ticket = answer.headers["Gvisor-Kernel-Ticket"]
        assert read(client, ticket=ticket, path=path).status_code == 404, path


def test_a_ticket_that_is_named_must_be_valid(
    client: Client, kernel: str, server: JupyterServer
) -> None:
    (server.folder / "private.txt").write_text("private")
    assert read(client, path="private.txt").content == b"private"
    for ticket in ("", " ", "x.y"):
        for where in ({}, {"kernel_id": kernel}):
            answer = read(client, ticket=ticket, path="private.txt", **where)
            assert answer.status_code == 403, ticket
            listed = client.ask("GET", "outputs", params={"ticket": ticket, **where})
            assert listed.status_code == 403, ticket


def test_a_large_file_is_downloaded_and_not_shown(client: Client, kernel: str) -> None:
    answer = read(client, kernel_id=kernel, path="large.bin")
    assert answer.status_code == 413
    assert answer.json()["message"] == "This file has 3,221,225,472 bytes."
    with client.ask(
        "GET",
        "outputs/content",
        params={"kernel_id": kernel, "path": "large.bin", "download": "1"},
        stream=True,
    ) as answer:
        assert answer.headers["Content-Disposition"] == "attachment; filename*=UTF-8''large.bin"
        assert answer.raw.read(100) == bytes(100)
    name = read(client, kernel_id=kernel, path="sub/<b>.html", download="1")
    assert name.headers["Content-Disposition"] == "attachment; filename*=UTF-8''%3Cb%3E.html"


def test_a_page_keeps_data_without_its_kernel(
    client: Client, kernel: str, server: JupyterServer
) -> None:
    ticket = read(client, kernel_id=kernel, path="sub/<b>.html").headers["Gvisor-Kernel-Ticket"]
    value = {"scores": [1, 2], "name": "x"}
    assert keep(client, ticket, "set", key="k", value=value).json()["value"] == value
    assert keep(client, ticket, "set", key="k", value="all", shared=True).status_code == 200
    # The same file, opened by its place below the server's root.
    path = "outputs/sub/<b>.html"
    again = read(client, path=path).headers["Gvisor-Kernel-Ticket"]
    assert keep(client, again, "get", key="k").json() == {
        "key": "k",
        "value": value,
        "shared": False,
    }
    assert keep(client, again, "get", key="k", shared=True).json()["value"] == "all"
    assert keep(client, again, "list", prefix="k").json()["keys"] == ["k"]
    other = read(client, kernel_id=kernel, path="other.html").headers["Gvisor-Kernel-Ticket"]
    missing = keep(client, other, "get", key="k")
    assert (missing.status_code, missing.json()["message"]) == (
        409,
        "There is no key 'k' in this storage.",
    )
    assert keep(client, again, "delete", key="k").json()["deleted"] is True
    assert keep(client, again, "list").json()["keys"] == []


def test_values_at_the_limits_pass_and_beyond_them_do_not(client: Client, kernel: str) -> None:
    ticket = read(client, kernel_id=kernel, path="other.html").headers["Gvisor-Kernel-Ticket"]
    # Each character takes six bytes in the request.
    assert keep(client, ticket, "set", key="k" * 199, value="\x01" * MAX_VALUE).status_code == 200
    too_much = keep(client, ticket, "set", key="k", value="x" * (MAX_VALUE + 1))
    assert too_much.status_code == 409
    assert "5,242,880 bytes" in too_much.json()["message"]
    assert keep(client, ticket, "set", key="k" * 200, value=1).status_code == 409
    assert keep(client, ticket, "delete", key="k" * 199).json()["deleted"] is True


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (403, {"ticket": "x.y", "do": "get", "key": "k"}),
        (403, {"do": "get", "key": "k"}),
        (403, {"ticket": ["x"], "do": "get", "key": "k"}),
        (400, [1]),
        (400, "x"),
    ],
)
def test_a_call_of_no_page_is_refused(client: Client, status: int, body: Any) -> None:
    assert client.ask("POST", "storage", data=json.dumps(body)).status_code == status


def test_a_call_that_is_none_is_refused(client: Client, kernel: str) -> None:
    ticket = read(client, kernel_id=kernel, path="other.html").headers["Gvisor-Kernel-Ticket"]
    for do, shared in (("drop", False), ("", False), ("get", 1)):
        assert keep(client, ticket, do, key="k", shared=shared).status_code == 400
    wrong: tuple[dict[str, Any], ...] = ({}, {"key": 1}, {"key": "a b"})
    for more in wrong:
        assert keep(client, ticket, "get", **more).status_code == 409


def test_files_outside_the_root_are_none(
    client: Client, server: JupyterServer, tmp_path: Path
) -> None:
    (tmp_path / "outside.html").write_text("outside")
    (server.folder / "way-out").symlink_to(tmp_path)
    (server.folder / ".hidden").mkdir()
    (server.folder / ".hidden" / "a.html").write_text("hidden")
    (server.folder / ".a.html").write_text("hidden")
    (server.folder / "to-hidden").symlink_to(server.folder / ".hidden")
    relative = os.path.relpath(tmp_path / "outside.html", server.folder)
    for path in (relative, "way-out/outside.html", str(tmp_path / "outside.html"), "", "\0"):
        assert read(client, path=path).status_code == 404, path
    for path in (".hidden/a.html", ".a.html", "to-hidden/a.html"):
        assert read(client, path=path).status_code == 404, path


def test_without_a_route_a_page_costs_no_process(client: Client, server: JupyterServer) -> None:
    fetcher = Fetcher(server, Fake(1))
    status, text = fetcher.refusal("https://api.example.org/v1")
    assert (status, text.partition("\n")[0]) == (
        404,
        "Pages have no route to https://api.example.org.",
    )
    assert worker_of(server) is None


def test_strangers_see_nothing(client: Client, kernel: str) -> None:
    for method, path in (
        ("GET", f"outputs?kernel_id={kernel}"),
        ("GET", f"outputs/content?kernel_id={kernel}&path=other.html"),
        ("POST", "storage"),
        ("POST", "fetch"),
    ):
        assert client.ask(method, path, headers={}, json={}).status_code == 403
    frame = client.api.replace("/api", "/frame")
    assert requests.get(frame, timeout=60, allow_redirects=False).status_code in (302, 403)


def test_the_frame_has_its_headers(client: Client, server: JupyterServer) -> None:
    frame = client.api.replace("/api", "/frame")
    headers = {"Authorization": f"token {server.token}"}
    answer = requests.get(frame, headers=headers, timeout=60)
    assert answer.headers["Connection-Allowlist"] == "()"
    control = requests.get(frame, {"control": "1"}, headers=headers, timeout=60)
    assert "Connection-Allowlist" not in control.headers
    # What the frame must not reach: there without a cookie, which it has not.
    probe = requests.get(f"{frame}/probe", timeout=60, allow_redirects=False)
    assert (probe.status_code, "<iframe>" in probe.text) == (200, True)
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("sandbox allow-scripts allow-forms; default-src 'none'; ")
    assert policy.endswith("frame-ancestors 'self'")
    assert "picture-in-picture=()" in answer.headers["Permissions-Policy"].split(", ")
    assert "Document-Isolation-Policy" not in answer.headers
    alone = requests.get(frame, {"alone": "1"}, headers=headers, timeout=60)
    assert alone.headers["Document-Isolation-Policy"] == "isolate-and-credentialless"
    assert "unsafe-inline" not in policy.replace("style-src 'unsafe-inline'", "")
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
