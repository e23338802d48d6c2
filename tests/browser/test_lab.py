"""``gvisor-kernel lab`` in a browser: a stranger's notebook, and script in its page."""

from __future__ import annotations

import http.server
import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from selenium import webdriver

from ..gvisor import gvisor_release
from ..jupyter.server import Lab
from .conftest import IN_SANDBOXES
from .lab import LabPage

pytestmark = IN_SANDBOXES
ATTACK = """
const done = arguments[arguments.length - 1];
const [elsewhere] = arguments;
const xsrf = /_xsrf=([^;]+)/.exec(document.cookie)[1];
const ask = async (method, path, body) => {
  try {
    const url = new URL(path, location.origin);
    const headers = {'X-XSRFToken': xsrf};
    return (await fetch(url, {method, headers, body: JSON.stringify(body)})).status;
  } catch (error) { return String(error); }
};
(async () => done({
  terminal: await ask('POST', '/api/terminals', {}),
  kernel: await ask('POST', '/api/kernels', {name: 'python3'}),
  hidden: await ask('PUT', '/api/contents/.bashrc', {type: 'file', format: 'text', content: 'x'}),
  allowed: await ask('GET', '/api/contents/stranger.ipynb'),
  elsewhere: await fetch(elsewhere, {mode: 'no-cors'}).then(() => 'sent', () => 'refused'),
  picture: await new Promise((resolve) => {
    const image = new Image();
    image.onload = () => resolve('sent');
    image.onerror = () => resolve('refused');
    image.src = elsewhere;
  }),
  frameOfAnError: await new Promise((resolve) => {
    const frame = document.createElement('iframe');
    frame.src = '/nothing';
    frame.onload = () => {
      try {
        frame.contentWindow.fetch(elsewhere, {mode: 'no-cors'})
          .then(() => resolve('sent'), () => resolve('refused'));
      } catch { resolve('refused'); }
    };
    document.body.append(frame);
  }),
}))();
"""

WORKSPACE = {
    "data": {
        "layout-restorer:data": {"main": {"dock": None}},
        "help-viewer:a": {"data": {"url": "http://127.0.0.1:1/", "text": "a"}},
    },
    "metadata": {"id": "stranger"},
}
LEAVING = (
    "window.open(arguments[0])",
    "document.body.append(document.createElement('iframe')); frames[0].location = arguments[0]",
    "navigator.sendBeacon(arguments[0], 'x')",
    "new WebSocket(arguments[0].replace('http', 'ws'))",
    "location = arguments[0]",
)


class _Listener(http.server.BaseHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012 - of all instances

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(204)
        self.end_headers()


@pytest.mark.timeout(300)
def test_strangers_notebook_runs_in_a_sandbox_and_its_page_reaches_nothing(
    driver: webdriver.Chrome, tmp_path: Path, artifacts: Path
) -> None:
    cell = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
    notebook: dict[str, Any] = {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)"}},
        "cells": [{**cell, "id": "a", "source": "import platform; print(platform.release())"}],
    }
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "stranger.ipynb").write_text(json.dumps(notebook))
    (folder / "a.jupyterlab-workspace").write_text(json.dumps(WORKSPACE))
    server = Lab(folder)
    listener = http.server.HTTPServer(("127.0.0.1", 0), _Listener)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    try:
        server.start()
        shown: Any = SimpleNamespace(url=f"{server.url}/", token=server.token)
        page = LabPage(driver, shown, artifacts)
        driver.get(f"{server.url}/lab/tree/stranger.ipynb?reset&token={server.token}")
        assert "Python 3 (gVisor)" in page.dialog()
        page.screenshot("lab-opened")
        page.find(".jp-Dialog-button.jp-mod-accept").click()
        page.wait_for_kernel("Python 3 (gVisor)")
        page.find_menu("Run").click()
        page.find_menu("Run All Cells").click()
        assert page.output(1).text == gvisor_release()
        page.screenshot("lab-run")
        # No way to Notebook 7, whose pages this server has not.
        tools = page.find(".jp-NotebookPanel-toolbar").text
        assert "Python 3 (gVisor)" in tools
        assert "Notebook" not in tools
        driver.set_script_timeout(60)
        found = driver.execute_async_script(ATTACK, f"http://127.0.0.1:{listener.server_port}")
        assert found == {
            "terminal": 404,
            "kernel": 500,
            "hidden": 404,
            "allowed": 200,
            "elsewhere": "refused",
            "picture": "refused",
            "frameOfAnError": "refused",
        }
        assert not _Listener.asked
        # A file of a layout is a text: it would open what a stranger has named in it.
        driver.get(f"{server.url}/lab/tree/a.jupyterlab-workspace")
        page.find(".jp-FileEditor")
        kept = server.send("GET", "lab/api/workspaces").json()["workspaces"]["ids"]
        assert "stranger" not in kept
        assert "workspaces/stranger" not in driver.current_url
        # The browser shows its own page of an error: nothing is sent for these.
        for way in LEAVING:
            driver.execute_script(way, f"http://127.0.0.1:{listener.server_port}/left")
        page.wait_until(lambda: driver.current_url.endswith("/left"), "the page never left")
        assert not _Listener.asked
    finally:
        listener.shutdown()
        listener.server_close()
        server.stop()
    assert not (folder / ".bashrc").exists()
