"""The extension behind a real JupyterHub: each user reaches the own server's sandboxes alone.

Users are numbers of the system without accounts, if the tests run as root.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from websocket import WebSocketBadStatusException, create_connection

from ..foreign import PYTHON
from ..jupyter.helpers import SECONDS, wait_until
from ..sweeps import needs_all
from .clients import wait_for_event
from .hub import Hub, run_cell, running_hub

pytestmark = needs_all
GET = ("sandboxes", "openapi.json", "trust")
POST = ("warm",)
API = "gvisor-kernel/api"
AGAIN = 3
"""Cells that must be answered while another user's kernels do their worst."""

INTRUDER = """
import json, os, socket, sys
given = json.load(sys.stdin)
got = []
for path in given["paths"]:
    try:
        os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(1)
        got.append(f"read {path}")
    except OSError:
        pass
for path in given["sockets"]:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(path)
        got.append(f"connected to {path}")
    except OSError:
        pass
for pid in given["processes"]:
    try:
        os.kill(pid, 0)
        got.append(f"may signal {pid}")
    except OSError:  # it may have ended
        pass
    for name in ("environ", "mem", "maps", "root/tmp", "cwd", "fd"):
        try:
            path = f"/proc/{pid}/{name}"
            os.listdir(path) if name in ("root/tmp", "cwd", "fd") else open(path, "rb").read(1)
            got.append(f"read {path}")
        except OSError:
            pass
print(json.dumps(got))
"""

FORKS = """
import os
print('begun', flush=True)
while True:
    try: os.fork()
    except OSError: pass
"""
HOSTILE = {
    "forks": FORKS,
    "memory": "print('begun', flush=True)\nheld = []\nwhile True: held.append(bytearray(1 << 24))",
    "loop": "print('begun', flush=True)\nwhile True: pass",
    "log": "import os\nprint('begun', flush=True)\nwhile True: os.write(2, b'x' * 65536)",
    "output": "print('begun', flush=True)\nwhile True: print('x' * 65536)",
}


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with running_hub("alice", "bob", "carol") as hub:
        yield hub


@pytest.fixture(autouse=True)
def servers(hub: Hub) -> None:
    """Each test finds a server for each user."""
    for user in hub.users:
        hub.start_server(user)


def run_as(hub: Hub, user: str, given: dict[str, Any]) -> Any:
    """Run the intruder as a user, outside of any sandbox."""
    number = hub.numbers[user]
    done = subprocess.run(
        [PYTHON, "-I", "-c", INTRUDER],
        input=json.dumps(given),
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
        timeout=SECONDS,
        user=number,
        group=number,
        extra_groups=[],
    )
    return json.loads(done.stdout)


@pytest.mark.timeout(1200)
def test_users_of_a_hub(hub: Hub) -> None:
    alice, *others = (hub.make_token(user) for user in hub.users)
    ask = hub.ask_server
    address = hub.url.replace("http", "ws", 1) + "/user/alice/api/events/subscribe"
    for token in others:
        with pytest.raises(WebSocketBadStatusException):
            create_connection(address, timeout=SECONDS, header=[f"Authorization: token {token}"])
    header = [f"Authorization: token {alice}"]
    connection = create_connection(address, timeout=SECONDS, header=header)
    try:
        kernel = hub.start_kernel("alice", alice)
        assert wait_for_event(connection, "started")["kernel_id"] == kernel
    finally:
        connection.close()
    (sandbox,) = ask("alice", alice, "GET", f"{API}/sandboxes").json()["sandboxes"]
    assert sandbox["kernel_id"] == kernel
    assert sandbox["folder"] == str(hub.work("alice"))
    of_kernel = [f"kernels/{kernel}", *(f"kernels/{kernel}/{x}" for x in ("log", "changes"))]
    own = [f"{API}/{path}" for path in (*GET, *of_kernel)]
    for path in (*own, "api/kernels", "api/sessions", "api/contents", f"api/kernels/{kernel}"):
        for token in (*others, "", "wrong"):
            answer = ask("alice", token, "GET", path)
            assert answer.status_code == 403, (path, token)
            assert kernel not in answer.text or kernel in path
    own = [*POST, *(f"kernels/{kernel}/{x}" for x in ("stop", "kill", "changes/apply"))]
    jupyters = [f"api/kernels/{kernel}/{x}" for x in ("interrupt", "restart")]
    for path in (*(f"{API}/{path}" for path in own), *jupyters, "api/kernels", "api/sessions"):
        for token in (*others, "", "wrong"):
            answer = ask("alice", token, "POST", path, undo="x")
            assert answer.status_code == 403, (path, token)
    for token in (*others, "wrong"):
        assert ask("alice", token, "DELETE", f"api/kernels/{kernel}").status_code == 403
        with (
            pytest.raises(WebSocketBadStatusException, match="403"),
            hub.page("alice", token, kernel),
        ):
            pass
    # The others' own servers neither show nor reach it.
    for user, token in zip(hub.users[1:], others, strict=True):
        assert ask(user, token, "GET", f"{API}/sandboxes").json()["sandboxes"] == []
        assert ask(user, token, "GET", "api/kernels").json() == []
        assert ask(user, token, "GET", f"{API}/kernels/{kernel}").status_code == 404
        assert ask(user, token, "POST", f"{API}/kernels/{kernel}/kill").status_code == 404
    with hub.log_in("alice") as browser, hub.log_in("bob") as other:
        page = f"{hub.url}/user/alice/{API}"
        assert browser.get(f"{page}/sandboxes", timeout=SECONDS).ok
        answer = other.get(f"{page}/sandboxes", timeout=SECONDS, allow_redirects=False)
        assert answer.status_code in (403, 404)
        evil = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
        for path in ("warm", f"kernels/{kernel}/stop", f"kernels/{kernel}/kill"):
            for headers in ({}, evil):
                answer = browser.post(f"{page}/{path}", headers=headers, data="{}", timeout=SECONDS)
                assert answer.status_code in (403, 404), (path, headers)
        answer = browser.get(f"{page}/sandboxes", headers=evil, timeout=SECONDS)
        assert answer.status_code == 404
    assert ask("alice", alice, "GET", f"{API}/kernels/{kernel}").json()["state"] != "ended"
    assert ask("alice", alice, "POST", f"{API}/kernels/{kernel}/stop").status_code == 204


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: users of the system are numbers")
@pytest.mark.timeout(600)
def test_no_user_reaches_anothers_files_sockets_and_processes(hub: Hub) -> None:
    alice = hub.make_token("alice")
    kernel = hub.start_kernel("alice", alice)
    (hub.work("alice") / "secret.txt").write_text("secret")
    with hub.page("alice", alice, kernel) as page:
        run_cell(page, "print(open('secret.txt').read())")
        roots = [hub.home("alice"), hub.runtime("alice")]
        found = [path for root in roots for path in (root, *root.rglob("*"))]
        sockets = [str(path) for path in found if path.is_socket()]
        number = hub.numbers["alice"]
        folders = list(Path("/proc").glob("[0-9]*"))
        processes = [int(f.name) for f in folders if f.exists() and f.stat().st_uid == number]
        paths = [str(path) for path in found]
        for what in ("secret.txt", f"kernel-{kernel}.json", "record.json", "transcript"):
            assert any(what in path for path in paths), (what, paths)
        assert sockets
        assert len(processes) >= 3, "the server, the sentry, the gofer"
        given = {"paths": paths, "sockets": sockets, "processes": processes}
        assert run_as(hub, "bob", given) == []
        reached = run_as(hub, "alice", given)
        assert any(each.startswith("connected") for each in reached)
        assert any(each.startswith("may signal") for each in reached)
        assert len(reached) > len(paths) // 2
        # From inside of another user's kernel there is no such path.
        bob = hub.make_token("bob")
        mine = hub.start_kernel("bob", bob)
        with hub.page("bob", bob, mine) as other:
            code = f"import os, json; paths = json.loads({json.dumps(json.dumps(paths))})\n"
            code += "print([path for path in paths if os.path.lexists(path)])"
            shown = run_cell(other, code)
        assert str(hub.home("alice")) not in shown
        assert shown.strip() == "[]"


@pytest.mark.timeout(1200)
def test_hostile_kernels_of_one_user_do_not_keep_others_waiting(hub: Hub) -> None:
    """Each of the others gets answers. How soon depends on the machine: see docs/howto/hub.md."""
    tokens = {user: hub.make_token(user) for user in hub.users}
    kernels = {user: hub.start_kernel(user, tokens[user]) for user in ("alice", "bob")}
    for code in HOSTILE.values():
        kernel = hub.start_kernel("carol", tokens["carol"])
        with hub.page("carol", tokens["carol"], kernel) as page:
            page.execute(code)
            page.wait_for_text("begun")
    for number in range(AGAIN):
        for user, kernel in kernels.items():
            began = time.monotonic()
            with hub.page(user, tokens[user], kernel) as page:
                assert run_cell(page, f"print({number} + 1)") == f"{number + 1}\n"
            print(f"{user} was answered after {time.monotonic() - began:.2f} s")
    hub.stop_server("carol")
    wait_until(lambda: not hub.find_left("carol"), "the end of all of carol's")
    for user, kernel in kernels.items():
        with hub.page(user, tokens[user], kernel) as page:
            assert run_cell(page, "print(1 + 1)") == "2\n"


@pytest.mark.timeout(600)
def test_kernels_go_on_when_the_hub_restarts_or_is_killed(hub: Hub) -> None:
    alice = hub.make_token("alice")
    kernel = hub.start_kernel("alice", alice)
    with hub.page("alice", alice, kernel) as page:
        run_cell(page, "kept = 40\nprint(kept)")
    server = hub.find_server("alice")
    for kill in (False, True):
        hub.end(kill=kill)
        hub.start()
        assert hub.find_server("alice") == server
        wait_until(lambda: hub.has_server("alice"), "the hub to know the server")
        with hub.page("alice", alice, kernel) as page:
            assert run_cell(page, "kept += 1\nprint(kept)") == f"{42 if kill else 41}\n"
    hub.stop_server("alice")
    wait_until(lambda: not hub.find_left("alice"), f"the end of {hub.find_left('alice')}")


@pytest.mark.timeout(600)
def test_the_culler_and_killed_servers_leave_nothing(hub: Hub) -> None:
    for user in hub.users:
        token = hub.make_token(user)
        kernel = hub.start_kernel(user, token)
        with hub.page(user, token, kernel) as page:
            run_cell(page, "import subprocess; subprocess.Popen(['sleep', '1000']); print(1)")
        assert hub.find_left(user)
    # A server that is killed: the hub's machine does that when it has no memory left.
    os.kill(hub.find_server("carol"), signal.SIGKILL)
    wait_until(lambda: not hub.find_left("carol", with_sockets=False), "the end of carol's")
    wait_until(lambda: not hub.has_server("carol"), "the hub to notice")
    hub.start_server("carol")
    hub.start_kernel("carol", token)
    argv = [str(hub.python), "-m", "jupyterhub_idle_culler", "--timeout=1", "--cull-every=1"]
    variables = {
        "JUPYTERHUB_API_URL": f"{hub.url}/hub/api",
        "JUPYTERHUB_API_TOKEN": hub.tokens["culler"],
    }
    with subprocess.Popen(
        argv, env={**os.environ, **variables}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as culler:
        try:
            for user in hub.users:
                wait_until(lambda user=user: not hub.has_server(user), f"the culler to end {user}")
        finally:
            culler.terminate()
            culler.wait(SECONDS)
    for user in hub.users:
        wait_until(lambda user=user: not hub.find_left(user), f"the end of what {user} had")


def test_the_hubs_proxy_answers_nobody_without_a_login(hub: Hub) -> None:
    for path in (f"{API}/sandboxes", "metrics", "files/x"):
        url = f"{hub.url}/user/alice/{path}"
        answer = requests.get(url, timeout=SECONDS, allow_redirects=False)
        assert answer.status_code in (302, 403), path


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: users of the system are numbers")
@pytest.mark.timeout(600)
def test_users_share_what_pages_share_and_nothing_else() -> None:
    """One page of a common folder, two servers of two users, the folder that an administrator has
    named for what pages share."""
    with running_hub("dora", "emil", common=True) as hub:
        (hub.work("dora") / "page.html").write_text("<p>common</p>")
        asked = {}
        for user in hub.users:
            hub.start_server(user)
            token = hub.make_token(user)
            path = f"{API}/outputs/content?path=page.html"
            ticket = hub.ask_server(user, token, "GET", path).headers["Gvisor-Kernel-Ticket"]
            asked[user] = (token, ticket)

        def keep(user: str, do: str, **more: Any) -> requests.Response:
            token, ticket = asked[user]
            body = {"ticket": ticket, "do": do, **more}
            return hub.ask_server(user, token, "POST", f"{API}/storage", **body)

        assert keep("dora", "set", key="own", value="dora's").status_code == 200
        assert keep("dora", "set", key="news", value="for all", shared=True).status_code == 200
        assert keep("emil", "get", key="news", shared=True).json()["value"] == "for all"
        assert keep("emil", "get", key="own").status_code == 409
        assert keep("emil", "list").json()["keys"] == []
