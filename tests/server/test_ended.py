"""What is not kept, before and after a sandbox's end; kernels that have ended; trust."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
import pytest
import requests
from nbformat.sign import NotebookNotary
from websocket import create_connection

from gvisor_kernel.server.trust import find_signature

from ..jupyter.helpers import wait_until
from ..jupyter.server import JupyterServer
from .clients import Client, running_server, wait_for_event

NAME = "<b>.txt"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JupyterServer]:
    folder = tmp_path_factory.mktemp("ended")
    (folder / "n").mkdir()
    with running_server(
        folder,
        "--KernelRestarter.time_to_dead=0.3",
    ) as server:
        yield server


def start(server: JupyterServer) -> str:
    return str(server.ask("POST", "kernels", name="gvisor-python", path="n/n.ipynb")["id"])


def run(server: JupyterServer, kernel: str, code: str) -> None:
    with server.page(kernel) as page:
        assert page.wait_for_reply(page.execute(code))["status"] == "ok"


def test_files_that_end_with_a_kernel(client: Client, server: JupyterServer) -> None:
    """Named while it lives, and when it has ended; what was applied, or is the same, is not."""
    folder = server.folder / "n"
    (folder / "same.txt").write_text("same")
    kernel = start(server)
    assert client.ask("GET", f"kernels/{kernel}/unkept").json() == {
        "total": 0,
        "more": False,
        "paths": [],
    }
    assert client.sandbox(kernel)["unkept"] is None
    address = f"{server.url.replace('http', 'ws', 1)}/api/events/subscribe?token={server.token}"
    connection = create_connection(address, timeout=60)
    try:
        code = (
            f"for name in ({NAME!r}, 'applied.txt', 'same.txt'):\n"
            " open(name, 'w').write('same')\n"
            "open('outputs/kept.txt', 'w').write('kept')\n"
        )
        run(server, kernel, code)

        def read() -> Any:
            return client.ask("GET", f"kernels/{kernel}/unkept").json()

        wait_until(lambda: read()["total"] == 2, "the files that are not kept")
        assert sorted(read()["paths"]) == [NAME, "applied.txt"]
        listed = client.ask("GET", f"kernels/{kernel}/changes").json()["changes"]
        (wanted,) = (change for change in listed if change["path"] == "applied.txt")
        body = {"changes": [{"path": "applied.txt", "state": wanted["state"]}]}
        applied = client.ask("POST", f"kernels/{kernel}/changes/apply", json=body).json()
        assert applied["applied"] == ["applied.txt"]
        wait_until(lambda: read()["paths"] == [NAME], "the applied file to be kept")
        assert client.ask("POST", f"kernels/{kernel}/stop").status_code == 204
        event = wait_for_event(connection, "files-lost")
    finally:
        connection.close()
    lost = {"total": 1, "more": False, "paths": [NAME]}
    assert {key: event[key] for key in lost} == lost
    assert event["kernel_id"] == kernel
    ended = client.sandbox(kernel)
    assert (ended["state"], ended["last_death"], ended["unkept"]) == ("ended", None, lost)
    assert ended["folder"] == str(folder)
    assert ended["language"] == "python"
    listed = client.ask("GET", "sandboxes").json()["sandboxes"]
    assert kernel not in {one["kernel_id"] for one in listed}
    log = client.ask("GET", f"kernels/{kernel}/log").json()["lines"]
    assert any("sandbox is up" in line for line in log)
    assert len(client.ask("GET", f"kernels/{kernel}/log?lines=1").json()["lines"]) == 1
    transcript = client.ask("GET", f"kernels/{kernel}/transcript").json()["lines"]
    assert any("kept.txt" in line for line in transcript)
    assert client.ask("GET", f"kernels/{kernel}/unkept").status_code == 404
    assert client.ask("POST", f"kernels/{kernel}/stop").status_code == 404


def test_death_is_remembered_after_the_kernel(client: Client, server: JupyterServer) -> None:
    """The restarter starts another one, whose end is asked for."""
    kernel = start(server)
    with server.page(kernel) as page:
        page.execute("open('x', 'w').write('x'); import os; os._exit(3)")
        wait_until(lambda: client.sandbox(kernel)["last_death"], "the death")
        page.wait_for_state("restarting")
    wait_until(lambda: client.sandbox(kernel)["state"] in ("idle", "busy"), "the next one")
    assert client.sandbox(kernel)["unkept"] is None
    assert client.ask("POST", f"kernels/{kernel}/kill").status_code == 204
    ended = client.sandbox(kernel)
    assert ended["last_death"] is None
    assert ended["unkept"]["paths"] == ["x"]


def notebook(source: str) -> Any:
    cell = nbformat.v4.new_code_cell(source)
    return nbformat.v4.new_notebook(cells=[cell])


@pytest.mark.filterwarnings("ignore::nbformat.warnings.DuplicateCellId")
@pytest.mark.filterwarnings("ignore::nbformat.warnings.MissingIDFieldWarning")
def test_signature_is_that_of_the_notary() -> None:
    notary = NotebookNotary(secret=b"x", db_file=":memory:")
    cell = {"cell_type": "code", "source": ["a\n", "é"], "execution_count": 1}
    output = {"output_type": "display_data", "metadata": {}, "data": {"text/html": ["<b>", "</b>"]}}
    cell |= {"metadata": {"trusted": True, "x": 1e300}, "outputs": [output]}
    head = {"nbformat": 4, "metadata": {"signature": "x", "orig_nbformat": 3}}

    def signs(**more: object) -> bool:
        """Return whether there is a signature; it is that of what Jupyter reads."""
        text = json.dumps({**head, **more})
        found = find_signature(notary, text)
        return found != "" and found == notary.compute_signature(nbformat.reads(text, as_version=4))

    for minor in (0, 4):
        assert signs(nbformat_minor=minor, cells=[cell, cell])
    assert signs(nbformat_minor=5, cells=[{**cell, "id": "a"}, {**cell, "id": "b"}])
    assert signs(nbformat_minor=5, cells=[{**cell, "id": "a", "outputs": [{}]}])  # not valid
    # Jupyter gives these other ids each time.
    assert not signs(nbformat_minor=5, cells=[cell])
    assert not signs(nbformat_minor=5, cells=[{**cell, "id": "a"}, {**cell, "id": "a"}])
    sheet = {"cells": [{"cell_type": "code", "input": "", "outputs": [], "language": "python"}]}
    assert not signs(nbformat=3, nbformat_minor=0, worksheets=[sheet])


def test_notebooks_that_take_long_to_read_do_not_stop_the_server(
    client: Client, server: JupyterServer
) -> None:
    (folder := server.folder / "long").mkdir()
    (folder / "a.ipynb").write_text('{"x": "' + '\\",' * 110_000)
    tags = [{"a long name of a tag": number} for number in range(30_000)]
    tagged = notebook("1")
    tagged.cells[0].metadata.tags = tags
    (folder / "b.ipynb").write_text(json.dumps(tagged))
    saved = {"type": "notebook", "format": "json", "content": notebook("2")}
    server.ask("PUT", "contents/long/c.ipynb", **saved)
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(client.ask, "GET", "trust", params={"path": "long"})
        assert client.ask("GET", "sandboxes").status_code == 200
        assert asked.result().json() == {
            "notebooks": [
                {"path": "long/a.ipynb", "trusted": False},
                {"path": "long/b.ipynb", "trusted": False},
                {"path": "long/c.ipynb", "trusted": True},
            ],
            "more": False,
        }


def test_trust_is_that_of_the_notary(client: Client, server: JupyterServer, tmp_path: Path) -> None:
    folder = server.folder / "trust"
    (folder / "below").mkdir(parents=True)
    elsewhere = notebook("1")
    elsewhere.cells[0].outputs = [nbformat.v4.new_output("stream", text="x")]
    for path in ("elsewhere.ipynb", ".hidden.ipynb", "below/deep.ipynb"):
        nbformat.write(elsewhere, folder / path)
    (folder / "broken.ipynb").write_text("{")
    (folder / "large.ipynb").write_text(" " * (16 * 2**20 + 1))
    (folder / "text.txt").write_text("x")
    nbformat.write(elsewhere, tmp_path / "outside.ipynb")
    (folder / "link.ipynb").symlink_to(tmp_path / "outside.ipynb")
    (folder / "out").symlink_to(tmp_path)
    # The notary's database is made by this, and must serve the server's own save below.
    assert client.ask("GET", "trust", params={"path": "trust/elsewhere.ipynb"}).json() == {
        "notebooks": [{"path": "trust/elsewhere.ipynb", "trusted": False}],
        "more": False,
    }
    saved = {"type": "notebook", "format": "json", "content": notebook("2")}
    server.ask("PUT", "contents/trust/saved.ipynb", **saved)

    def ask(path: str) -> requests.Response:
        return client.ask("GET", "trust", params={"path": path})

    def read(path: str) -> dict[str, bool]:
        return {one["path"]: one["trusted"] for one in ask(path).json()["notebooks"]}

    assert read("trust") == {
        "trust/broken.ipynb": False,
        "trust/elsewhere.ipynb": False,
        "trust/large.ipynb": False,
        "trust/saved.ipynb": True,
    }
    assert read("/trust/saved.ipynb") == {"trust/saved.ipynb": True}
    # Signed without a change of the file.
    server.ask("POST", "contents/trust/elsewhere.ipynb/trust")
    assert read("trust/elsewhere.ipynb") == {"trust/elsewhere.ipynb": True}
    # Another content of the same name.
    content = json.loads((folder / "saved.ipynb").read_text())
    content["cells"][0]["source"] = "evil()"
    (folder / "saved.ipynb").write_text(json.dumps(content))
    assert read("trust/saved.ipynb") == {"trust/saved.ipynb": False}
    for path in (
        *("../x", "trust/../..", "\0", "none", "trust/text.txt", "trust/.hidden.ipynb"),
        *("trust/out", "trust/out/outside.ipynb", "trust/link.ipynb"),
    ):
        assert ask(path).status_code == 404, path
