"""Kernels of a Jupyter server that hibernate: by hand, instead of a cull, and over its restart."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from websocket import create_connection

from gvisor_kernel.cli.main import main
from gvisor_kernel.runtimes.state.kept_packages import KEPT
from gvisor_kernel.runtimes.state.listed import Listed, find_all
from gvisor_kernel.server.saved_sessions import find_left

from ..jupyter.helpers import SECONDS, wait_until
from ..jupyter.server import JupyterServer, Page
from ..releases.programs import make_programs
from ..world import World
from .clients import Client, wait_for_event


@contextmanager
def serving(folder: Path, *options: str, leaves: bool | None = True) -> Iterator[JupyterServer]:
    """Run a server with the extension; it is stopped by SIGTERM."""
    server = JupyterServer(
        folder, "--GVisorServer.warm=False", *options, extensions=("gvisor_kernel.server",)
    )
    server.leaves = leaves
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JupyterServer]:
    folder = tmp_path_factory.mktemp("shared")
    (folder / "n").mkdir()
    with serving(folder) as found:
        yield found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "n").mkdir()
    return tmp_path


def start(server: JupyterServer, path: str = "n/a.ipynb") -> dict[str, Any]:
    """Start a notebook's kernel as a page does; return the session."""
    session: dict[str, Any] = server.ask(
        "POST",
        "sessions",
        path=path,
        name="a.ipynb",
        type="notebook",
        kernel={"name": "gvisor-python"},
    )
    return session


def run(page: Page, code: str) -> str:
    """Run a cell that prints; return what it printed. Channels have no common order."""
    msg_id, said, left = page.execute(code), "", {"execute_reply", "idle"}
    while left:
        message = page.wait_for(lambda m: m["parent_header"].get("msg_id") == msg_id, code)
        content = message["content"]
        said += str(content.get("text", content.get("evalue", "")))
        left -= {message["msg_type"], content.get("execution_state")}
    return said


def read_metrics(server: JupyterServer) -> str:
    query = {"token": server.token}
    return requests.get(f"{server.url}/metrics", params=query, timeout=SECONDS).text


def find_listed(kernel: str) -> list[Listed]:
    return [listed for listed in find_all() if listed.record.kernel_id == kernel]


def is_asleep(client: Client, kernel: str) -> bool:
    return client.sandbox(kernel)["hibernated"] is not None


def test_a_kernel_hibernates_by_hand_and_is_told(server: JupyterServer) -> None:
    client, kernel = Client(server), start(server)["kernel"]["id"]
    events = create_connection(
        f"{server.url.replace('http', 'ws')}/api/events/subscribe?token={server.token}",
        timeout=SECONDS,
    )
    with server.page(kernel) as page:
        assert run(page, "x = 5; open('new.txt', 'w'); print(x)") == "5\n"
        awake = client.sandbox(kernel)
        assert client.ask("GET", f"kernels/{kernel}/unkept").json()["total"] == 1
        assert client.ask("POST", f"kernels/{kernel}/hibernate").status_code == 204
        event = wait_for_event(events, "hibernated")
        asleep = client.sandbox(kernel)
        assert asleep["hibernated"] == {
            "since": pytest.approx(asleep["created"], abs=3600),
            "size": event["size"],
        }
        same = ("id", "identity", "folder", "state", "workspace", "log", "transcript")
        assert {key: asleep[key] for key in same} == {key: awake[key] for key in same}
        assert asleep["memory"]["used"] is None
        for of in ("", "/unkept", "/log", "/transcript"):  # what a page asks by itself
            assert client.ask("GET", f"kernels/{kernel}{of}").ok
        assert client.ask("GET", f"kernels/{kernel}/unkept").json()["total"] == 1
        assert client.ask("GET", f"outputs?kernel_id={kernel}").ok
        assert is_asleep(client, kernel)
        wait_until(lambda: "gvisor_kernel_hibernated 1.0" in read_metrics(server), "the metric")
        assert client.ask("POST", f"kernels/{kernel}/resume").status_code == 204
        wait_for_event(events, "resumed")
        assert not is_asleep(client, kernel)
        assert run(page, "print(x)") == "5\n"
        running = page.execute("import time; print('begun', flush=True); time.sleep(600)")
        page.wait_for_text("begun")
        refused = client.ask("POST", f"kernels/{kernel}/hibernate")
        assert refused.status_code == 409
        assert "A cell runs" in refused.json()["message"]
        server.ask("POST", f"kernels/{kernel}/interrupt")
        page.wait_for_reply(running)
    assert client.ask("POST", "kernels/none/hibernate").status_code == 404
    events.close()
    client.ask("POST", f"kernels/{kernel}/hibernate")
    server.ask("DELETE", f"kernels/{kernel}")
    assert not find_listed(kernel)


def test_changes_wake_a_kernel(server: JupyterServer) -> None:
    client, kernel = Client(server), start(server)["kernel"]["id"]
    with server.page(kernel) as page:
        run(page, "open('new.txt', 'w').write('1'); print()")
    client.ask("POST", f"kernels/{kernel}/hibernate")
    listed = client.ask("GET", f"kernels/{kernel}/changes").json()["changes"]
    assert [change["path"] for change in listed] == ["new.txt"]
    assert not is_asleep(client, kernel)
    server.ask("DELETE", f"kernels/{kernel}")


def test_a_page_that_comes_wakes_no_kernel(server: JupyterServer) -> None:
    """Of the requests that JupyterLab sends as it loads those that can be answered truthfully."""
    client, kernel = Client(server), start(server)["kernel"]["id"]
    debug = {"type": "request", "command": "debugInfo", "seq": 3}
    with server.page(kernel) as page:
        run(page, "print()")
        page.send("debug_request", debug, "control")
        known = page.wait_for(lambda m: m["msg_type"] == "debug_reply", "debugInfo")
    client.ask("POST", f"kernels/{kernel}/hibernate")
    with server.page(kernel) as page:
        info = page.wait_for_reply(page.send("kernel_info_request", {}))
        assert info["language_info"]["name"] == "python"
        assert page.wait_for_reply(page.send("comm_info_request", {}))["comms"] == {}
        page.wait_for_reply(page.send("is_complete_request", {"code": ""}))
        tail = {"output": False, "raw": True, "hist_access_type": "tail", "n": 10}
        history = page.wait_for_reply(page.send("history_request", tail))["history"]
        assert [code for _, _, code in history] == ["print()"]
        page.send("debug_request", debug | {"seq": 7}, "control")
        again = page.wait_for(lambda m: m["msg_type"] == "debug_reply", "debugInfo")
        assert again["content"] == known["content"] | {"request_seq": 7}
        assert is_asleep(client, kernel)
        page.wait_for_reply(page.send("is_complete_request", {"code": "for"}))
        assert not is_asleep(client, kernel)
    server.ask("DELETE", f"kernels/{kernel}")


CULLS = ("--MappingKernelManager.cull_idle_timeout=1", "--MappingKernelManager.cull_interval=1")


def test_a_culled_kernel_hibernates(folder: Path) -> None:
    with serving(folder, *CULLS) as server:
        client, kernel = Client(server), start(server)["kernel"]["id"]
        wait_until(lambda: is_asleep(client, kernel), "the kernel to hibernate")
        culls = sum("Culling 'idle'" in line for line in server.log)
        local = server.ask("POST", "kernels", name="python3")["id"]

        def is_gone() -> bool:
            return local not in {one["id"] for one in server.ask("GET", "kernels")}

        wait_until(is_gone, "a kernel without a sandbox to be culled as ever")
        assert sum("Culling 'idle'" in line for line in server.log) <= culls + 1
        assert is_asleep(client, kernel)
        server.ask("DELETE", f"kernels/{kernel}")


def test_a_kernel_that_works_is_not_culled(folder: Path) -> None:
    """Jupyter takes it for idle once a subshell was made, as each page does that is loaded."""
    with serving(folder, *CULLS, "--MappingKernelManager.cull_connected=True") as server:
        kernel = start(server)["kernel"]["id"]
        with server.page(kernel) as page:
            cell = page.execute("import time; print('begun', flush=True); time.sleep(600)")
            page.wait_for_text("begun")
            page.send("create_subshell_request", {}, channel="control")
            culls = "Culling 'idle'"
            wait_until(
                lambda: sum(culls in line for line in server.log) > 1,
                "the server to cull the kernel twice",
            )
            server.ask("POST", f"kernels/{kernel}/interrupt")
            assert page.wait_for_reply(cell)["ename"] == "KeyboardInterrupt"
        server.ask("DELETE", f"kernels/{kernel}")


def test_a_cull_ends_kernels_where_that_is_set(folder: Path) -> None:
    with serving(folder, *CULLS, "--GVisorServer.cull_hibernates=False") as server:
        kernel = start(server)["kernel"]["id"]
        wait_until(lambda: not find_listed(kernel), "the kernel to be culled")


def test_a_server_is_stopped_and_started_again(folder: Path) -> None:
    """Two notebooks: one kernel is awake, one asleep; a third cannot hibernate as it works."""
    with serving(folder) as server:
        client = Client(server)
        awake, asleep, busy = (start(server, f"n/{name}.ipynb") for name in "abc")
        for session in (awake, asleep):
            with server.page(session["kernel"]["id"]) as page:
                run(page, f"x = {session['path']!r}; print()")
        assert client.ask("POST", f"kernels/{asleep['kernel']['id']}/hibernate").ok
        client_page = server.page(busy["kernel"]["id"])
        with client_page as page:
            page.execute("import time; print('begun', flush=True); time.sleep(600)")
            page.wait_for_text("begun")
        extra = server.ask("POST", "kernels", name="gvisor-python", path="n")["id"]
    assert any("n/c.ipynb does not hibernate, and ends" in line for line in server.log)
    assert not find_listed(busy["kernel"]["id"])
    kept = {awake["kernel"]["id"], asleep["kernel"]["id"], extra}
    for kernel in kept:
        (listed,) = find_listed(kernel)
        assert listed.state == "hibernated"
    assert find_left(str(folder.parent)) == ([], False)  # what a server of another root takes
    assert len(find_left(str(folder))[0]) == len(kept)
    file = find_listed(awake["kernel"]["id"])[0].directory / "session.json"
    text = file.read_text()
    assert json.loads(text)["sessions"][0]["path"] == "n/a.ipynb"
    for wrong in ("[]", text.replace("n/a.ipynb", "x" * 100_000), text[:-9]):
        file.write_text(wrong)
        assert len(find_left(str(folder))[0]) == len(kept) - 1
    file.write_text(text)
    with serving(folder) as server:
        client = Client(server)
        sessions = {one["id"]: one for one in server.ask("GET", "sessions")}
        assert sessions.keys() == {awake["id"], asleep["id"]}
        for before in (awake, asleep):
            now, kernel = sessions[before["id"]], before["kernel"]["id"]
            assert (now["path"], now["kernel"]["id"]) == (before["path"], kernel)
            assert now["kernel"]["execution_state"] == "idle"
            shown = client.sandbox(kernel)
            assert shown["id"] == find_listed(kernel)[0].id
            assert shown["folder"] == str(folder / "n")
            assert client.ask("GET", f"kernels/{kernel}/log").json()["lines"]
            with server.page(kernel) as page:
                page.wait_for_reply(page.send("kernel_info_request", {}))
                assert is_asleep(client, kernel)
                assert run(page, "print(x)") == f"{before['path']}\n"
        for session in (awake, asleep):
            server.ask("DELETE", f"sessions/{session['id']}")
        server.ask("DELETE", f"kernels/{extra}")  # asleep, as nobody has used it
        assert not any(map(find_listed, kept))


@pytest.fixture
def hangup() -> Iterator[None]:
    """A suite that nohup has started ignores SIGHUP, and so would its servers."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_each_signal_leaves_kernels_to_the_next_server(
    folder: Path, monkeypatch: pytest.MonkeyPatch, hangup: None
) -> None:
    """The server's input is no terminal, and one start has failed before, of a local kernel."""
    spec = folder / "jupyter" / "kernels" / "broken" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": [str(folder / "nothing")], "display_name": "broken"}))
    monkeypatch.setenv("JUPYTER_PATH", str(folder / "jupyter"))
    with serving(folder) as server:
        session = start(server)
        kernel = session["kernel"]["id"]
        with server.page(kernel) as page:
            run(page, "x = 5; print()")
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        with serving(folder) as server:
            assert [one["id"] for one in server.ask("GET", "sessions")] == [session["id"]]
            with server.page(kernel) as page:
                assert run(page, "x += 1; print(x)")
            with pytest.raises(requests.HTTPError):
                server.ask("POST", "kernels", name="broken")
            assert server.process is not None
            server.process.send_signal(number)
            server.process.wait(SECONDS)
            (listed,) = find_listed(kernel)
            assert listed.state == "hibernated"
    with serving(folder) as server:
        with server.page(kernel) as page:
            assert run(page, "print(x)") == "8\n"
        server.ask("DELETE", f"sessions/{session['id']}")


def test_a_server_that_was_killed_is_started_again(folder: Path, world: World) -> None:
    """Its kernel is saved by what it leaves behind, and has its session and its new name again. So
    it is without a setting, as gVisor is a current one."""
    _, new = make_programs(folder, years=2)
    options = (f"--GVisorProvisioner.runsc={new.path}", "--GVisorProvisioner.snapshot=off")
    with serving(folder, *options, leaves=None) as server:
        session = start(server)
        with server.page(session["kernel"]["id"]) as page:
            run(page, "x = 5; print()")
        directory = find_listed(session["kernel"]["id"])[0].directory
        wait_until(lambda: "x = 5" in (directory / "kernel.json").read_text(), "the note")
        server.ask("PATCH", f"sessions/{session['id']}", path="n/b.ipynb", name="b.ipynb")
        assert server.process is not None
        server.process.kill()
        server.process.wait()
        for file in world.runtime.glob(f"jpserver-{server.process.pid}*"):
            file.unlink()
    kept = directory / "saved" / KEPT
    wait_until(kept.exists, "its packages are kept")
    kept.unlink()  # as if that had been killed, too
    with serving(folder, *options, leaves=None) as server:
        wait_until(kept.exists, "its packages are kept by this server")
        (again,) = server.ask("GET", "sessions")
        assert (again["id"], again["path"]) == (session["id"], "n/b.ipynb")
        assert again["kernel"]["id"] == session["kernel"]["id"]
        with server.page(again["kernel"]["id"]) as page:
            info = page.wait_for_reply(page.send("kernel_info_request", {}))
            assert info["language_info"]["name"] == "python"
            assert is_asleep(Client(server), again["kernel"]["id"])
            assert run(page, "print(x)") == "5\n"
        server.ask("DELETE", f"sessions/{session['id']}")


def test_a_cell_that_ran_as_its_server_was_killed_goes_on_and_is_busy(
    folder: Path, world: World
) -> None:
    cell = "import time, os\nwhile not os.path.exists('/workspace/outputs/end'): time.sleep(0.1)"
    told = "The server was killed while this cell ran: some of its output may be missing"
    with serving(folder) as server:
        session = start(server)
        kernel = session["kernel"]["id"]
        with server.page(kernel) as page:
            run(page, "x = 5; print()")
            ran, page_session = page.execute(cell), page.session
            note = find_listed(kernel)[0].directory / "kernel.json"
            wait_until(lambda: json.loads(note.read_text())["known"].get("works"), "the note")
        assert server.process is not None
        server.process.kill()
        server.process.wait()
        for file in world.runtime.glob(f"jpserver-{server.process.pid}*"):
            file.unlink()
    with serving(folder) as server:
        assert server.ask("GET", f"kernels/{kernel}")["execution_state"] == "busy"
        with server.page(kernel) as page:
            page.wait_for_reply(page.send("kernel_info_request", {}))  # of another page
            page.session = page_session
            page.send("kernel_info_request", {})
            assert page.wait_for_text(told)["parent_header"]["msg_id"] == ran
            wait_until(lambda: not is_asleep(Client(server), kernel), "its cell goes on")
            page.send("kernel_info_request", {})
            (folder / "n" / "outputs" / "end").touch()
            page.execute("print(x)")
            output = page.wait_for(lambda it: it["msg_type"] == "stream", "that, said once, or x")
            assert output["content"]["text"] == "5\n"
        server.ask("DELETE", f"sessions/{session['id']}")


def test_no_kernel_begins_anew_in_the_place_of_one_that_cannot_be_resumed(folder: Path) -> None:
    with serving(folder) as server:
        kernel = start(server)["kernel"]["id"]
    (listed,) = find_listed(kernel)
    image = listed.directory / "saved" / "kernel.json"
    image.rename(image.with_name("aside"))
    with serving(folder) as server:
        assert server.ask("GET", "kernels") == []
        assert any("stays saved" in line for line in server.log)
    image.with_name("aside").rename(image)
    assert find_listed(kernel)[0].state == "hibernated"
    assert main(["kill", listed.id]) == 0
    assert not find_listed(kernel)
