"""Files at Jupyter's addresses: those that a sandbox may have made are shown without scripts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from gvisor_kernel.host.folders import open_path
from gvisor_kernel.runtimes.mounts.written_folders import note_written
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.server.file_handlers import POLICY, is_from_sandbox

from ..jupyter.helpers import SECONDS
from ..jupyter.server import JupyterServer
from .clients import running_server

PAGE = "<script>document.title = 'ran'</script>"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JupyterServer]:
    folder = tmp_path_factory.mktemp("notebooks")
    with running_server(folder) as server:
        yield server


def get(server: JupyterServer, path: str) -> requests.Response:
    headers = {"Authorization": f"token {server.token}"}
    return requests.get(f"{server.url}/{path}", headers=headers, timeout=SECONDS)


def policy(server: JupyterServer, path: str) -> str:
    answer = get(server, path)
    answer.raise_for_status()
    return answer.headers["Content-Security-Policy"]


def write(path: Path, text: str = PAGE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def write_notebook(path: Path, exporter: str) -> None:
    language = {"name": "python", "nbconvert_exporter": exporter, "file_extension": "/../x"}
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "source": "1 + 1"}
    document = {
        "cells": [cell | {"execution_count": None, "outputs": []}],
        "metadata": {"language_info": language},
        **{"nbformat": 4, "nbformat_minor": 5},
    }
    write(path, json.dumps(document))


@pytest.mark.parametrize("name", ["outputs/a.html", "b/outputs/deep/a.svg", "outputs/a.xhtml"])
def test_a_page_from_outputs_has_no_scripts(server: JupyterServer, name: str) -> None:
    write(server.folder / name)
    answer = get(server, f"files/{name}")

    assert answer.headers["Content-Security-Policy"] == POLICY
    assert answer.headers["Connection-Allowlist"] == "()"
    assert answer.text == PAGE


def test_a_page_of_a_person_is_as_before(server: JupyterServer) -> None:
    write(server.folder / "outputs.d" / "a.html")

    assert policy(server, "files/outputs.d/a.html").endswith("sandbox allow-scripts")


def test_a_page_below_a_folder_that_was_lent_has_no_scripts(server: JupyterServer) -> None:
    folder = server.folder / "lent"
    write(folder / "deep" / "a.html")
    assert not is_from_sandbox(str(folder / "deep" / "a.html"))

    opened = open_path(str(folder))
    with records.locked():
        note_written([opened])
    opened.close()
    folder.rename(server.folder / "moved")
    (server.folder / "link").symlink_to("moved/deep")

    (server.folder / "of-a-person.html").symlink_to("moved/deep/a.html")

    assert policy(server, "files/moved/deep/a.html") == POLICY
    assert policy(server, "files/of-a-person.html") == POLICY
    assert policy(server, "files/link/a.html") == POLICY


def test_who_is_nobody_learns_nothing(server: JupyterServer) -> None:
    write(server.folder / "outputs" / "a.html")
    answer = requests.get(
        f"{server.url}/files/outputs/a.html", timeout=SECONDS, allow_redirects=False
    )

    assert answer.status_code in (302, 403)
    assert answer.headers["Content-Security-Policy"] != POLICY


@pytest.mark.parametrize("path", ["files/none/a.html", "files/outputs/none.html", "files/"])
def test_what_is_not_there_is_not_found(server: JupyterServer, path: str) -> None:
    assert get(server, path).status_code in (400, 403, 404)


def test_a_notebook_as_a_page_has_no_scripts(server: JupyterServer) -> None:
    write_notebook(server.folder / "a.ipynb", "python")

    assert policy(server, "nbconvert/html/a.ipynb") == POLICY
    assert "1" in get(server, "nbconvert/html/a.ipynb?download=true").text


@pytest.mark.parametrize("exporter", ["this.Exporter", "webpdf", "html"])
def test_a_notebook_names_no_class_that_an_export_imports(
    server: JupyterServer, exporter: str
) -> None:
    write_notebook(server.folder / "a.ipynb", exporter)
    answer = get(server, "nbconvert/script/a.ipynb?download=true")

    assert "Beautiful is better than ugly" not in "".join(server.log)
    assert answer.headers["Content-Disposition"].endswith("''a.txt")
    assert "1 + 1" in answer.text
