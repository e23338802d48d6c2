"""The extension in a real Jupyter server: who may ask, what is answered, events and metrics."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from websocket import create_connection

from ..jupyter.helpers import SECONDS, wait_until
from ..jupyter.server import JupyterServer
from ..world import World
from .clients import Client, running_server, wait_for_event

BASE = "/user/me/"
FOLDER = "<b>&amp; 'x'"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JupyterServer]:
    """Below a base URL, as JupyterHub's servers are."""
    folder = tmp_path_factory.mktemp("server")
    (folder / FOLDER).mkdir()
    with running_server(
        folder,
        f"--ServerApp.base_url={BASE}",
        "--ServerApp.allow_unauthenticated_access=False",
        "--GVisorEgress.routes={'web': {'hosts': ['allowed.example:443']}}",
        "--KernelRestarter.time_to_dead=0.3",
        "--KernelRestarter.random_ports_until_alive=False",
        prefix=BASE.rstrip("/"),
    ) as server:
        yield server


@pytest.fixture(scope="module")
def kernel(server: JupyterServer) -> Iterator[str]:
    yield (kernel := start(server))
    server.ask("DELETE", f"kernels/{kernel}")


def start(server: JupyterServer) -> str:
    return str(server.ask("POST", "kernels", name="gvisor-python", path=f"{FOLDER}/n.ipynb")["id"])


def test_sandbox_is_shown(server: JupyterServer, client: Client, kernel: str) -> None:
    """Names with markup are text in JSON, which no browser takes for a page."""
    answer = client.ask("GET", "sandboxes")
    assert answer.headers["Content-Type"].startswith("application/json")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    (sandbox,) = answer.json()["sandboxes"]
    assert sandbox["kernel_id"] == kernel
    assert sandbox["folder"] == str(server.folder / FOLDER)
    assert sandbox["workspace"]["outputs"] == str(server.folder / FOLDER / "outputs")
    assert sandbox["state"] in ("idle", "busy")
    assert sandbox["start"]["kind"] == "cold"
    assert sandbox["start"]["seconds"] > 0
    assert 0 < sandbox["memory"]["used"] < sandbox["memory"]["limit"]
    assert sandbox["cpu_seconds"] > 0
    assert sandbox["egress"] == []
    assert sandbox["last_death"] is None
    assert sandbox["language"] == "python"
    assert sandbox["release"]["runsc"]
    assert sandbox["created"] > 0
    assert client.sandbox(kernel)["identity"] == sandbox["identity"]


def test_project_is_shown_after_a_choice(server: JupyterServer, client: Client) -> None:
    """For kernels that start later, and only for a project below the server's root."""
    notebooks = server.folder / "proj" / "notebooks"
    notebooks.mkdir(parents=True)
    (server.folder / "pyproject.toml").touch()
    (server.folder / "proj" / ".git").mkdir()

    def look() -> tuple[Any, str]:
        body = {"name": "gvisor-python", "path": "proj/notebooks/n.ipynb"}
        kernel = server.ask("POST", "kernels", **body)["id"]
        try:
            found = client.sandbox(kernel)
        finally:
            server.ask("DELETE", f"kernels/{kernel}")
        return found["project"], found["workspace"]["uploads"]

    def choose(shown: bool, path: str = "proj/notebooks") -> int:
        return client.ask("PUT", "projects", json={"path": path, "shown": shown}).status_code

    assert look() == ({"folder": "proj", "shown": False}, str(notebooks))
    assert choose(shown=True) == 204
    assert look() == ({"folder": "proj", "shown": True}, str(notebooks.parent))
    (notebooks / ".jupyter-project").touch()  # not the project that was chosen
    assert look() == (None, str(notebooks))
    (notebooks / ".jupyter-project").unlink()
    assert choose(shown=False) == 204
    assert look() == ({"folder": "proj", "shown": False}, str(notebooks))
    assert choose(shown=True, path="..") == 400
    (server.folder / "pyproject.toml").unlink()
    assert choose(shown=True, path=FOLDER) == 404


def test_nobody_without_token_is_answered(client: Client, kernel: str) -> None:
    paths = ("sandboxes", f"kernels/{kernel}", f"kernels/{kernel}/log", "openapi.json")
    for path in (*paths, f"kernels/{kernel}/transcript"):
        for headers in ({}, {"Authorization": "token wrong"}):
            assert client.ask("GET", path, headers=headers).status_code == 403
    for path in (f"kernels/{kernel}/stop", f"kernels/{kernel}/kill", "warm"):
        assert client.ask("POST", path, headers={}, json={}).status_code == 403
    assert client.ask("PUT", "projects", headers={}, json={}).status_code == 403
    assert client.sandbox(kernel)["state"] != "ended"


def test_page_of_another_site_cannot_post(client: Client, kernel: str) -> None:
    """A browser sends the cookie with a cross-site request, but knows no XSRF token."""
    with requests.Session() as browser:
        login = client.server.url + "/tree?token=" + client.server.token
        browser.get(login, timeout=SECONDS)
        assert browser.get(f"{client.api}/sandboxes", timeout=SECONDS).ok
        body = '{"path": "", "shown": false}'
        assert browser.put(f"{client.api}/projects", data=body, timeout=SECONDS).status_code == 403
        for path in (f"kernels/{kernel}/stop", f"kernels/{kernel}/kill", "warm"):
            for headers in ({}, {"Origin": "https://evil.example"}):
                answer = browser.post(
                    f"{client.api}/{path}", data="{}", headers=headers, timeout=SECONDS
                )
                assert answer.status_code in (403, 404)
        evil = {"Origin": "https://evil.example"}
        assert browser.get(
            f"{client.api}/sandboxes", headers=evil, timeout=SECONDS
        ).status_code == (404)
    assert client.sandbox(kernel)["state"] != "ended"


def test_kernel_that_is_not_ours_is_not_found(client: Client, server: JupyterServer) -> None:
    local = server.ask("POST", "kernels", name="python3")["id"]
    try:
        for kernel in (local, "00000000-0000-0000-0000-000000000000"):
            assert client.ask("GET", f"kernels/{kernel}").status_code == 404
            assert client.ask("GET", f"kernels/{kernel}/log").status_code == 404
            assert client.ask("POST", f"kernels/{kernel}/kill").status_code == 404
        found = client.ask("GET", "sandboxes").json()["sandboxes"]
        assert local not in {sandbox["kernel_id"] for sandbox in found}
        assert server.ask("GET", f"kernels/{local}")["id"] == local
    finally:
        server.ask("DELETE", f"kernels/{local}")


def test_servers_do_not_show_each_others_kernels(
    client: Client, kernel: str, tmp_path: Path
) -> None:
    """Neither to whoever has the other one's token."""
    other = JupyterServer(
        tmp_path, "--GVisorServer.warm=False", extensions=("gvisor_kernel.server",)
    )
    try:
        other.start()
        theirs = Client(other)
        assert theirs.ask("GET", "sandboxes").json() == {"sandboxes": [], "leftovers": []}
        assert theirs.ask("GET", f"kernels/{kernel}").status_code == 404
        headers = {"Authorization": f"token {client.server.token}"}
        assert theirs.ask("GET", "sandboxes", headers=headers).status_code == 403
    finally:
        other.stop()


def test_log_and_transcript_are_clean(client: Client, kernel: str, server: JupyterServer) -> None:
    with server.page(kernel) as page:
        request = page.execute(
            r"import os; os.write(2, b'\x1b[31mred\x1b[0m\x08<i>\n'); print('\x1b[32mout')"
        )
        page.wait_for_reply(request)

    def lines(kind: str) -> str:
        found = client.ask("GET", f"kernels/{kernel}/{kind}?lines=1000").json()["lines"]
        return "\n".join(found)

    wait_until(lambda: "out" in lines("transcript"), "the output in the transcript")
    for kind in ("log", "transcript"):
        text = lines(kind)
        assert text
        assert not [char for char in text if not char.isprintable() and char != "\n"]
        assert "[31m" not in text
        assert "[32m" not in text
    assert "sandbox is up" in lines("log")
    assert len(client.ask("GET", f"kernels/{kernel}/log?lines=1").json()["lines"]) == 1
    for wrong in ("0", "-1", "x", "9" * 50, "\u0661"):
        assert client.ask("GET", f"kernels/{kernel}/log?lines={wrong}").status_code == 400


def test_changes_are_shown_applied_and_undone(
    client: Client, kernel: str, server: JupyterServer
) -> None:
    folder = server.folder / FOLDER
    (folder / "notes.txt").write_text("old\n")
    with server.page(kernel) as page:
        code = "open('notes.txt', 'w').write('<b>new'); open('<i>.html', 'w').write('<script>')"
        page.wait_for_reply(page.execute(f"{code}; open('Makefile', 'w').write('all:')"))
    changes = f"kernels/{kernel}/changes"
    found = client.ask("GET", changes).json()
    listed = {change["path"]: change for change in found["changes"]}
    assert {path: change["kind"] for path, change in listed.items()} == {
        "notes.txt": "changed",
        "<i>.html": "added",
        "Makefile": "added",
    }
    assert [path for path, change in listed.items() if change["runs"]] == ["Makefile"]
    state = listed["notes.txt"]["state"].replace(" ", "+")
    for side, text in (("old", "old\n"), ("new", "<b>new")):
        content = client.ask("GET", f"{changes}/content?path=notes.txt&side={side}&state={state}")
        assert content.text == text
        assert content.headers["Content-Type"] == "application/octet-stream"
        assert "sandbox" in content.headers["Content-Security-Policy"]
        without = client.ask("GET", f"{changes}/content?path=notes.txt&side={side}")
        assert without.status_code == 400
        other = client.ask("GET", f"{changes}/content?path=notes.txt&side={side}&state=x")
        assert other.status_code == 409
    query = "&state=absent+removed"
    assert client.ask("GET", f"{changes}/content?path=../x&side=old{query}").status_code == 409
    assert client.ask("GET", f"{changes}/content?path=none&side=new{query}").status_code == 404
    assert client.ask("GET", f"{changes}/content?path=x&side=both{query}").status_code == 400
    wanted = [{"path": path, "state": change["state"]} for path, change in listed.items()]
    wrong = ({}, {"changes": 5}, {"changes": [{"path": 1}]}, {"changes": [], "force": 2})
    for body in (*wrong, {"changes": [], "named": "Makefile"}, {"changes": [], "named": [1]}):
        assert client.ask("POST", f"{changes}/apply", json=body).status_code == 400
    applied = client.ask("POST", f"{changes}/apply", json={"changes": wanted}).json()
    assert applied["applied"] == ["<i>.html"]
    # The one was written on disk after the kernel's start, the other is not named.
    assert {refused["path"] for refused in applied["refused"]} == {"notes.txt", "Makefile"}
    client.ask("POST", f"{changes}/undo", json={"undo": applied["undo"]}).raise_for_status()
    body = {"changes": wanted, "named": ["Makefile"], "force": True}
    applied = client.ask("POST", f"{changes}/apply", json=body).json()
    assert sorted(applied["applied"]) == ["<i>.html", "Makefile", "notes.txt"]
    assert (folder / "notes.txt").read_text() == "<b>new"
    assert client.ask("POST", f"{changes}/undo", json={"undo": "../x"}).status_code == 409
    undone = client.ask("POST", f"{changes}/undo", json={"undo": applied["undo"]}).json()
    assert sorted(undone["undone"]) == ["<i>.html", "Makefile", "notes.txt"]
    assert (folder / "notes.txt").read_text() == "old\n"
    assert not (folder / "<i>.html").exists()


def test_events_and_metrics_tell_of_a_life(client: Client, server: JupyterServer) -> None:
    """Start, a refused request, memory above 80 %, death over the limit."""
    address = f"{server.url.replace('http', 'ws', 1)}/api/events/subscribe?token={server.token}"
    connection = create_connection(address, timeout=SECONDS)
    try:
        before = read_metrics(server)
        kernel = str(server.ask("POST", "kernels", name="gk-small")["id"])
        event = wait_for_event(connection, "started")
        assert event["kernel_id"] == kernel
        assert event["kind"] == "cold"
        assert client.sandbox(kernel)["egress"] == [
            {"name": "web", "kind": "hosts", "hosts": ["allowed.example:443"]}
        ]
        with server.page(kernel) as page:
            refused = "import urllib.request as r; r.urlopen('http://refused.example/<i>')"
            assert page.wait_for_reply(page.execute(refused))["status"] == "error"
            event = wait_for_event(connection, "egress-refused")
            assert (event["host"], event["kernel_id"]) == ("refused.example:80", kernel)
            page.wait_for_reply(page.execute("hold = bytearray(350 * 2**20)"))
            event = wait_for_event(connection, "memory")
            assert 0.8 * event["limit"] < event["used"]
            page.execute("more = bytearray(1000 * 2**20)")
            event = wait_for_event(connection, "died")
        assert event["kind"] == "memory"
        assert "memory_limit" in event["reason"]
        wait_until(lambda: client.sandbox(kernel)["last_death"], "the death in the API")
        assert client.sandbox(kernel)["last_death"]["reason"] == event["reason"]
        after = read_metrics(server)
        for name in (
            'gvisor_kernel_start_seconds_count{kind="cold"}',
            'gvisor_kernel_deaths_total{reason="memory"}',
            'gvisor_kernel_link_bytes_total{direction="received"}',
            "gvisor_kernel_refused_requests_total",
        ):
            assert after[name] > before[name]
        text = json.dumps(list(after))
        assert kernel not in text
        assert str(server.folder) not in text
        # 409 says that Jupyter's own restart of the dead kernel is under way.
        wait_until(
            lambda: client.ask("POST", f"kernels/{kernel}/kill").status_code == 204, "the kill"
        )
        assert client.sandbox(kernel)["state"] == "ended"
    finally:
        connection.close()


def test_stop_ends_the_kernel(client: Client, server: JupyterServer) -> None:
    kernel = start(server)
    directory = client.sandbox(kernel)["id"]
    assert client.ask("POST", f"kernels/{kernel}/stop").status_code == 204
    assert kernel not in {one["id"] for one in server.ask("GET", "kernels")}
    assert directory not in client.ask("GET", "sandboxes").text


def test_document_is_served(client: Client) -> None:
    assert client.ask("GET", "openapi.json").json()["openapi"] == "3.1.0"


def test_request_outside_the_root_is_refused(client: Client) -> None:
    def request(**body: Any) -> int:
        return client.ask("POST", "warm", json=body).status_code

    assert request(kernel_name="gvisor-python", path="../..") == 400
    assert request(kernel_name="gvisor-python", path="\0") == 400
    assert request(kernel_name="python3", path="") == 404
    assert request(kernel_name="../x", path="") == 404
    assert request(kernel_name=["x"]) == 400
    assert client.ask("POST", "warm", data="[" * 10_000).status_code == 400
    answer = client.ask("POST", "warm", json={"kernel_name": "gvisor-python", "path": FOLDER})
    assert (answer.status_code, answer.json()) == (202, {"accepted": False})


@pytest.fixture(scope="module", autouse=True)
def small_kernelspec(world: Any) -> None:
    """A kernelspec with a low memory limit and a route."""
    folder: Path = world.kernelspecs / "gvisor-python"
    spec = json.loads((folder / "kernel.json").read_text())
    spec["metadata"]["kernel_provisioner"]["config"] |= {
        "memory_limit": "512M",
        "egress": ["web"],
    }
    world.add_kernelspec("gk-small", spec)


def test_limits_of_kernelspecs_are_told(client: Client) -> None:
    answer = client.ask("GET", "kernelspecs")
    answer.raise_for_status()
    found = {one["name"]: one for one in answer.json()["kernelspecs"]}
    assert found["gvisor-python"]["limits"]["memory"] == 4 * 1024**3
    assert "python3" not in found
    assert client.ask("GET", "kernelspecs", headers={}).status_code == 403


def read_metrics(server: JupyterServer) -> dict[str, float]:
    answer = requests.get(
        f"{server.url}/metrics",
        headers={"Authorization": f"token {server.token}"},
        timeout=SECONDS,
    )
    answer.raise_for_status()
    lines = [line for line in answer.text.splitlines() if line.startswith("gvisor_kernel_")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_other_user_reads_no_state(kernel: str, client: Client, world: World) -> None:
    """Not even with an open descriptor of its folder, which lies in a private one here."""
    directory = client.sandbox(kernel)["id"]
    folder = os.open(world.state, os.O_RDONLY | os.O_DIRECTORY)
    code = (
        "import os, sys\n"
        "for path in (sys.argv[2], '.'):\n"
        "    try:\n"
        "        os.open(path, os.O_RDONLY, dir_fd=int(sys.argv[1]))\n"
        "    except PermissionError:\n"
        "        continue\n"
        "    sys.exit(path)\n"
    )
    try:
        done = subprocess.run(
            ["/usr/bin/python3", "-I", "-c", code, str(folder), directory],
            pass_fds=[folder],
            cwd="/",
            user=65534,
            group=65534,
            extra_groups=[],
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    finally:
        os.close(folder)
    assert done.returncode == 0, done.stderr
