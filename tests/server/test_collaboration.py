"""The extension in ``jupyter lab --collaborative``: a shared notebook, a kernel, its changes."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import nbformat
import pytest
import requests

from ..jupyter.helpers import SECONDS, wait_until
from ..jupyter.server import JupyterServer
from ..sweeps import needs_all
from .clients import Client

MISSING = importlib.util.find_spec("jupyter_server_ydoc") is None
pytestmark = [
    needs_all,
    pytest.mark.skipif(MISSING, reason="no collaboration: pip install jupyter-collaboration"),
]


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JupyterServer]:
    folder = tmp_path_factory.mktemp("collaboration")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")])
    nbformat.write(notebook, folder / "n.ipynb")  # type: ignore[no-untyped-call]
    server = JupyterServer(
        folder,
        "--GVisorServer.warm=False",
        f"--SQLiteYStore.db_path={folder / '.store.db'}",
        extensions=("gvisor_kernel.server", "jupyterlab", "jupyter_server_ydoc"),
    )
    try:
        server.start()
        yield server
    finally:
        server.stop()


def test_shared_notebook_has_a_sandbox(server: JupyterServer) -> None:
    client = Client(server)
    headers = {"Authorization": f"token {server.token}"}
    shared = {"format": "json", "type": "notebook"}
    address = f"{server.url}/api/collaboration/session/n.ipynb"
    opened = requests.put(address, json=shared, headers=headers, timeout=SECONDS)
    assert opened.ok, opened.text
    assert opened.json()["sessionId"]
    session = server.ask(
        "POST",
        "sessions",
        path="n.ipynb",
        name="n.ipynb",
        type="notebook",
        kernel={"name": "gvisor-python"},
    )
    kernel = session["kernel"]["id"]
    with server.page(kernel) as first, server.page(kernel) as second:
        first.wait_for_reply(first.execute("open('new.txt', 'w').write('new'); print('shared')"))
        second.wait_for_text("shared")
    assert client.sandbox(kernel)["folder"] == str(server.folder)
    listed = client.ask("GET", f"kernels/{kernel}/changes").json()["changes"]
    assert [change["path"] for change in listed] == ["new.txt"]
    wanted = [{key: change[key] for key in ("path", "state")} for change in listed]
    body = {"changes": wanted}
    applied = client.ask("POST", f"kernels/{kernel}/changes/apply", json=body).json()
    assert applied["applied"] == ["new.txt"]
    assert (server.folder / "new.txt").read_text() == "new"
    answer = client.ask("GET", "trust")
    assert answer.ok, answer.text + "".join(server.log[-30:])
    trust = answer.json()["notebooks"]
    assert trust == [{"path": "n.ipynb", "trusted": False}]
    wait_until(lambda: client.ask("GET", f"kernels/{kernel}/unkept").json()["total"] == 0, "none")
    server.ask("DELETE", f"sessions/{session['id']}")
    assert client.sandbox(kernel)["unkept"] is None
