"""The extension behind a real JupyterHub: each user reaches the own server's sandboxes alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests
from websocket import WebSocketBadStatusException, create_connection

from ..jupyter.helpers import SECONDS
from ..sweeps import needs_all
from .clients import wait_for_event
from .hub import Hub, find_missing

MISSING = find_missing()
pytestmark = [needs_all, pytest.mark.skipif(bool(MISSING), reason=MISSING or "all is there")]
GET = ("sandboxes", "openapi.json", "trust")
POST = ("warm",)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    hub = Hub(tmp_path_factory.mktemp("hub"), "alice", "bob")
    hub.start()
    try:
        yield hub
    finally:
        hub.stop()


def ask(hub: Hub, user: str, token: str, method: str, path: str, **body: Any) -> requests.Response:
    return requests.request(
        method,
        f"{hub.url}/user/{user}/{path}",
        headers={"Authorization": f"token {token}"} if token else {},
        json=body or None,
        timeout=SECONDS,
        allow_redirects=False,
    )


@pytest.mark.timeout(600)
def test_users_of_a_hub(hub: Hub) -> None:
    alice, bob = hub.make_token("alice"), hub.make_token("bob")
    address = hub.url.replace("http", "ws", 1) + "/user/alice/api/events/subscribe"
    with pytest.raises(WebSocketBadStatusException):
        create_connection(address, timeout=SECONDS, header=[f"Authorization: token {bob}"])
    header = [f"Authorization: token {alice}"]
    connection = create_connection(address, timeout=SECONDS, header=header)
    try:
        kernel = ask(hub, "alice", alice, "POST", "api/kernels", name="gvisor-python").json()["id"]
        assert wait_for_event(connection, "started")["kernel_id"] == kernel
    finally:
        connection.close()
    api = "gvisor-kernel/api"
    (sandbox,) = ask(hub, "alice", alice, "GET", f"{api}/sandboxes").json()["sandboxes"]
    assert sandbox["kernel_id"] == kernel
    assert sandbox["folder"] == str(hub.folder / "alice")
    of_kernel = [f"kernels/{kernel}", *(f"kernels/{kernel}/{x}" for x in ("log", "changes"))]
    for path in (*GET, *of_kernel):
        for token in (bob, "", "wrong"):
            answer = ask(hub, "alice", token, "GET", f"{api}/{path}")
            assert answer.status_code == 403, (path, token)
            assert kernel not in answer.text or kernel in path
    for path in (*POST, *(f"kernels/{kernel}/{x}" for x in ("stop", "kill", "changes/apply"))):
        for token in (bob, "", "wrong"):
            answer = ask(hub, "alice", token, "POST", f"{api}/{path}", undo="x")
            assert answer.status_code == 403, (path, token)
    # Bob's own server neither shows nor reaches it.
    assert ask(hub, "bob", bob, "GET", f"{api}/sandboxes").json()["sandboxes"] == []
    assert ask(hub, "bob", bob, "GET", f"{api}/kernels/{kernel}").status_code == 404
    assert ask(hub, "bob", bob, "POST", f"{api}/kernels/{kernel}/kill").status_code == 404
    with hub.log_in("alice") as browser, hub.log_in("bob") as other:
        own = f"{hub.url}/user/alice/{api}"
        assert browser.get(f"{own}/sandboxes", timeout=SECONDS).ok
        answer = other.get(f"{own}/sandboxes", timeout=SECONDS, allow_redirects=False)
        assert answer.status_code in (403, 404)
        evil = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
        for path in ("warm", f"kernels/{kernel}/stop", f"kernels/{kernel}/kill"):
            for headers in ({}, evil):
                answer = browser.post(f"{own}/{path}", headers=headers, data="{}", timeout=SECONDS)
                assert answer.status_code in (403, 404), (path, headers)
        answer = browser.get(f"{own}/sandboxes", headers=evil, timeout=SECONDS)
        assert answer.status_code == 404
    assert ask(hub, "alice", alice, "GET", f"{api}/kernels/{kernel}").json()["state"] != "ended"
    answer = ask(hub, "alice", alice, "POST", f"{api}/kernels/{kernel}/stop")
    assert answer.status_code == 204
